"""Runs side by side: on the images that all of them have, with paired intervals, or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realad_verl.evaluate.counts import Measured, PixelRecord, nested, thresholds_of
from realad_verl.evaluate.intervals import difference, intervals

VARIANTS = ("kept", "zeroed")
# Settings of the summary that two runs must share before their pixel figures mean the same.
SAME = ("pixel_size", "fpr_limit")


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as `compare` needs it: its folder, results.json, and rows of results.jsonl without errors by id."""

    name: str
    folder: Path
    results: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Runs against the first of them.

    ``refused``: why they are not compared, None where they are. ``n_images``: how many images all have; ``left_out``:
    how many images of each run are not among them. ``values`` and ``differences``: a table a run,
    ``[run][variant][part][figure]``: its figures on the common images, and the interval of its figure less the first's
    (None: no resample differs, or there is none; the first run has no differences).
    """

    refused: str | None
    n_images: int
    left_out: tuple[int, ...]
    values: tuple[dict[str, dict], ...] = ()
    differences: tuple[dict[str, dict], ...] = ()

    @property
    def same_images(self) -> bool:
        """Whether every run has exactly the common images."""
        return not any(self.left_out)


def measured_of(run: Evaluated, ids: Sequence[str], pixels: PixelRecord) -> Measured:
    """The run on the images ``ids``, thresholds as its results.json states them."""
    return Measured([run.rows[i] for i in ids], pixels, thresholds_of(run.results), run.results["fpr_limit"])


def compare(runs: Sequence[Evaluated], *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare every run with the first; see `Comparison`.

    Refused are runs without a common image, of other summary settings, or whose common images differ in label,
    category, size or mask: they are not images of one set.
    """
    common = sorted(set.intersection(*(set(run.rows) for run in runs)))
    left_out = tuple(len(run.rows) - len(common) for run in runs)
    refused = _other_settings(runs) or ("they have no image in common" if not common else None)
    if refused is not None:
        return Comparison(refused, len(common), left_out)
    pixels = [PixelRecord.load(run.folder) for run in runs]
    refused = next((r for k in range(1, len(runs)) if (r := _other_images(runs, pixels, k, common))), None)
    if refused is not None:
        return Comparison(refused, len(common), left_out)
    measured = [measured_of(run, common, record) for run, record in zip(runs, pixels, strict=True)]
    once, strata = np.ones((1, len(common))), measured[0].strata()
    values, differences = [], []
    for k, run in enumerate(measured):
        values.append({})
        differences.append({})
        for variant in VARIANTS:
            zeroed = variant == "zeroed"
            figures, first = run.figures(zeroed=zeroed), measured[0].figures(zeroed=zeroed)
            values[k][variant] = _nested_values(figures(once))
            if k:
                found = intervals(difference(figures, first), strata, resamples=resamples, seed=seed)
                differences[k][variant] = nested(found)
    return Comparison(None, len(common), left_out, tuple(values), tuple(differences))


def _other_settings(runs: Sequence[Evaluated]) -> str | None:
    for name in SAME:
        values = [run.results[name] for run in runs]
        if any(value != values[0] for value in values):
            shown = ", ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
            return f"they differ in {name} ({shown}); evaluate them with the same"
    return None


def _other_images(
    runs: Sequence[Evaluated], pixels: Sequence[PixelRecord], k: int, common: Sequence[str]
) -> str | None:
    """Why run ``k`` holds other images than the first under the same ids, or None."""
    for i in common:
        a, b = runs[0].rows[i], runs[k].rows[i]
        for name in ("gt_label", "category", "image_size"):
            if a.get(name) != b.get(name):
                return f"{i} has {name} {a.get(name)} in {runs[0].name} and {b.get(name)} in {runs[k].name}"
        sizes = [tuple(p.counts[i][:2].sum(1)) if i in p.counts else None for p in (pixels[0], pixels[k])]
        if sizes[0] != sizes[1]:
            shown = [
                "no mask" if size is None else f"a mask of {size[1]:.0f} in {sum(size):.0f} pixels" for size in sizes
            ]
            return f"{i} has {shown[0]} in {runs[0].name} and {shown[1]} in {runs[k].name}"
    return None


def _nested_values(found: Mapping[Any, np.ndarray]) -> dict[str, dict[str, float | None]]:
    table: dict[str, dict[str, float | None]] = {}
    for (part, name), values in found.items():
        table.setdefault(part, {})[name] = float(values[0]) if np.isfinite(values[0]) else None
    return table
