"""From attention rows to the evidence of a response: all steps of ReAL, and the Jaccard index of CGRO.

Shape letters: R reasoning tokens of one response, P image cells (= rows*cols of the grid, row-major).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realad_verl.method.anomaly_map import weighted_map
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import attention_regions, jaccard_index
from realad_verl.method.scoring import (
    CHUNK_CELLS,
    concentration,
    min_max,
    select_tokens,
    token_weights,
    top_tokens,
    usable_rows,
)

Grid = tuple[int, int]
Triple = tuple[Tensor, Tensor, Grid]


@dataclass(frozen=True)
class Evidence:
    """What the attention of one response shows.

    anomaly_map_P: the weighted map on the grid, fp32, None where there is nothing to average.
    weights_R, s_t_R, s_i_R: w_r and the raw S_T and S_I, fp32; always finite (a token without a usable map has
        weight 0 and S_I = -ln P; an S_T that is not finite becomes 0).
    kept_R: the tokens that the map is made of; with ``fallback`` they are not those that passed the thresholds.
    jaccard: None where fewer than t tokens have a usable map, or where attention was not finite.
    problem: None, "no_reasoning" (no token), "no_image" (no image cell), "non_finite" (NaN or inf in some row; the map
        is made of the others), "constant_rows" (no token has a usable map: the map is the plain mean of the rows),
        "too_few_tokens" (fewer than t, still a map); callers add their own words for what failed before this step.
    """

    anomaly_map_P: Tensor | None
    grid: Grid
    weights_R: Tensor
    s_t_R: Tensor
    s_i_R: Tensor
    kept_R: Tensor
    n_reasoning: int
    n_kept: int
    fallback: bool
    jaccard: float | None
    problem: str | None


def no_evidence(problem: str, n_reasoning: int = 0, grid: Grid = (0, 0)) -> Evidence:
    """The evidence of a response for which there is none, with the reason."""
    zeros = torch.zeros(n_reasoning)
    return Evidence(None, grid, zeros, zeros, zeros, zeros.bool(), n_reasoning, 0, False, None, problem)


def compute_evidence(rows_RP: Tensor, s_t_R: Tensor, grid: Grid, cfg: MethodConfig = MethodConfig()) -> Evidence:
    """Evidence of one response.

    rows_RP: attention of each reasoning token to each image cell. s_t_R: S_T of each (``semantic_relevance``).
    Raises ValueError where shapes do not fit; values never raise, whatever they are.
    """
    return compute_evidence_batch([(rows_RP, s_t_R, grid)], cfg)[0]


def compute_evidence_batch(triples: Sequence[Triple], cfg: MethodConfig = MethodConfig()) -> list[Evidence]:
    """Evidence of many responses, each ``(rows_RP, s_t_R, grid)``; the same numbers as one by one.

    The component labelling runs over the maps of many responses at once, in groups of bounded size.
    """
    for rows_RP, s_t_R, grid in triples:
        if rows_RP.ndim != 2 or rows_RP.shape[1] != grid[0] * grid[1] or s_t_R.shape != rows_RP.shape[:1]:
            shapes = f"rows {tuple(rows_RP.shape)}, s_t {tuple(s_t_R.shape)}, grid {tuple(grid)}"
            raise ValueError(f"shapes do not fit: {shapes}; wanted [R, P], [R] and rows * cols = P")
    evidence: list[Evidence] = [no_evidence("no_reasoning")] * len(triples)
    for group in _groups(triples):
        grid = triples[group[0]][2]
        rows = [triples[i][0].detach().float() for i in group]
        sizes = [len(r) for r in rows]
        stacked = torch.cat(rows) if len(rows) > 1 else rows[0]
        s_i = concentration(stacked, grid, cfg.scoring.share).split(sizes)
        usable = usable_rows(stacked).split(sizes)
        for k, i in enumerate(group):
            evidence[i] = _reduce(rows[k], triples[i][1].detach().float(), s_i[k], usable[k], grid, cfg)
    return evidence


def _groups(triples: Sequence[Triple]) -> Iterator[list[int]]:
    """Indices of responses of one grid and device, together at most ``CHUNK_CELLS`` cells (or one response)."""
    pending: dict[tuple, tuple[list[int], int]] = {}
    for i, (rows_RP, _, grid) in enumerate(triples):
        key = (tuple(grid), rows_RP.device)
        group, cells = pending.get(key, ([], 0))
        if group and cells + rows_RP.numel() > CHUNK_CELLS:
            yield group
            group, cells = [], 0
        pending[key] = ([*group, i], cells + rows_RP.numel())
    yield from (group for group, _ in pending.values())


def _reduce(rows_RP: Tensor, s_t_R: Tensor, s_i_R: Tensor, usable_R: Tensor, grid: Grid, cfg: MethodConfig) -> Evidence:
    R, P = rows_RP.shape
    if R == 0 or P == 0:
        return no_evidence("no_reasoning" if R == 0 else "no_image", R, grid)
    usable_R = usable_R & s_t_R.isfinite()
    finite_R = s_t_R.isfinite() & rows_RP.isfinite().all(dim=1)
    s_t_R = torch.where(s_t_R.isfinite(), s_t_R, 0.0)

    s_t_norm_R, s_i_norm_R = min_max(s_t_R, usable_R), min_max(s_i_R, usable_R)
    weights_R = token_weights(s_t_norm_R, s_i_norm_R, usable_R, cfg.scoring)
    kept_R, fallback = select_tokens(s_t_norm_R, s_i_norm_R, weights_R, usable_R, cfg.scoring)

    source_R = kept_R if bool(kept_R.any()) else finite_R
    anomaly_map_P = weighted_map(rows_RP, weights_R, source_R) if bool(source_R.any()) else None
    top = top_tokens(weights_R, usable_R, cfg.consistency.t)
    jaccard = None
    if not bool(finite_R.all()):
        problem = "non_finite"
    elif len(top) == 0:
        problem = "constant_rows"
    elif len(top) < cfg.consistency.t:
        problem = "too_few_tokens"
    else:
        problem = None
        regions = attention_regions(rows_RP[top], cfg.consistency.percentile)
        jaccard = jaccard_index(regions, cfg.consistency.jaccard)
    n_kept = int(kept_R.sum())
    return Evidence(anomaly_map_P, grid, weights_R, s_t_R, s_i_R, kept_R, R, n_kept, fallback, jaccard, problem)
