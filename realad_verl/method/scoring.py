"""ReAL, steps 1 to 5: which reasoning tokens look at the anomaly, and how much each one counts.

Shape letters: R reasoning tokens of one response, T tokens (of one or many responses), P image cells (= rows*cols of
the grid, row-major), W anomaly-word columns. Rows are attention probabilities: the softmax ran over every key, so the P
values of a row sum to less than 1.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from realad_verl.method.config import ScoringConfig

# Cells labelled in one go: bounds the memory of `spatial_entropy` (about 40 bytes a cell) and keeps it in cache.
CHUNK_CELLS = 1 << 19
# Scores that differ by less than this, relatively, are equal: rounding noise must not be stretched to [0, 1].
EQUAL = 1e-6


def semantic_relevance(words_RW: Tensor) -> Tensor:
    """S_T[r] = sum_k A_r[k] over the anomaly-word columns k: [R, W] -> [R]; zeros where W = 0."""
    return words_RW.float().sum(dim=-1)


def usable_rows(rows_TP: Tensor) -> Tensor:
    """Bool [T]: finite and not constant. A constant map says nothing about where, so its token is never selected."""
    if rows_TP.shape[-1] == 0:
        return torch.zeros(rows_TP.shape[0], dtype=torch.bool, device=rows_TP.device)
    low, high = rows_TP.aminmax(dim=-1)  # NaN propagates, and no comparison with NaN is true
    return (high > low) & low.isfinite() & high.isfinite()


def spatial_entropy(rows_TP: Tensor, grid: tuple[int, int], share: str = "area") -> Tensor:
    """E_r = -sum_i p_i ln p_i over the connected regions of attention above its mean: [T, P] -> [T], nats, fp32.

    B_r = A_r > mean(A_r); C_i are the components of B_r with 8-connectivity on the grid; p_i = |C_i| / sum_j |C_j| for
    share = "area", sum_{C_i}(A - mean) / sum_j sum_{C_j}(A - mean) for "mass". One region gives 0. A row with no region
    (constant) or with NaN or inf gets ln P, the most that any map can have.

    The labelling runs on the CPU, many maps in one call; time and memory are linear in T, the latter in chunks.
    """
    rows = rows_TP.detach()
    T, P = rows.shape
    if grid[0] * grid[1] != P:
        raise ValueError(f"rows have {P} image cells, grid {grid} has {grid[0] * grid[1]}")
    step = max(1, CHUNK_CELLS // max(P, 1))
    parts = [_entropy_chunk(rows[i : i + step].float().cpu().numpy(), grid, share) for i in range(0, T, step)]
    entropy = np.concatenate(parts) if parts else np.zeros(0)
    return torch.from_numpy(entropy).to(dtype=torch.float32, device=rows.device)


def _entropy_chunk(rows: np.ndarray, grid: tuple[int, int], share: str) -> np.ndarray:
    """Entropies [n] of n maps [n, P], by one component labelling of all of them."""
    n, P = rows.shape
    height, width = grid
    finite = np.isfinite(rows).all(axis=1)
    rows = np.where(finite[:, None], rows, 0)
    # fp64, so that the mean of a constant map is exactly its value
    mean = rows.mean(axis=1, dtype=np.float64, keepdims=True)
    above: np.ndarray = np.greater(rows, mean)
    # The maps stand in one column with an empty line between them, so that no region crosses from map to map.
    canvas = np.zeros((n, height + 1, width), dtype=np.uint8)
    canvas[:, :height] = above.reshape(n, height, width)
    count, labels = cv2.connectedComponents(canvas.reshape(-1, width), connectivity=8, ltype=cv2.CV_32S)

    cells = np.flatnonzero(above)
    owner = cells // P
    region: np.ndarray = np.asarray(labels, dtype=np.int32).reshape(n, height + 1, width)[:, :height].reshape(-1)[cells]
    size = np.ones(len(cells)) if share == "area" else (rows - mean).reshape(-1)[cells]
    region_size = np.bincount(region, weights=size, minlength=count)
    region_owner = np.zeros(count, dtype=np.int64)
    region_owner[region] = owner
    map_size = np.bincount(owner, weights=size, minlength=n)

    # region 0 is the background
    p = region_size[1:] / map_size[region_owner[1:]]
    entropy = np.bincount(region_owner[1:], weights=-p * np.log(p), minlength=n)
    # The order of the sum depends on where a map stands on the canvas: rounding makes equal partitions equal again.
    entropy = np.abs(np.round(entropy, 9))
    return np.where(map_size > 0, entropy, math.log(max(P, 1)))


def concentration(rows_TP: Tensor, grid: tuple[int, int], share: str = "area") -> Tensor:
    """S_I[r] = -E_r: [T, P] -> [T]; 0 for one compact region, the lower the more scattered."""
    return -spatial_entropy(rows_TP, grid, share)


def min_max(scores_R: Tensor, usable_R: Tensor) -> Tensor:
    """S^[r] = (S[r] - min S) / (max S - min S) over the usable tokens, in [0, 1]: [R] -> [R].

    Tokens that are not usable get 0 and do not move the others. Scores that are all equal (within rounding, relative
    1e-6) become zeros.
    """
    if not bool(usable_R.any()):
        return torch.zeros_like(scores_R)
    low, high = scores_R[usable_R].aminmax()
    if high - low <= EQUAL * torch.maximum(low.abs(), high.abs()):
        return torch.zeros_like(scores_R)
    return torch.where(usable_R, (scores_R - low) / (high - low), 0.0).clamp(0.0, 1.0)


def token_weights(s_t_R: Tensor, s_i_R: Tensor, usable_R: Tensor, cfg: ScoringConfig) -> Tensor:
    """w_r = alpha * S_T^[r] + beta * S_I^[r] of normalised scores: [R] -> [R]; 0 for tokens that are not usable.

    select = "text" and "image" leave the other score out (w = S_T^, w = S_I^); "all" weighs every token 1.
    """
    if cfg.select == "all":
        return usable_R.to(s_t_R.dtype)
    if cfg.select == "text":
        weights = s_t_R
    elif cfg.select == "image":
        weights = s_i_R
    else:
        weights = cfg.alpha * s_t_R + cfg.beta * s_i_R
    return torch.where(usable_R, weights, 0.0)


def passes(s_t_R: Tensor, s_i_R: Tensor, usable_R: Tensor, cfg: ScoringConfig) -> Tensor:
    """Bool [R]: S_T^ > tau_t and S_I^ > tau_i (the one, the other or neither test, by ``select``), and usable."""
    kept = usable_R.clone()
    if cfg.select in ("both", "text"):
        kept &= s_t_R > cfg.tau_t
    if cfg.select in ("both", "image"):
        kept &= s_i_R > cfg.tau_i
    return kept


def top_tokens(weights_R: Tensor, usable_R: Tensor, t: int) -> Tensor:
    """Indices of the t usable tokens of largest weight, largest first, the earlier token first among equals.

    Shorter than t where there are fewer usable tokens.
    """
    candidates = usable_R.nonzero().squeeze(-1)
    order = weights_R[candidates].argsort(descending=True, stable=True)
    return candidates[order[:t]]


def select_tokens(
    s_t_R: Tensor, s_i_R: Tensor, weights_R: Tensor, usable_R: Tensor, cfg: ScoringConfig
) -> tuple[Tensor, bool]:
    """(kept bool [R], fallback): those that pass; if none does, the ``fallback_tokens`` of largest weight."""
    kept = passes(s_t_R, s_i_R, usable_R, cfg)
    if bool(kept.any()):
        return kept, False
    kept[top_tokens(weights_R, usable_R, cfg.fallback_tokens)] = True
    return kept, True
