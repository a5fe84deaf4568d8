"""MVTec AD: 15 categories (10 objects, 5 textures), 5,354 images.

Layout: ``<category>/train/good/000.png``, ``<category>/test/{good,<defect type>}/000.png``,
``<category>/ground_truth/<defect type>/000_mask.png``. PNG; masks are 0/255, one per defective image, none for good.
Training images are all normal.

Source: Bergmann et al., "MVTec AD", CVPR 2019 and IJCV 129(4), 2021. Checked on an excerpt with the original names and
bytes (category leather); the other categories are not checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample
from realad_verl.data.datasets.mvtec_layout import read_mvtec_layout


def _read(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "mvtec_ad")


MVTEC_AD = Dataset(
    name="mvtec_ad",
    title="MVTec AD",
    kind="objects and textures",
    role="test",
    normal="4,096",
    anomalous="1,258",
    licence="CC BY-NC-SA 4.0",
    source="MVTec, research data sets",
    read=_read,
    test_split="test",
)
