"""WFDD (Woven Fabric Defect Detection): 4 categories, 4,101 images.

Categories grey_cloth, grid_cloth, yellow_cloth, pink_flower; block-shape, point-like and line-type defects with pixel
masks. Released with GLASS, whose loader reads it as MVTec AD layout (``<category>/train/good``,
``<category>/test/<defect type>``, ``<category>/ground_truth/<defect type>``), masks ``<name>_mask.png`` or
``<name>.png``: both are tried. The images of a category do not all have one size.

Source: README of the GLASS code (Chen et al., ECCV 2024) and public code that reads ``yellow_cloth/test/good``. Not
checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample
from realad_verl.data.datasets.mvtec_layout import MASK_FOLDERS, read_mvtec_layout


def _read(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "wfdd")


WFDD = Dataset(
    name="wfdd",
    title="WFDD",
    kind="textures",
    role="test",
    normal="4,101 in all",
    anomalous="",
    licence="not stated by its README",
    source="GLASS (ECCV 2024), dataset release",
    read=_read,
    test_split="test",
    mask_folders=MASK_FOLDERS,
)
