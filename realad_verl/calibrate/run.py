"""The story of ``realad calibrate``: sample, read every head, choose heads, read those, baselines, thresholds.

Everything is chosen on the calibration images and their labels. To keep the figures honest, a baseline never meets the
images that it was made of: for figures, each half of the images is read relative to the normal images of the other.
The baselines that are written are those of all normal images.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realad_verl.calibrate.figures import Figures, Scored, auroc, best_threshold, figures
from realad_verl.calibrate.heads import Choice, choose_heads
from realad_verl.calibrate.images import ImageReader, Labelled
from realad_verl.calibrate.read import Reading, Response
from realad_verl.calibrate.responses import Sampled, evidence_of, sample_and_read
from realad_verl.errors import UserError
from realad_verl.evaluate.engines import Engine
from realad_verl.localize import Localizer
from realad_verl.method.baseline import Baseline, divide_by_baseline, mean_rows, resize_rows
from realad_verl.method.config import MapConfig, MethodConfig, ScoringConfig
from realad_verl.method.evidence import Evidence

Relative = Callable[[Response], Tensor]
# A calibrated read-out, but for heads and thresholds: on the validation images of docs/method.md, "Calibration", the
# best of the selections for maps and J alike.
SCORING = ScoringConfig(select="image", concentration="contrast", tau_i=0.0)
SMOOTH = 1.0
WORD_AT_LEAST = 16  # tokens: a word seen less often gets the baseline of all tokens
T, PERCENTILES = (3, 5, 8, 12), (90.0, 95.0, 98.0)


@dataclass(frozen=True)
class Settings:
    """n responses an image, ``seed`` of choice and sampling, ``baseline`` "normal" or "word"."""

    n: int = 8
    seed: int = 0
    batch_size: int = 4
    baseline: str = "word"


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and what it is worth on the calibration images."""

    default_method: MethodConfig
    method: MethodConfig
    baseline: Baseline
    choice: Choice
    all_heads: list[tuple[int, int]]
    heads: list[tuple[int, int]]
    default: tuple[Scored, Figures]
    calibrated: tuple[Scored, Figures]
    seconds: dict[str, float]
    sampled: list[Sampled]
    maps: dict[int, Tensor]


def calibrate(
    images: Sequence[Labelled],
    engine: Engine,
    localizer: Localizer,
    out: Path,
    settings: Settings,
    on_sampled: Callable[[int], None] = lambda count: None,
    on_read: Callable[[int], None] = lambda count: None,
) -> Calibration:
    """Calibrate ``localizer``'s model on labelled images; ``localizer.method`` is the read-out to compare with."""
    default = localizer.method
    if default.readout.heads is not None or default.scoring.baseline != "none":
        raise UserError("the model is calibrated already: calibrate with the default read-out (`--calibration none`).")
    reading = Reading(localizer, default)
    how = {"n": settings.n, "seed": settings.seed, "batch_size": settings.batch_size}
    sampled, seconds = sample_and_read(images, engine, reading, out, **how, on_image=on_sampled)
    label_I, grid = np.array([one.image.label for one in sampled]), _common_grid(sampled)
    choice, heads = _choose(sampled, label_I, grid, settings.seed)
    began = time.perf_counter()
    of_heads = replace(default, readout=replace(default.readout, layers=None, heads=tuple(heads)))
    read = _read_chosen(sampled, Reading(localizer, of_heads), settings.batch_size, on_read)
    seconds["reading chosen heads"] = time.perf_counter() - began
    side_I = _halves(label_I)
    halves = [_baseline(read, label_I, grid, side_I != side) for side in (0, 1)]
    base = MethodConfig(default.spans, of_heads.readout, SCORING, MapConfig(SMOOTH), default.consistency)
    relative = _relative(halves, settings.baseline)
    method, scored, maps = _thresholds(read, sampled, label_I, [relative[side] for side in side_I], base)
    method = replace(
        method,
        scoring=replace(SCORING, baseline=settings.baseline),
        calibration=str(out.resolve()),  # type: ignore[arg-type]
    )
    as_default = _scored(label_I, sampled, [one.jaccard for one in sampled], [one.fallback for one in sampled])
    return Calibration(
        default_method=default,
        method=method,
        baseline=_baseline(read, label_I, grid, np.ones(len(read), bool)),
        choice=choice,
        all_heads=next(one.heads for one in sampled if one.heads),
        heads=heads,
        default=(as_default, figures(as_default, default.consistency, settings.seed)),
        calibrated=(scored, figures(scored, method.consistency, settings.seed)),
        seconds=seconds,
        sampled=sampled,
        maps=maps,
    )


def _common_grid(sampled: Sequence[Sampled]) -> tuple[int, int]:
    grids = [one.grid for one in sampled if one.maps_HP is not None]
    if not grids:
        raise UserError(
            "no response of this model holds a reasoning, so no attention was read. Calibrate a model that answers in "
            "the format <think> ... </think><answer> ... </answer>; `realad evaluate` shows the share."
        )
    return max(set(grids), key=grids.count)


def _choose(
    sampled: Sequence[Sampled], label_I: np.ndarray, grid: tuple[int, int], seed: int
) -> tuple[Choice, list[tuple[int, int]]]:
    there = [i for i, one in enumerate(sampled) if one.maps_HP is not None]
    heads = sampled[there[0]].heads
    maps = [sampled[i].maps_HP for i in there]
    resized = [m if sampled[i].grid == grid else resize_rows(m, sampled[i].grid, grid) for i, m in zip(there, maps)]  # type: ignore[arg-type]  # noqa: B905
    choice = choose_heads(torch.stack(resized), label_I[there], seed)  # type: ignore[arg-type]
    return choice, sorted(heads[index] for index in choice.heads)


def _read_chosen(
    sampled: Sequence[Sampled], reading: Reading, batch_size: int, on_read: Callable[[int], None]
) -> list[list[Response]]:
    """The same responses again, with the chosen heads alone: rows of every reasoning token."""
    decode, found = ImageReader(), []
    for start in range(0, len(sampled), batch_size):
        batch = sampled[start : start + batch_size]
        responses, _ = reading([decode(one.image) for one in batch], [one.ids for one in batch])
        found += responses
        on_read(len(batch))
    return found


def _baseline(
    read: Sequence[Sequence[Response]], label_I: np.ndarray, grid: tuple[int, int], part_I: np.ndarray
) -> Baseline:
    """The baseline of the normal images of a part."""
    there = [r for i in np.flatnonzero((label_I == 0) & part_I) for r in read[i] if r.rows_RP is not None]
    if not there:
        raise UserError("no response to a normal image holds a reasoning, so there is nothing to be a baseline.")
    rows = [r.rows_RP if r.grid == grid else resize_rows(r.rows_RP, r.grid, grid) for r in there]  # type: ignore[arg-type]
    ids = torch.cat([r.token_ids_R for r in there])  # type: ignore[misc]
    return mean_rows(torch.cat(rows), ids, grid, WORD_AT_LEAST)  # type: ignore[arg-type]


def _halves(label_I: np.ndarray) -> np.ndarray:
    """0 or 1 for each image: every second one of its class."""
    side_I = np.empty(len(label_I), int)
    for label in (0, 1):
        side_I[label_I == label] = np.arange((label_I == label).sum()) % 2
    return side_I


def _relative(halves: Sequence[Baseline], kind: Any) -> list[Relative]:
    """For the images of each half: what makes a response's rows relative to the normal images of the other."""

    def over(baseline: Baseline) -> Relative:
        return lambda r: divide_by_baseline(r.rows_RP, baseline.resized(r.grid).rows(r.token_ids_R, kind))  # type: ignore[arg-type]

    return [over(baseline) for baseline in halves]


def _thresholds(
    read: Sequence[Sequence[Response]],
    sampled: Sequence[Sampled],
    label_I: np.ndarray,
    relative_I: Sequence[Relative],
    base: MethodConfig,
) -> tuple[MethodConfig, Scored, dict[int, Tensor]]:
    """t and percentile by the AUROC of J, then both deltas at the J that parts the classes best."""
    best: tuple[float, MethodConfig, list[list[Evidence]]] | None = None
    for t in T:
        for percentile in PERCENTILES:
            method = replace(base, consistency=replace(base.consistency, t=t, percentile=percentile))
            found = [evidence_of(some, method, over) for some, over in zip(read, relative_I, strict=True)]
            value = auroc(_filled(_array([[e.jaccard for e in some] for some in found]), label_I), label_I)
            if best is None or value > best[0]:
                best = (value, method, found)
    assert best is not None
    _, method, found = best
    jaccard = [[e.jaccard for e in some] for some in found]
    cut = round(best_threshold(_array(jaccard), label_I), 4)
    method = replace(method, consistency=replace(method.consistency, delta_1=cut, delta_2=cut))
    maps = {}
    for i, some in enumerate(found):
        there = [e.anomaly_map_P for e in some if e.anomaly_map_P is not None]
        if there:
            maps[i] = torch.stack(there).mean(0)
    return method, _scored(label_I, sampled, jaccard, [[e.fallback for e in some] for some in found]), maps


def _scored(
    label_I: np.ndarray,
    sampled: Sequence[Sampled],
    jaccard: Sequence[Sequence[float | None]],
    fallback: Sequence[Sequence[bool]],
) -> Scored:
    answer = np.array([[-1 if a is None else a for a in one.answer] for one in sampled])
    formed = np.array([one.formed for one in sampled])
    return Scored(label_I, _array(jaccard), answer == label_I[:, None], formed, np.array(fallback))


def _filled(jaccard_In: np.ndarray, label_I: np.ndarray) -> np.ndarray:
    """No J counts as the wrong one: a large t must not look good for leaving short responses out."""
    return np.where(np.isnan(jaccard_In), 1.0 - label_I[:, None], jaccard_In)


def _array(jaccard: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array([[np.nan if j is None else j for j in some] for some in jaccard], float)
