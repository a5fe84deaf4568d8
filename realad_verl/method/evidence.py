"""From attention rows to the evidence of a response: all steps of ReAL, and the Jaccard index of CGRO.

Shape letters: R reasoning tokens of one response, P image cells (= rows*cols of the grid, row-major).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realad_verl.method.anomaly_map import map_shares, weighted_map
from realad_verl.method.baseline import smooth_maps
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import attention_regions, jaccard_index
from realad_verl.method.scoring import (
    check_rows,
    concentration,
    min_max,
    select_tokens,
    token_weights,
    top_tokens,
)

Grid = tuple[int, int]
Triple = tuple[Tensor, Tensor, Grid]

# Cells reduced together, padding included: bounds the memory of a batch (about 20 bytes a cell).
GROUP_CELLS = 1 << 22


@dataclass(frozen=True)
class Evidence:
    """What the attention of one response shows.

    anomaly_map_P: the weighted map on the grid, fp32, smoothed by ``map.smooth``; None where nothing is averaged.
    weights_R, s_t_R, s_i_R: w_r and the raw S_T and S_I, fp32; always finite (a token without a usable map has
        weight 0 and the lowest S_I, -ln P or a contrast of 1; an S_T that is not finite becomes 0).
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

    Every step runs over many responses at once, in groups of bounded size.
    """
    evidence: list[Evidence] = []
    for rows_RP, s_t_R, grid in triples:
        if rows_RP.ndim != 2 or rows_RP.shape[1] != grid[0] * grid[1] or s_t_R.shape != rows_RP.shape[:1]:
            shapes = f"rows {tuple(rows_RP.shape)}, s_t {tuple(s_t_R.shape)}, grid {tuple(grid)}"
            raise ValueError(f"shapes do not fit: {shapes}; wanted [R, P], [R] and rows * cols = P")
        evidence.append(no_evidence("no_image" if len(rows_RP) else "no_reasoning", len(rows_RP), grid))
    for group in _groups(triples):
        for i, reduced in zip(group, _reduce([triples[i] for i in group], cfg), strict=True):
            evidence[i] = reduced
    return evidence


def _groups(triples: Sequence[Triple]) -> Iterator[list[int]]:
    """Indices of the responses that have rows, by grid and device; ``GROUP_CELLS`` at most, or one response."""
    pending: dict[tuple, list[int]] = {}
    for i, (rows_RP, _, grid) in enumerate(triples):
        if rows_RP.numel() == 0:
            continue
        group = pending.setdefault((tuple(grid), rows_RP.device), [])
        longest = max([len(triples[j][0]) for j in group] + [len(rows_RP)])
        if group and (len(group) + 1) * longest * rows_RP.shape[1] > GROUP_CELLS:
            yield group.copy()
            group.clear()
        group.append(i)
    yield from (group for group in pending.values() if group)


def _reduce(triples: Sequence[Triple], cfg: MethodConfig) -> list[Evidence]:
    """ReAL and the Jaccard index for responses of one grid, each with at least one token."""
    grid, sizes = triples[0][2], [len(rows_RP) for rows_RP, _, _ in triples]
    rows_TP, s_t_T, finite_T, usable_T = _finite(triples)
    s_i_T = concentration(rows_TP, grid, cfg.scoring)

    size_B = torch.tensor(sizes, device=rows_TP.device)
    token_BR = torch.arange(max(sizes), device=rows_TP.device) < size_B[:, None]

    def pad(values_T: Tensor) -> Tensor:
        return values_T.new_zeros(token_BR.shape).masked_scatter(token_BR, values_T)

    usable_BR, finite_BR = pad(usable_T), pad(finite_T)
    s_t_BR, s_i_BR = min_max(pad(s_t_T), usable_BR), min_max(pad(s_i_T), usable_BR)
    weights_BR = token_weights(s_t_BR, s_i_BR, usable_BR, cfg.scoring)
    kept_BR, fallback_B = select_tokens(s_t_BR, s_i_BR, weights_BR, usable_BR, cfg.scoring)
    # Constant maps are averaged where there is nothing better: still a map, if a flat one.
    shares_BR = map_shares(weights_BR, torch.where(kept_BR.any(dim=1, keepdim=True), kept_BR, finite_BR))

    clean_B, n_usable_B = (finite_BR == token_BR).all(dim=1), usable_BR.sum(dim=1)
    jaccards = _jaccards(rows_TP, size_B, weights_BR, usable_BR, clean_B, cfg)
    clean = zip(clean_B.tolist(), n_usable_B.tolist(), strict=True)
    problems = [_problem(all_finite, n_usable, cfg.consistency.t) for all_finite, n_usable in clean]
    n_kept, fallback, mapped = kept_BR.sum(dim=1).tolist(), fallback_B.tolist(), finite_BR.any(dim=1).tolist()
    rows_B, s_t_B, s_i_B = rows_TP.split(sizes), s_t_T.split(sizes), s_i_T.split(sizes)
    return [
        Evidence(
            anomaly_map_P=_map(rows_B[b], shares_BR[b, :R], grid, cfg) if mapped[b] else None,
            grid=grid,
            # tensors of their own: a view would drag the whole batch along wherever it is sent
            weights_R=weights_BR[b, :R].clone(),
            s_t_R=s_t_B[b].clone(),
            s_i_R=s_i_B[b].clone(),
            kept_R=kept_BR[b, :R].clone(),
            n_reasoning=R,
            n_kept=n_kept[b],
            fallback=fallback[b],
            jaccard=jaccards[b],
            problem=problems[b],
        )
        for b, R in enumerate(sizes)
    ]


def _map(rows_RP: Tensor, shares_R: Tensor, grid: Grid, cfg: MethodConfig) -> Tensor:
    return smooth_maps(weighted_map(rows_RP, shares_R), grid, cfg.map.smooth)


def _finite(triples: Sequence[Triple]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [T, P] and S_T [T] of all tokens with zeros for what is not finite; which are finite [T], usable [T]."""
    rows_TP = torch.cat([rows_RP.detach() for rows_RP, _, _ in triples]).float()
    s_t_T = torch.cat([s_t_R.detach() for _, s_t_R, _ in triples]).to(rows_TP.device).float()
    finite_T, usable_T = check_rows(rows_TP)
    finite_T, usable_T = finite_T & s_t_T.isfinite(), usable_T & s_t_T.isfinite()
    if not bool(finite_T.all()):
        rows_TP, s_t_T = torch.where(finite_T[:, None], rows_TP, 0.0), torch.where(s_t_T.isfinite(), s_t_T, 0.0)
    return rows_TP, s_t_T, finite_T, usable_T


def _problem(clean: bool, n_usable: int, t: int) -> str | None:
    if not clean:
        return "non_finite"
    if n_usable == 0:
        return "constant_rows"
    return "too_few_tokens" if n_usable < t else None


def _jaccards(
    rows_TP: Tensor, size_B: Tensor, weights_BR: Tensor, usable_BR: Tensor, clean_B: Tensor, cfg: MethodConfig
) -> list[float | None]:
    """J of each response's t strongest tokens, None where it has fewer, or attention that is not finite."""
    t = cfg.consistency.t
    jaccards: list[float | None] = [None] * len(size_B)
    enough = ((usable_BR.sum(dim=1) >= t) & clean_B).nonzero().squeeze(1)
    if len(enough):
        index_Bt, _ = top_tokens(weights_BR[enough], usable_BR[enough], t)
        first_B = (size_B.cumsum(0) - size_B)[enough]
        regions_BtP = attention_regions(rows_TP[first_B[:, None] + index_Bt], cfg.consistency.percentile)
        values = jaccard_index(regions_BtP, cfg.consistency.jaccard).tolist()
        for b, value in zip(enough.tolist(), values, strict=True):
            jaccards[b] = value
    return jaccards
