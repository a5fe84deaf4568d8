"""The datasets by name. ``DATASETS[name].samples(root, split)`` lists images; ``load_mask`` is for evaluation."""

import numpy as np

from realad_verl.data.datasets.base import ALL, Dataset, Sample
from realad_verl.data.datasets.deeppcb import DEEPPCB
from realad_verl.data.datasets.dtd_synthetic import DTD_SYNTHETIC
from realad_verl.data.datasets.folder import FOLDER
from realad_verl.data.datasets.goodsad import GOODSAD
from realad_verl.data.datasets.mvtec import MVTEC_AD, MVTEC_AD2, MVTEC_LOCO
from realad_verl.data.datasets.pr_real import PR_REAL
from realad_verl.data.datasets.real_iad import REAL_IAD
from realad_verl.data.datasets.sdd import SDD
from realad_verl.data.datasets.visa import VISA
from realad_verl.data.datasets.vision import VISION
from realad_verl.data.datasets.wfdd import WFDD
from realad_verl.data.images import image_shape
from realad_verl.data.masks import MaskRule, fitted
from realad_verl.errors import unknown_key

__all__ = ["ALL", "DATASETS", "Dataset", "Sample", "get_dataset", "load_fitted_mask", "load_mask"]

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *(VISA, GOODSAD, VISION, PR_REAL, REAL_IAD),
        *(MVTEC_AD, MVTEC_LOCO, MVTEC_AD2, WFDD, SDD, DTD_SYNTHETIC, DEEPPCB, FOLDER),
    )
}


def get_dataset(name: str) -> Dataset:
    """The dataset called ``name``; UserError naming the nearest one otherwise."""
    if name not in DATASETS:
        raise unknown_key(name, DATASETS, "the datasets")
    return DATASETS[name]


def load_mask(sample: Sample, rule: MaskRule | None = None) -> np.ndarray:
    """Ground truth of ``sample``: bool [H, W], True on the defect, as it lies on the upright image.

    A normal sample gives all False at the size of its image. An anomalous sample without a mask is a UserError; test
    ``sample.mask_path`` first where that can happen. A mask that is all zero comes back all False; one of another size
    than its image comes at its own size, and one of another shape is a ``Misfit``. ``rule``: which values are defect,
    decided for a whole set (``realad_verl.data.masks``); without one this mask decides alone.
    """
    return load_fitted_mask(sample, rule)[0]


def load_fitted_mask(sample: Sample, rule: MaskRule | None = None) -> tuple[np.ndarray, str]:
    """``load_mask``, and how the mask lay on its image: "" or a key of ``realad_verl.data.masks.FITS``."""
    shape = image_shape(sample.path)
    if sample.label == 0:
        return np.zeros((shape.height, shape.width), dtype=bool), ""
    mask = get_dataset(sample.dataset).load_mask(sample, rule)
    return fitted(mask, shape, sample.mask_path or sample.path)
