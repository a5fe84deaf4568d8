"""The data sets of MVTec in their common layout: MVTec AD, MVTec LOCO AD and the public part of MVTec AD 2.

**MVTec AD**: 15 categories (10 objects, 5 textures), 5,354 images. ``<category>/train/good/000.png``,
``<category>/test/{good,<defect type>}/000.png``, ``<category>/ground_truth/<defect type>/000_mask.png``. PNG; masks are
0/255, one per defective image, none for good. Training images are all normal. Bergmann et al., CVPR 2019 and IJCV
129(4), 2021. Checked on an excerpt with the original names and bytes (category leather); the other categories are not
checked against the original archive.

**MVTec LOCO AD**: 5 categories with logical and structural anomalies, 3,644 images. ``<category>/{train,validation}/
good/000.png``, ``<category>/test/{good,logical_anomalies,structural_anomalies}/000.png``. An anomalous image has a
folder of masks, one for each defect, ``<category>/ground_truth/<defect type>/000/000.png``; pixel values are ids of
``defects_config.json``, and every value above 0 is defect. Here they are one mask, their union. LOCO's own saturated
overlap (sPRO) is not computed, so AUPRO on it is not the figure of its paper. Bergmann et al., "Beyond Dents and
Scratches", IJCV 2022, and public loaders. Not checked against the original archive.

**MVTec AD 2**: 8 categories. ``<category>/{train,validation}/good/*.png``, ``<category>/test_public/{good,bad}/*.png``
with masks in ``<category>/test_public/ground_truth/bad/*_mask.png``. ``test_private`` and ``test_private_mixed`` have
no released labels: they are not read, and counted as skipped. Heckler-Kram et al., "The MVTec AD 2 Dataset", 2025, and
public loaders. Not checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample
from realad_verl.data.datasets.mvtec_layout import MASK_FOLDERS, read_mvtec_layout

LOCO_SPLITS: dict[str, str] = dict.fromkeys(("train", "validation", "test"), "ground_truth")
AD2_SPLITS: dict[str, str] = dict.fromkeys(("train", "validation", "test_public"), "test_public/ground_truth")


def _read_ad(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "mvtec_ad")


def _read_loco(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "mvtec_loco", LOCO_SPLITS)


def _read_ad2(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "mvtec_ad2", AD2_SPLITS)


MVTEC_AD = Dataset(
    name="mvtec_ad",
    title="MVTec AD",
    kind="objects and textures",
    role="test",
    normal="4,096",
    anomalous="1,258",
    licence="CC BY-NC-SA 4.0",
    source="MVTec, research data sets",
    read=_read_ad,
    test_split="test",
    mask_folders=MASK_FOLDERS,
)

MVTEC_LOCO = Dataset(
    name="mvtec_loco",
    title="MVTec LOCO AD",
    kind="objects",
    role="extra",
    normal="2,651",
    anomalous="993",
    licence="CC BY-NC-SA 4.0",
    source="MVTec, research data sets",
    read=_read_loco,
    test_split="test",
    mask_folders=MASK_FOLDERS,
)

MVTEC_AD2 = Dataset(
    name="mvtec_ad2",
    title="MVTec AD 2",
    kind="objects and textures",
    role="extra",
    normal="not checked",
    anomalous="not checked",
    licence="CC BY-NC-SA 4.0",
    source="MVTec, research data sets",
    read=_read_ad2,
    test_split="test_public",
    mask_folders=("*/test_public/ground_truth/*",),
)
