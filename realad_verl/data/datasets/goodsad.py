"""GoodsAD (PKU-GoodsAD): supermarket goods, 6 categories, 6,124 images of 3000 x 3000.

Layout: the authors' README says "the dataset format is same as MVTec AD", with categories drink_bottle, drink_can,
food_bottle, food_box, food_package, cigarette_box; train holds 3,136 good images, test 1,328 good and 1,660 defective.
Image names have 6 digits: product (3), serial number (3). Its masks go through the general rule of
:func:`~realad_verl.data.masks.mask_from_file` (0/255, soft edges, several levels, or a mask in the alpha channel).

Source: README of github.com/jianzhang96/GoodsAD, commit 3634130; Zhang et al., IEEE RA-L 9(3), 2024. Folder and mask
names are not checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample
from realad_verl.data.datasets.mvtec_layout import MASK_FOLDERS, read_mvtec_layout


def _read(root: Path) -> list[Sample]:
    return read_mvtec_layout(root, "goodsad")


GOODSAD = Dataset(
    name="goodsad",
    title="GoodsAD",
    kind="objects",
    role="train",
    normal="4,464",
    anomalous="1,660",
    licence="not stated by its README",
    source="github.com/jianzhang96/GoodsAD",
    read=_read,
    test_split="test",
    mask_folders=MASK_FOLDERS,
)
