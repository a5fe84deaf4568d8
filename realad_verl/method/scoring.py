"""ReAL, steps 1 to 5: which reasoning tokens look at the anomaly, and how much each one counts.

Shape letters: R reasoning tokens of one response, T tokens of one or many responses in a row, P image cells (=
rows*cols of the grid, row-major), W anomaly-word columns. "..." stands for nothing (one response) or for B responses
padded to the same R, where padding is marked as not usable. Rows are attention probabilities: the softmax ran over
every key, so the P values of a row sum to less than 1.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from realad_verl.method.config import ScoringConfig

# Cells labelled in one go: bounds the memory of `spatial_entropy` (about 40 bytes a cell) and keeps it in cache.
CHUNK_CELLS = 1 << 18
# Scores that differ by less than this, relatively, are equal: rounding noise must not be stretched to [0, 1].
EQUAL = 1e-6


def semantic_relevance(words_RW: Tensor) -> Tensor:
    """S_T[r] = sum_k A_r[k] over the anomaly-word columns k: [R, W] -> [R]; zeros where W = 0."""
    return words_RW.float().sum(dim=-1)


def check_rows(rows_TP: Tensor) -> tuple[Tensor, Tensor]:
    """(finite, usable), bool [T] each: no NaN or inf in the row; finite and not constant.

    A constant map says nothing about where, so its token is never selected.
    """
    if rows_TP.shape[-1] == 0:
        finite = torch.ones(rows_TP.shape[0], dtype=torch.bool, device=rows_TP.device)
        return finite, ~finite
    low, high = rows_TP.amin(dim=-1), rows_TP.amax(dim=-1)  # both carry NaN through
    finite = low.isfinite() & high.isfinite()
    return finite, finite & (high > low)


def spatial_entropy(rows_TP: Tensor, grid: tuple[int, int], share: str = "area") -> Tensor:
    """E_r = -sum_i p_i ln p_i over the connected regions of attention above its mean: [T, P] -> [T], nats, fp32.

    B_r = A_r > mean(A_r); C_i are the components of B_r with 8-connectivity on the grid; p_i = |C_i| / sum_j |C_j| for
    share = "area", sum_{C_i}(A - mean) / sum_j sum_{C_j}(A - mean) for "mass". One region gives 0. A row with no region
    (constant) or with NaN or inf gets ln P, the most that any map can have.

    The labelling runs on the CPU, many maps in one call; time is linear in T, memory bounded by chunks.
    """
    T, P = rows_TP.shape
    if grid[0] * grid[1] != P:
        raise ValueError(f"rows have {P} image cells, grid {grid} has {grid[0] * grid[1]}")
    entropy_T = torch.empty(T, dtype=torch.float32)
    step = max(1, CHUNK_CELLS // max(P, 1))
    for start in range(0, T, step):
        chunk = rows_TP[start : start + step].detach().float().cpu()
        entropy_T[start : start + step] = _entropy_chunk(chunk, grid, share)
    return entropy_T.to(rows_TP.device)


def _entropy_chunk(rows_nP: Tensor, grid: tuple[int, int], share: str) -> Tensor:
    """Entropies [n] of n maps by one component labelling of all of them.

    With s(k) a cell's share of the whole S = sum_k s(k), and S_C(k) the size of the component that holds cell k,
    -sum_i p_i ln p_i = ln S - sum_k s(k) ln S_C(k) / S: a sum over cells, which needs no list of components.
    """
    n, P = rows_nP.shape
    height, width = grid
    finite_n, usable_n = check_rows(rows_nP)
    if not bool(finite_n.all()):
        rows_nP = torch.where(finite_n[:, None], rows_nP, 0.0)
    # fp64, so that the mean of a constant map is exactly its value
    mean_n = rows_nP.mean(dim=1, dtype=torch.float64)
    # The maps stand in one column with an empty line between them, so that no region crosses from map to map.
    canvas = np.zeros((n, height + 1, width), dtype=np.uint8)
    np.greater(rows_nP.numpy(), mean_n[:, None].numpy(), out=canvas[:, :height].reshape(n, P), casting="unsafe")
    count, label = _components(canvas.reshape(-1, width))

    if share == "area":
        size_nk = None
        region = torch.bincount(label, minlength=count).double()
        total_n = torch.from_numpy(canvas).reshape(n, -1).sum(dim=1).double()
    else:
        size_nk = torch.zeros(n, height + 1, width, dtype=torch.float64)
        size_nk[:, :height] = (rows_nP - mean_n[:, None]).clamp(min=0).reshape(n, height, width)
        size_nk = size_nk.reshape(n, -1)
        region = torch.bincount(label, weights=size_nk.reshape(-1), minlength=count)
        total_n = size_nk.sum(dim=1)
    log_region = region.log()
    log_region[0] = 0.0  # label 0 is the background
    log_nk = log_region.index_select(0, label).reshape(n, -1)
    mean_log_n = (log_nk if size_nk is None else size_nk * log_nk).sum(dim=1) / total_n
    # Equal partitions must have equal entropy, whatever the order of the sums: rounding takes their noise away.
    entropy_n = (total_n.log() - mean_log_n).round(decimals=9).clamp(min=0.0)
    return torch.where(usable_n, entropy_n, math.log(max(P, 1))).float()


def _components(canvas: np.ndarray) -> tuple[int, Tensor]:
    """Number of labels, and the label of each pixel in one row; 0 is the background."""
    if cv2.getNumThreads() > torch.get_num_threads():
        # OpenCV takes every core, whatever this process was told to take, and its threads spin when they have nothing
        # to do: on a machine with a rank a GPU that is every core, once for every rank.
        cv2.setNumThreads(torch.get_num_threads())
    count, labels = cv2.connectedComponents(canvas, connectivity=8, ltype=cv2.CV_32S)
    return count, torch.from_numpy(labels).reshape(-1)


def contrast(rows_TP: Tensor) -> Tensor:
    """max A_r / mean A_r over the image [ours]: [T, P] -> [T]; 1 for a flat row, P for one bright cell, >= 1.

    A row of zeros, of no cell, or with NaN or inf has contrast 1: it shows nothing.
    """
    if rows_TP.shape[-1] == 0:
        return torch.ones(rows_TP.shape[0], dtype=torch.float32, device=rows_TP.device)
    rows = rows_TP.detach().float()
    ratio = rows.amax(dim=-1) / rows.mean(dim=-1)
    return torch.where(ratio.isfinite(), ratio, 1.0)


def concentration(rows_TP: Tensor, grid: tuple[int, int], cfg: ScoringConfig = ScoringConfig()) -> Tensor:
    """S_I[r], the higher the more concentrated: [T, P] -> [T].

    "entropy": -E_r, 0 for one compact region. "contrast" [ours]: ``contrast``, which tells a sharp region from a broad
    one.
    """
    if cfg.concentration == "contrast":
        return contrast(rows_TP)
    return -spatial_entropy(rows_TP, grid, cfg.share)


def min_max(scores_R: Tensor, usable_R: Tensor) -> Tensor:
    """S^[r] = (S[r] - min S) / (max S - min S) over a response's usable tokens, in [0, 1]: [..., R] -> [..., R].

    Tokens that are not usable get 0 and do not move the others. Scores that are all equal (within rounding, relative
    1e-6) become zeros.
    """
    if scores_R.shape[-1] == 0:
        return torch.zeros_like(scores_R)
    low = torch.where(usable_R, scores_R, math.inf).amin(dim=-1, keepdim=True)
    high = torch.where(usable_R, scores_R, -math.inf).amax(dim=-1, keepdim=True)
    differ = high - low > EQUAL * torch.maximum(low.abs(), high.abs())  # false where none is usable: -inf
    return torch.where(usable_R & differ, (scores_R - low) / (high - low), 0.0).clamp(0.0, 1.0)


def token_weights(s_t_R: Tensor, s_i_R: Tensor, usable_R: Tensor, cfg: ScoringConfig) -> Tensor:
    """w_r = alpha * S_T^[r] + beta * S_I^[r] of normalised scores: [..., R] -> [..., R]; 0 for tokens not usable.

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
    """Bool [..., R]: S_T^ > tau_t and S_I^ > tau_i (the one, the other or neither test, by ``select``), and usable."""
    kept = usable_R.clone()
    if cfg.select in ("both", "text"):
        kept &= s_t_R > cfg.tau_t
    if cfg.select in ("both", "image"):
        kept &= s_i_R > cfg.tau_i
    return kept


def top_tokens(weights_R: Tensor, usable_R: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """(index, valid), [..., min(t, R)] each: the tokens of largest weight, the earlier token first among equals.

    Usable tokens come first; where there are fewer than t, ``valid`` is false for the rest.
    """
    ranked = torch.where(usable_R, weights_R, -math.inf)
    index = ranked.argsort(dim=-1, descending=True, stable=True)[..., :t]
    return index, usable_R.gather(-1, index)


def select_tokens(
    s_t_R: Tensor, s_i_R: Tensor, weights_R: Tensor, usable_R: Tensor, cfg: ScoringConfig
) -> tuple[Tensor, Tensor]:
    """(kept bool [..., R], fallback bool [...]): the tokens that pass; where none does, the fallback tokens.

    The fallback tokens are the ``fallback_tokens`` of largest weight; with no usable token even they are none.
    """
    kept = passes(s_t_R, s_i_R, usable_R, cfg)
    fallback = ~kept.any(dim=-1)
    index, valid = top_tokens(weights_R, usable_R, cfg.fallback_tokens)
    largest = torch.zeros_like(kept).scatter(-1, index, valid)
    return torch.where(fallback[..., None], largest, kept), fallback
