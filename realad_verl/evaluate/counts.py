"""What each image of an evaluation adds to the figures, small enough to keep: ``counts.npz`` of a run folder.

Rows give the image figures; the pixel figures need, an image, how many normal and anomalous pixels fall into each score
bin. Bins are the float32 scores cut to 6 mantissa bits (1.6 % of the score at most), the same for every image and every
run, so two runs can be put side by side without reading a map again. Intervals come from these counts; the figures
themselves are taken from the exact histogram.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from realad_verl.errors import UserError
from realad_verl.evaluate.intervals import (
    LEVEL,
    POOLED,
    RESAMPLES,
    Figures,
    ImageCounts,
    Interval,
    PixelCounts,
    intervals,
    mean_of,
    on_images,
    over_categories,
    together,
)
from realad_verl.evaluate.metrics import UNDECIDED, sampled_accuracy
from realad_verl.evaluate.pixel_metrics import PixelHistogram, score_keys
from realad_verl.evaluate.text_metrics import contradicts

DROPPED = 17  # mantissa bits cut off the 23
FILE = "counts.npz"
METHOD = "bootstrap of images within category and class, BCa"


@dataclass
class PixelRecord:
    """The coarse histograms of images, by id, as they are counted."""

    keys: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)

    def add(self, image_id: str, histogram: PixelHistogram) -> None:
        """Keep the histogram of one image, coarsened."""
        coarse = PixelHistogram(dropped=DROPPED)
        coarse.merge(histogram)
        self.keys[image_id], self.counts[image_id] = coarse.keys, coarse.counts.astype(np.float32)
        self.regions[image_id] = coarse.n_regions

    def save(self, folder: Path) -> None:
        """Write ``counts.npz`` into the run folder."""
        ids = sorted(self.keys)
        lengths = np.array([len(self.keys[i]) for i in ids], np.int64)
        none = np.zeros((3, 0), np.float32)
        np.savez_compressed(
            folder / FILE,
            ids=np.array(ids, dtype=np.str_),
            lengths=lengths,
            keys=np.concatenate([self.keys[i] for i in ids] or [np.zeros(0, np.int32)]),
            counts=np.concatenate([self.counts[i] for i in ids] or [none], axis=1),
            regions=np.array([self.regions[i] for i in ids], np.int64),
        )

    @classmethod
    def load(cls, folder: Path) -> "PixelRecord":
        """Read ``counts.npz``. UserError where it is missing or broken."""
        try:
            with np.load(folder / FILE, allow_pickle=False) as file:
                ids, lengths = [str(i) for i in file["ids"]], file["lengths"]
                cuts = np.cumsum(lengths)[:-1]
                keys, counts = np.split(file["keys"], cuts), np.split(file["counts"], cuts, axis=1)
                regions = file["regions"].tolist()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"cannot read {folder / FILE}: {error}. Run the same `realad evaluate` command again: it writes it "
                "anew from the rows that are there."
            ) from error
        return cls(
            keys=dict(zip(ids, keys, strict=False)),  # of no image, numpy's split gives one empty part
            counts=dict(zip(ids, counts, strict=False)),
            regions=dict(zip(ids, regions, strict=True)),
        )


@dataclass(frozen=True)
class Measured:
    """A run as its images: rows of results.jsonl (without errors) and their pixel counts.

    ``limits``: the thresholds of ``image_acc_at_threshold`` and ``pixel_acc`` by category, and by ``image``,
    ``pixel_kept`` and ``pixel_zeroed`` in it; None where there is none.
    """

    rows: Sequence[Mapping[str, Any]]
    pixels: PixelRecord
    limits: Mapping[str, Mapping[str, float | None]]
    fpr_limit: float

    def strata(self) -> np.ndarray:
        """[n] category and class of each row: what a resample draws within."""
        names = [f"{r['category']}\t{r['gt_label']}" for r in self.rows]
        return np.unique(names, return_inverse=True)[1]

    def figures(self, *, zeroed: bool) -> Figures:
        """Every figure as ``(category, name)``, as ``(MACRO, name)`` their mean, as ``(POOLED, name)`` of all images.

        ``zeroed``: the map of an image that the model calls normal counts as zeros.
        """
        categories = np.array([r["category"] for r in self.rows])
        names = [str(name) for name in np.unique(categories)]
        parts = {name: self._of(np.flatnonzero(categories == name), name, zeroed) for name in names}
        if len(names) > 1:
            parts[POOLED] = self._of(np.arange(len(self.rows)), POOLED, zeroed)
        return over_categories(parts, names)

    def _of(self, places: np.ndarray, part: str, zeroed: bool) -> Figures:
        rows = [self.rows[i] for i in places]
        limits = self.limits.get(part, {})
        scores = [UNDECIDED if r["pred_score"] is None else r["pred_score"] for r in rows]
        answers = [-1 if r["pred_label"] is None else r["pred_label"] for r in rows]
        label = np.array([r["gt_label"] for r in rows])
        parts = [ImageCounts(label, np.array(scores, float), np.array(answers), limits.get("image")).figures()]
        parts += [mean_of(values, name) for name, values in _answers(rows).items()]
        counted = np.array([i for i, r in enumerate(rows) if r["id"] in self.pixels.keys], int)
        if len(counted):
            limit = limits.get("pixel_zeroed" if zeroed else "pixel_kept")
            pixels = self._pixels([rows[i] for i in counted], limit, zeroed)
            parts.append(on_images(counted, pixels.figures()))
        return on_images(places, together(parts))

    def _pixels(self, rows: Sequence[Mapping[str, Any]], limit: float | None, zeroed: bool) -> PixelCounts:
        flat = [zeroed and r["pred_label"] != 1 for r in rows]
        keys = [np.zeros(1, np.int32) if f else self.pixels.keys[r["id"]] for r, f in zip(rows, flat, strict=True)]
        bins = np.unique(np.concatenate(keys))[::-1]
        counts = np.zeros((3, len(rows), len(bins)), np.float32)
        for i, (row, own, is_flat) in enumerate(zip(rows, keys, flat, strict=True)):
            image = self.pixels.counts[row["id"]]
            counts[:, i, np.searchsorted(-bins, -own)] = image.sum(1, keepdims=True) if is_flat else image
        at = None if limit is None else int((bins >= score_keys(np.array([limit]), DROPPED)[0]).sum())
        regions = np.array([self.pixels.regions[r["id"]] for r in rows])
        return PixelCounts(counts, regions, at, self.fpr_limit)


def thresholds_of(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """``Measured.limits`` of a run: the thresholds at which its results.json takes accuracies."""
    return {
        part: {
            "image": figures["image"]["image_acc_threshold"],
            "pixel_kept": figures["pixel_kept"]["pixel_acc_threshold"],
            "pixel_zeroed": figures["pixel_zeroed"]["pixel_acc_threshold"],
        }
        for part, figures in (results["categories"] | {POOLED: results["pooled"]}).items()
    }


def _answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What ``metrics.answer_summary`` averages, an image each; NaN where an image has no part in it."""
    nan = float("nan")
    jaccard = [nan if r["jaccard"] is None else float(r["jaccard"]) for r in rows]
    verdicts = [contradicts(r["reasoning"], r["answer"]) for r in rows]
    return {
        "well_formed": np.array([float(bool(r["well_formed"])) for r in rows]),
        "fallback": np.array([float(bool(r["fallback"])) for r in rows]),
        "jaccard_normal": np.array([j if not r["gt_label"] else nan for j, r in zip(jaccard, rows, strict=True)]),
        "jaccard_anomalous": np.array([j if r["gt_label"] else nan for j, r in zip(jaccard, rows, strict=True)]),
        "contradictions": np.array([nan if v is None else float(v) for v in verdicts]),
        "sampled_acc": np.array([nan if r.get("sampled") is None else sampled_accuracy(r) for r in rows]),
    }


def interval_table(measured: Measured, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The ``intervals`` of results.json: ``kept`` and ``zeroed``, by category, macro mean and pooled, by figure."""
    table: dict[str, Any] = {"level": LEVEL, "resamples": resamples, "seed": seed, "method": METHOD}
    for variant in ("kept", "zeroed"):
        figures = measured.figures(zeroed=variant == "zeroed")
        table[variant] = nested(intervals(figures, measured.strata(), resamples=resamples, seed=seed))
    return table


def nested(found: Mapping[Any, Interval | None]) -> dict[str, dict[str, list[float] | None]]:
    """``{(part, name): interval}`` as ``{part: {name: [low, high]}}``, for JSON."""
    table: dict[str, dict[str, list[float] | None]] = {}
    for (part, name), interval in found.items():
        table.setdefault(part, {})[name] = None if interval is None else list(interval)
    return table
