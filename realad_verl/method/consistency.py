"""CGRO: do the strongest reasoning tokens look at the same place, and should they?

Shape letters: R reasoning tokens, t tokens compared, P image cells.

An anomalous image has one place that the reasoning should keep coming back to; a normal one has none. So the reward
asks the tokens' attention regions to agree where the label says anomalous and to disagree where it says normal.
"""

import math

import torch
from torch import Tensor

from realad_verl.method.config import ConsistencyConfig


def attention_regions(rows_tP: Tensor, percentile: float = 95.0) -> Tensor:
    """Omega_r: the cells at or above the row's own percentile: [..., t, P] -> bool [..., t, P].

    The percentile is interpolated linearly between order statistics. At 95 a 15 x 15 grid keeps its 12 strongest cells
    (P = 225), 7 x 7 keeps 3, and any grid of 20 cells or fewer keeps the strongest one; equal values can add cells.
    Where the percentile is the row's minimum (nearly all cells equal), only what is above the minimum counts [ours]:
    otherwise a map of one bright cell would be "everywhere" and agree with any other.
    """
    rows = rows_tP.double()
    cut = torch.quantile(rows, percentile / 100.0, dim=-1, keepdim=True, interpolation="linear")
    return (rows >= cut) & (rows > rows.amin(dim=-1, keepdim=True))


def jaccard_index(regions_tP: Tensor, kind: str = "pairwise") -> Tensor:
    """J of t >= 2 regions, in [0, 1]: [..., t, P] -> [...], fp64.

    "pairwise": mean over r < s of |Omega_r & Omega_s| / |Omega_r | Omega_s|; "joint": |and of all| / |or of all|.
    Two empty regions have J = 0: nothing agrees with nothing.
    """
    t = regions_tP.shape[-2]
    if t < 2:
        raise ValueError(f"a Jaccard index needs at least 2 regions, got {t}")
    if kind == "joint":
        both, either = regions_tP.all(dim=-2).sum(dim=-1), regions_tP.any(dim=-2).sum(dim=-1)
        return both.double() / either.clamp(min=1)
    cells = regions_tP.double()
    inter_tt = cells @ cells.mT
    size_t = cells.sum(dim=-1)
    union_tt = size_t[..., :, None] + size_t[..., None, :] - inter_tt
    first, second = torch.triu_indices(t, t, offset=1, device=cells.device)
    return (inter_tt[..., first, second] / union_tt[..., first, second].clamp(min=1)).mean(dim=-1)


def consistency_reward(jaccard: float | None, label: int, cfg: ConsistencyConfig = ConsistencyConfig()) -> float:
    """R_cons of one response in [0, 1]; 0 for ``jaccard=None`` (fewer than t tokens, no evidence) and for NaN.

    "hard": 1 if (label = 1 and J > delta_1) or (label = 0 and J < delta_2), else 0. "continuous" [ours]: J for label 1,
    1 - J for label 0; the thresholds play no part. Raises ValueError for a label other than 0 and 1.
    """
    if label not in (0, 1):
        raise ValueError(f"label = {label!r} is not allowed. Allowed: 0 (normal), 1 (anomalous).")
    if jaccard is None or not math.isfinite(jaccard):
        return 0.0
    if cfg.form == "continuous":
        agreement = min(max(float(jaccard), 0.0), 1.0)
        return agreement if label == 1 else 1.0 - agreement
    return float(jaccard > cfg.delta_1 if label == 1 else jaccard < cfg.delta_2)


def consistency_score(
    jaccard: float | None,
    label: int | None,
    well_formed: bool,
    cfg: ConsistencyConfig = ConsistencyConfig(),
    *,
    accurate: bool | None = None,
) -> float:
    """What the trainer adds: ``consistency_reward`` for who may earn it (``cfg.gate``), else 0.

    ``well_formed``: ParsedResponse.well_formed. ``accurate``: the answer equals the label; needed by gate = "accuracy"
    only, where None counts as wrong. A sample without a usable label (None) earns 0, so one bad row of data never ends
    a training step.
    """
    if label is None or label not in (0, 1):
        return 0.0
    if cfg.gate != "none" and not well_formed:
        return 0.0
    if cfg.gate == "accuracy" and not accurate:
        return 0.0
    return consistency_reward(jaccard, int(label), cfg)
