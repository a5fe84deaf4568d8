"""From rows, maps and masks to results.json: figures by category, their macro mean, and all images pooled.

Every figure says how it came about: thresholds name their source, predicted-normal images are counted with their map
kept and with it zeroed, and what could not be used is listed, never left out in silence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from realad_verl.data.parallel import ordered_map
from realad_verl.errors import UserError, bad_value
from realad_verl.evaluate.counts import Measured, PixelRecord, interval_table, thresholds_of
from realad_verl.evaluate.metrics import CHANCE, answer_summary, chance_levels, image_curves, image_summary, mean
from realad_verl.evaluate.pixel_metrics import FPR_LIMIT, PixelHistogram, pixel_summary, start_bits
from realad_verl.evaluate.records import load_map
from realad_verl.evaluate.store import read_json
from realad_verl.evaluate.text_metrics import text_summary
from realad_verl.method.anomaly_map import resize_map

FORMAT = "realad-results/2"  # of results.json; a change of its keys raises the number
IN_FLIGHT, BYTES_A_PIXEL = 4 << 30, 48  # what counting an image takes at its peak: map, keys, their sorted copies
ORACLE = "oracle: F1-max on this very set"
FIGURES = {  # group -> the figures of it that are averaged over categories
    "image": ("image_auroc", "image_ap", "image_f1_max", "image_acc", "image_acc_at_threshold"),
    "pixel": ("pixel_auroc", "pixel_aupr", "pixel_aupro", "pixel_f1_max", "pixel_acc"),
    "answers": ("well_formed", "fallback", "jaccard_normal", "jaccard_anomalous", "contradictions", "sampled_acc"),
    "text": ("rouge_l", "sbert"),
    "chance": CHANCE,
}


@dataclass(frozen=True)
class SummaryConfig:
    """How figures are taken; all of it ours, none changes a row.

    pixel_size: None resizes each map (bilinear) to its mask's own size; N resizes map (bilinear) and mask (nearest
        pixel) to N x N, where a thin defect may vanish.
    predicted_normal: "keep" or "zero" the map of an image that the model calls normal in the ``pixel`` figures; both
        variants are always there as ``pixel_kept`` and ``pixel_zeroed``.
    fpr_limit: AUPRO's integration limit.
    threshold_from: folder of a finished run on validation data whose F1-max thresholds are used; None: oracle.
    """

    pixel_size: int | None = None
    predicted_normal: Literal["keep", "zero"] = "keep"
    fpr_limit: float = FPR_LIMIT
    threshold_from: Path | None = None

    def __post_init__(self) -> None:
        if self.pixel_size is not None and self.pixel_size < 1:
            raise bad_value("pixel_size", self.pixel_size, "a size >= 1 in pixels, or 'mask'")
        if self.predicted_normal not in ("keep", "zero"):
            raise bad_value("predicted_normal", self.predicted_normal, "keep, zero")
        if not 0 < self.fpr_limit <= 1:
            raise bad_value("fpr_limit", self.fpr_limit, "0 < fpr_limit <= 1")


@dataclass
class Pixels:
    """Histograms of one set of images: those the model calls anomalous, and the others (normal, or no answer)."""

    shown: PixelHistogram = field(default_factory=PixelHistogram)
    hidden: PixelHistogram = field(default_factory=PixelHistogram)

    def merge(self, other: "Pixels") -> None:
        """Add the images of ``other``."""
        self.shown.merge(other.shown)
        self.hidden.merge(other.hidden)

    def variant(self, zeroed: bool) -> PixelHistogram:
        """All images, the maps of the hidden ones kept or zeroed."""
        total = PixelHistogram()
        total.merge(self.shown)
        total.merge(self.hidden.zeroed() if zeroed else self.hidden)
        return total


def summarise(
    rows: Sequence[dict[str, Any]],
    folder: Path,
    mask_of: Callable[[dict[str, Any]], np.ndarray | None],
    config: SummaryConfig,
    *,
    references: dict[str, str] | None = None,
    on_image: Callable[[], None] = lambda: None,
    workers: int = 1,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The content of results.json, and of images.json: every image of the figures by id, and of an anomalous one with a
    mask the mask's outline and the image's own pixel AUROC.

    ``mask_of(row)`` gives the bool [H, W] mask, None where an anomalous image has none. Anomalous images without a mask
    or with an all-zero one are kept out of the pixel figures, since every pixel would count as normal, and are listed.
    Maps are counted on ``workers`` threads, as many of them as ``IN_FLIGHT`` bytes of the largest image allow.
    """
    limits = _validation_thresholds(config.threshold_from)
    good = [row for row in rows if not row.get("error")]
    counted = _Counted(folder, mask_of, config, on_image, workers=workers)
    categories: dict[str, Any] = {}
    for category in sorted({row["category"] for row in rows}):
        chosen = [row for row in good if row["category"] == category]
        pixels = counted.add(chosen)
        categories[category] = _figures(chosen, pixels, config, _limits_of(limits, category), references)
    results = {
        "format": FORMAT,
        "categories": categories,
        "macro_mean": macro_mean(categories),
        "pooled": _figures(good, counted.pooled, config, _limits_of(limits, None), references),
        "threshold_source": ORACLE if limits is None else f"validation run {config.threshold_from}",
        "predicted_normal": config.predicted_normal,
        "pixel_size": config.pixel_size or "map resized to mask size",
        "fpr_limit": config.fpr_limit,
        "bad_images": [{"id": row["id"], "error": row["error"]} for row in rows if row.get("error")],
        "anomalous_without_mask": counted.unmasked,
    }
    counted.record.save(folder)
    measured = Measured(good, counted.record, thresholds_of(results), config.fpr_limit)
    results["intervals"] = interval_table(measured) if good else None
    return results, counted.images


@dataclass
class _Counted:
    """Pixels of images as they are counted, a category at a time."""

    folder: Path
    mask_of: Callable[[dict[str, Any]], np.ndarray | None]
    config: SummaryConfig
    on_image: Callable[[], None]
    pooled: Pixels = field(default_factory=Pixels)
    record: PixelRecord = field(default_factory=PixelRecord)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    unmasked: list[str] = field(default_factory=list)
    workers: int = 1

    def add(self, rows: Sequence[dict[str, Any]]) -> Pixels:
        """The pixels of ``rows``, added to those of all; what is known by image goes to ``images`` and ``record``."""
        pixels = Pixels()
        largest = max((math.prod(row.get("image_size") or [1]) for row in rows), default=1)
        workers = max(1, min(self.workers, IN_FLIGHT // (largest * BYTES_A_PIXEL)))
        for row, counted in zip(rows, ordered_map(self._count, rows, workers), strict=True):
            self.on_image()
            self.images[row["id"]] = {}
            if counted is None:
                self.unmasked.append(row["id"])
                continue
            histogram, known = counted
            (pixels.shown if row["pred_label"] == 1 else pixels.hidden).merge(histogram)
            self.record.add(row["id"], histogram)
            self.images[row["id"]] |= known
        self.pooled.merge(pixels)
        return pixels

    def _count(self, row: dict[str, Any]) -> tuple[PixelHistogram, dict[str, Any]] | None:
        """One image's own histogram, and what images.json holds of it; None for an anomalous one without a mask."""
        mask = self.mask_of(row)
        if row["gt_label"] and (mask is None or not mask.any()):
            return None
        if mask is None:
            raise ValueError(f"no mask for the normal image {row['id']}")
        histogram, auroc = _count(row, mask, self.folder, self.config)
        return histogram, {"outline": outline(mask), "pixel_auroc": auroc} if row["gt_label"] else {}


def read_results(run: Path) -> dict[str, Any]:
    """results.json of the folder ``run``. UserError where it is missing, broken or of another version."""
    results = read_json(run / "results.json")
    if results.get("format") != FORMAT:
        raise UserError(
            f"{run / 'results.json'} has format {results.get('format')!r}, this version reads {FORMAT!r}. Run the same "
            "`realad evaluate` command again: it writes results.json anew from the rows that are there."
        )
    return results


def macro_mean(categories: dict[str, Any]) -> dict[str, Any]:
    """Mean of each figure over the categories in which it exists; ``n_categories`` says over how many."""
    groups = {"pixel_kept": FIGURES["pixel"], "pixel_zeroed": FIGURES["pixel"]} | FIGURES
    result: dict[str, Any] = {}
    for group, names in groups.items():
        present = [c[group] for c in categories.values() if group in c]
        if not present:
            continue
        values = {name: [p[name] for p in present if p[name] is not None] for name in names}
        result[group] = {name: mean(v) for name, v in values.items()}
        result[group]["n_categories"] = {name: len(v) for name, v in values.items()}
    return result


def outline(gt_mask: np.ndarray) -> list[list[float]]:
    """Outlines of the mask's regions: flat lists x0, y0, x1, y1 ... in shares of width and height, to 3 decimals."""
    height, width = gt_mask.shape
    contours, _ = cv2.findContours(gt_mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    shapes = []
    for contour in contours:
        contour = cv2.approxPolyDP(contour, 0.002 * max(height, width), closed=True)[:, 0, :]
        if len(contour) < 3:  # a line or a dot: its bounding box, so that it can be seen
            (x0, y0), (x1, y1) = contour.min(0), contour.max(0)
            contour = np.array([[x0, y0], [x1 + 1, y0], [x1 + 1, y1 + 1], [x0, y1 + 1]])
        shapes.append(np.round(contour / [width, height], 3).ravel().tolist())
    return shapes


def _count(
    row: dict[str, Any], mask: np.ndarray, folder: Path, config: SummaryConfig
) -> tuple[PixelHistogram, float | None]:
    """The pixels of one image, and its own pixel AUROC."""
    if config.pixel_size is not None:
        size = (config.pixel_size, config.pixel_size)
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    if row["map"] is None:  # no evidence: the model points nowhere
        anomaly_map = np.zeros(mask.shape, np.float32)
    else:
        grid_map = load_map(folder / row["map"], row["map_scale"])
        grid = (grid_map.shape[0], grid_map.shape[1])
        anomaly_map = resize_map(torch.from_numpy(grid_map).ravel(), grid, (mask.shape[0], mask.shape[1])).numpy()
    one = PixelHistogram(dropped=start_bits(mask.size))
    return one, one.add(anomaly_map, mask)


def _figures(
    rows: Sequence[dict[str, Any]],
    pixels: Pixels,
    config: SummaryConfig,
    limits: dict[str, float | None],
    references: dict[str, str] | None,
) -> dict[str, Any]:
    labels, scores = [r["gt_label"] for r in rows], [r["pred_score"] for r in rows]
    figures: dict[str, Any] = {
        "image": image_summary(labels, scores, [r["pred_label"] for r in rows], threshold=limits["image"])
    }
    curves: dict[str, Any] = {"image": image_curves(labels, scores)}
    for name, zeroed in (("pixel_kept", False), ("pixel_zeroed", True)):
        histogram = pixels.variant(zeroed)
        figures[name] = pixel_summary(histogram, threshold=limits[name], fpr_limit=config.fpr_limit)
        curve = histogram.curve()
        curves[name] = curve.points(config.fpr_limit) if curve.defined else {}
    figures["chance"] = chance_levels(figures["image"], figures["pixel_kept"], config.fpr_limit)
    chosen = "pixel_kept" if config.predicted_normal == "keep" else "pixel_zeroed"
    figures |= {"pixel": figures[chosen], "answers": answer_summary(rows)}
    if references is not None:
        figures["text"] = text_summary(rows, references)
    return figures | {"curves": curves}


def _validation_thresholds(run: Path | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return read_results(run)


def _limits_of(results: dict[str, Any] | None, category: str | None) -> dict[str, float | None]:
    """Thresholds for ``category``: its own on the validation data where it has one, else the pooled ones."""
    keys = {"image": "image_f1_max_threshold", "pixel_kept": "pixel_f1_max_threshold"}
    keys["pixel_zeroed"] = "pixel_f1_max_threshold"
    if results is None:
        return dict.fromkeys(keys)
    own = results["categories"].get(category, {}) if category else {}
    limits = {group: own.get(group, {}).get(key) for group, key in keys.items()}
    limits = {g: results["pooled"][g][k] if limits[g] is None else limits[g] for g, k in keys.items()}
    missing = [group for group, value in limits.items() if value is None]
    if missing:
        raise UserError(
            f"threshold_from: that run has no F1-max threshold for {', '.join(missing)} (it needs normal and "
            "anomalous images, with masks for the pixel figures). Give a run on validation data that has both."
        )
    return limits
