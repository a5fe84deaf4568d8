"""Metrics of one step from its samples: reward parts, Jaccard and evidence, by class."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from transfer_queue import KVBatchMeta

from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.wire import Summary

VALIDATION = re.compile(r"val-(?:core|aux)/.+/(accuracy|format)_reward/mean@\d+")
CLASSES = {0: "normal", 1: "anomalous"}


@dataclass(frozen=True)
class ScoredSample:
    """One response with its label (0 normal, 1 anomalous) and the parts of its reward, unweighted.

    ``other`` holds what the reward function returned beside the score (format_reward, accuracy_reward, ...); ``right``
    is whether the answer equals the label.
    """

    label: int | None
    summary: Summary
    consistency: float
    total: float
    other: dict[str, float]
    right: bool = False


def scored(
    summaries: Tensor, verdicts: Tensor, notes: Tensor, rm_scores: Tensor, w_cons: float, real: Sequence[bool]
) -> tuple[list[ScoredSample], Tensor]:
    """A batch's samples, and its ``rm_scores`` [B, j] with ``w_cons`` R_cons on the last token of each real one.

    The first three fields are the workers' (:mod:`.wire`). verl's copies (not ``real``) keep their scores.
    """
    judged = wire.unpack_verdicts(verdicts)
    values, offsets = wire.flat(rm_scores)
    values, offsets = values.clone(), offsets.to(torch.int64)
    paid = torch.tensor([w_cons * v.consistency if is_real else 0.0 for v, is_real in zip(judged, real, strict=True)])
    values[offsets[1:] - 1] += paid.to(values.dtype)
    totals = torch.segment_reduce(values, "sum", offsets=offsets).tolist()
    columns = (judged, wire.unpack_summaries(summaries), totals, wire.unpack_notes(notes))
    samples = [ScoredSample(v.label, s, v.consistency, t, n, v.right) for v, s, t, n in zip(*columns, strict=True)]
    return samples, torch.nested.nested_tensor_from_jagged(values, offsets)


def real(batch: KVBatchMeta) -> list[bool]:
    """Which samples are responses of their own rather than verl's copies, which fill up the batch."""
    return [not tag.get("is_padding", False) for tag in batch.tags]


def step_metrics(samples: Sequence[ScoredSample]) -> dict[str, float]:
    """Every ``reward/`` and ``evidence/`` metric of one step.

    Means by class are left out where the step holds no sample of the class, so that a curve never shows a made-up 0.
    """
    metrics: dict[str, float] = {}
    for name, group in _groups(samples):
        metrics |= _named("reward/total", name, (s.total for s in group))
        metrics |= _named("reward/consistency", name, (s.consistency for s in group))
        for key in sorted({key for s in group for key in s.other}):
            values = (s.other[key] for s in group if key in s.other)
            metrics |= _named(f"reward/{key.removesuffix('_reward')}", name, values)
        jaccards = (s.summary.jaccard for s in group if s.summary.jaccard is not None)
        metrics |= _named("evidence/jaccard", name, jaccards)
        metrics |= _named("evidence/reasoning_tokens", name, (s.summary.n_reasoning for s in group))
        metrics |= _named("evidence/kept_tokens", name, (s.summary.n_kept for s in group))
        metrics |= _named("evidence/fallback_share", name, (float(s.summary.fallback) for s in group))
        metrics |= _named("evidence/none_share", name, (float(s.summary.jaccard is None) for s in group))
    problems = Counter(s.summary.problem for s in samples if s.summary.problem is not None)
    metrics |= {f"evidence/problem/{problem}": float(count) for problem, count in problems.items()}
    metrics["evidence/seconds"] = sum(s.summary.milliseconds for s in samples) / 1e3
    metrics["evidence/unlabelled"] = float(sum(s.label is None for s in samples))
    return metrics


def validation_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """``val/accuracy`` and ``val/format``: verl's means by data set, averaged over the data sets.

    verl names them after the data set, ``val-aux/realad/visa/accuracy_reward/mean@1``: no name that a sweep could hold.
    """
    found: dict[str, list[float]] = {}
    for key, value in metrics.items():
        if match := VALIDATION.fullmatch(key):
            found.setdefault(f"val/{match[1]}", []).append(float(value))
    return {name: fmean(values) for name, values in found.items()}


def _groups(samples: Sequence[ScoredSample]) -> Iterable[tuple[str, list[ScoredSample]]]:
    yield "mean", list(samples)
    for label, name in CLASSES.items():
        yield name, [s for s in samples if s.label == label]


def _named(prefix: str, name: str, values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {f"{prefix}/{name}": fmean(values)} if values else {}
