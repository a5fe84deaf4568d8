"""DTD-Synthetic: 12 textures cut from DTD with synthetic defects.

Categories Blotchy_099, Fibrous_183, Marbled_078, Matted_069, Mesh_114, Perforated_037, Stratified_154, Woven_001,
Woven_068, Woven_104, Woven_125, Woven_127. MVTec AD layout: ``<category>/train/good``, ``<category>/test/{good,bad}``,
``<category>/ground_truth/bad``. The archive nests DTD-Synthetic/DTD-Synthetic: the inner folder is the root, and it is
entered by itself. Defects are drawn and resampled, so mask edges can be soft: they are cut at the middle.

Source: Aota et al., "Zero-shot versus many-shot: unsupervised texture anomaly detection", WACV 2023; category list and
nesting as used by public zero-shot code. Not checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample
from realad_verl.data.datasets.mvtec_layout import MASK_FOLDERS, read_mvtec_layout


def _read(root: Path) -> list[Sample]:
    nested = root / "DTD-Synthetic"
    return read_mvtec_layout(nested if nested.is_dir() else root, "dtd_synthetic")


DTD_SYNTHETIC = Dataset(
    name="dtd_synthetic",
    title="DTD-Synthetic",
    kind="textures",
    role="test",
    normal="not checked",
    anomalous="not checked",
    licence="check with its authors (DTD: research use)",
    source="Aota et al., WACV 2023",
    read=_read,
    test_split="test",
    mask_folders=MASK_FOLDERS,
)
