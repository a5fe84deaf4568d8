"""The ranking figures, each one formula over cumulated counts, for one curve or for many resamples at once.

Letters: ``B`` score bins from the highest score down, any axes before it. ``tp`` and ``fp`` [..., B] are how many
anomalous and normal items (pixels, images; weighted or not) score at or above the bin; the last bin holds all of them.
Scores inside one bin are ties. A figure is NaN where one of the two kinds is missing.
"""

import numpy as np


def auroc(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """[...] area under the ROC curve, trapezoidal: a tie counts half."""
    return _area(_share(fp), _share(tp))


def average_precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """[...] sum of precision x step in recall, not interpolated."""
    steps = np.diff(_share(tp), prepend=0.0, axis=-1)
    return (steps * (tp / np.maximum(tp + fp, np.finfo(float).tiny))).sum(-1)


def f1(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """[..., B] F1 at each threshold."""
    return 2 * tp / (tp + fp + tp[..., -1:])


def accuracy(tp: np.ndarray, fp: np.ndarray, bins: int) -> np.ndarray:
    """[...] share decided rightly where the ``bins`` highest bins are called anomalous."""
    called_tp, called_fp = (tp[..., bins - 1], fp[..., bins - 1]) if bins else (0.0, 0.0)
    return (called_tp + fp[..., -1] - called_fp) / (tp[..., -1] + fp[..., -1])


def partial_area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """[...] area under the points (``x``, ``y``) [..., B] from (0, 0) to ``limit``, over ``limit`` (AUPRO's).

    ``x`` does not fall and ends at 1; the curve is cut at the limit by linear interpolation.
    """
    x0, y0 = _from_zero(x)[..., :-1], _from_zero(y)[..., :-1]
    width = x - x0
    inside = np.clip((limit - x0) / np.where(width > 0, width, 1.0), 0.0, 1.0) * (width > 0)
    return (inside * width * (y0 + 0.5 * inside * (y - y0))).sum(-1) / limit


def _share(cumulated: np.ndarray) -> np.ndarray:
    total = cumulated[..., -1:]
    return cumulated / np.where(total > 0, total, np.nan)


def _from_zero(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(values[..., :1]), values], axis=-1)


def _area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.trapezoid(_from_zero(y), _from_zero(x), axis=-1))
