"""Metrics of one step from its samples: reward parts, Jaccard and evidence, by class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from realad_verl.verl_ext.train.wire import Summary

CLASSES = {0: "normal", 1: "anomalous"}


@dataclass(frozen=True)
class ScoredSample:
    """One response with its label (0 normal, 1 anomalous) and the parts of its reward, unweighted.

    ``other`` holds what the reward function returned beside the score (format_reward, accuracy_reward, ...).
    """

    label: int | None
    summary: Summary
    consistency: float
    total: float
    other: dict[str, float]


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


def _groups(samples: Sequence[ScoredSample]) -> Iterable[tuple[str, list[ScoredSample]]]:
    yield "mean", list(samples)
    for label, name in CLASSES.items():
        yield name, [s for s in samples if s.label == label]


def _named(prefix: str, name: str, values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {f"{prefix}/{name}": fmean(values)} if values else {}
