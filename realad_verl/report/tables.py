"""Tables of the page: which figures, how they are written, how sure they are, and how runs differ from the first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from realad_verl.evaluate.compare import Comparison
from realad_verl.evaluate.intervals import MACRO
from realad_verl.evaluate.metrics import mean
from realad_verl.report.load import Run


class Figure(NamedTuple):
    """A figure of the page: where it stands in results.json, and what it means. ``better``: "+" higher, "-" lower."""

    group: str
    key: str
    label: str
    meaning: str
    better: str


HEADLINE = (
    Figure("image", "image_auroc", "Image AUROC", "how well pred_score ranks anomalous images above normal ones", "+"),
    Figure("image", "image_acc", "Image ACC", "share of right answers; no answer counts as wrong", "+"),
    Figure("answers", "sampled_acc", "Sampled ACC", "share of right answers among those sampled at temperature 1", "+"),
    Figure("image", "image_f1_max", "Image F1-max", "F1 of pred_score at its best threshold on this very set", "+"),
    Figure("image", "image_ap", "Image AP", "average precision of pred_score", "+"),
    Figure("pixel", "pixel_auroc", "Pixel AUROC", "how well the map ranks pixels, all images' pixels in one pot", "+"),
    Figure("pixel", "pixel_aupr", "Pixel AP", "average precision of the map over all pixels (AUPR)", "+"),
    Figure("pixel", "pixel_aupro", "AUPRO", "share of each defect region found, up to the stated false alarms", "+"),
    Figure("pixel", "pixel_f1_max", "Pixel F1-max", "F1 of the map at its best threshold on this very set", "+"),
    Figure("pixel", "pixel_acc", "Pixel ACC", "share of pixels decided rightly at the stated threshold", "+"),
    Figure("answers", "well_formed", "Well-formed", "share of answers in the asked format", "+"),
    Figure(
        "answers", "jaccard_anomalous", "J, anomalous", "Jaccard index of the evidence regions, anomalous images", "+"
    ),
    Figure("answers", "jaccard_normal", "J, normal", "Jaccard index of the evidence regions, normal images", "-"),
    Figure("answers", "contradictions", "Contradictions", "share of answers that disagree with their reasoning", "-"),
    Figure("text", "rouge_l", "ROUGE-L", "overlap with the reference reasoning", "+"),
    Figure("text", "sbert", "SBERT", "likeness to the reference reasoning", "+"),
)
ON_REQUEST = ("rouge_l", "sbert", "sampled_acc")  # `--references`, `--samples`
_CATEGORY = ("image_auroc", "image_ap", "image_f1_max", "image_acc", "pixel_auroc", "pixel_aupr", "pixel_aupro")
_CATEGORY += ("pixel_f1_max", "pixel_acc", "well_formed", "contradictions")
CATEGORY = tuple(figure for key in _CATEGORY for figure in HEADLINE if figure.key == key)
COMPARED = tuple(figure for figure in HEADLINE if figure.key in ("image_auroc", "pixel_auroc", "pixel_aupro"))


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; an en dash where it does not exist."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval_text(interval: Sequence[float] | None, sign: bool = False) -> str:
    """``[61.2, 74.9]``, with signs ``[+1.2, +7.0]``; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (f"{100 * end:{'+' if sign else ''}.1f}".replace("-", "−") for end in interval)
    return f"[{low}, {high}]"


def headline(run: Run, variant: str) -> list[dict[str, Any]]:
    """One entry a figure of a single run: macro mean with its interval, the pooled value, and what chance gives."""
    results = run.results or {}
    intervals = results.get("intervals", {}).get(variant, {}).get(MACRO, {})
    chance = results["macro_mean"].get("chance", {})
    entries = []
    for figure in HEADLINE:
        value = _value(results["macro_mean"], figure, variant)
        if value is None and figure.key in ON_REQUEST:
            continue
        pooled = _value(results["pooled"], figure, variant)
        entry = figure._asdict() | {"value": percent(value), "pooled": percent(pooled)}
        entry["interval"] = interval_text(intervals.get(figure.key))
        entries.append(entry | {"chance": percent(chance[figure.key]) if chance.get(figure.key) is not None else ""})
    return entries


def comparison_headline(runs: Sequence[Run], compared: Comparison, variant: str) -> list[dict[str, Any]]:
    """One entry a figure, a cell a run on the common images: its value, the difference from the first run with its
    paired interval, and ``verdict``: "up" or "down" where that interval excludes 0, else "noise".

    Nothing is ``best`` but what is surely better than the first run, or a first run that is surely better than all.
    """
    entries = []
    for figure in HEADLINE:
        cells = [_cell(compared, k, MACRO, figure, variant) for k in range(len(runs))]
        if all(cell["value"] == "–" for cell in cells):
            continue
        _mark_best(cells)
        entries.append(figure._asdict() | {"cells": cells})
    return entries


def comparison_rows(runs: Sequence[Run], compared: Comparison, variant: str) -> dict[str, Any]:
    """Category x run for the three figures that matter most, by the same rules."""
    names = [name for name in sorted(compared.values[0][variant]) if name not in (MACRO, "pooled")]
    rows = []
    for name in [*names, MACRO]:
        groups = [[_cell(compared, k, name, figure, variant) for k in range(len(runs))] for figure in COMPARED]
        for cells in groups:
            _mark_best(cells)
        rows.append({"name": name, "kind": "total" if name == MACRO else "", "cells": [c for g in groups for c in g]})
    return {"runs": [run.name for run in runs], "figures": [figure.label for figure in COMPARED], "rows": rows}


def _cell(compared: Comparison, k: int, part: str, figure: Figure, variant: str) -> dict[str, Any]:
    value = compared.values[k][variant].get(part, {}).get(figure.key)
    cell: dict[str, Any] = {"value": percent(value), "delta": "", "interval": "", "verdict": "", "best": False}
    first = compared.values[0][variant].get(part, {}).get(figure.key)
    if k == 0 or value is None or first is None:
        return cell
    interval = compared.differences[k][variant].get(part, {}).get(figure.key)
    cell["delta"] = f"{100 * (value - first):+.1f}".replace("-", "−")
    cell["interval"] = interval_text(interval, sign=True)
    if interval is None or interval[0] <= 0 <= interval[1]:
        cell["verdict"] = "noise" if value != first else ""
    else:
        cell["verdict"] = "up" if (interval[0] > 0) == (figure.better == "+") else "down"
    return cell


def _mark_best(cells: Sequence[dict[str, Any]]) -> None:
    for cell in cells[1:]:
        cell["best"] = cell["verdict"] == "up"
    cells[0]["best"] = len(cells) > 1 and all(cell["verdict"] == "down" for cell in cells[1:])


def category_rows(run: Run, variant: str) -> list[dict[str, Any]]:
    """Rows of the per-category table; ``variant`` is "kept" or "zeroed" (the maps of predicted-normal images)."""
    results = run.results or {}
    intervals = results.get("intervals", {}).get(variant, {})
    named = [(name, figures, "") for name, figures in results["categories"].items()]
    named += [(MACRO, results["macro_mean"], "total"), ("pooled", results["pooled"], "total")]
    rows = []
    for name, figures, kind in named:
        cells = []
        for figure in CATEGORY:
            value = _value(figures, figure, variant)
            cell = {"text": percent(value), "sort": value, "share": value if figure.better == "+" else None}
            cells.append(cell | {"interval": interval_text(intervals.get(name, {}).get(figure.key))})
        image = figures.get("image", {})
        row = {"name": name, "kind": kind, "cells": cells, "images": image.get("n_images")}
        rows.append(row | {"anomalous": image.get("n_anomalous_images")})
    return rows


def defect_rows(run: Run) -> list[dict[str, Any]]:
    """A row a category and defect type: images, share called anomalous, mean score, J and pixel AUROC of an image."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    images = {key: value for view in run.views for key, value in view.images.items()}
    for row in (row for view in run.views for row in view.rows.values()):
        name = row.get("defect_type") or ("anomalous" if row["gt_label"] else "normal")
        groups.setdefault((row.get("category") or "", name, row["gt_label"]), []).append(row)
    rows = []
    for (category, name, label), members in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][2], item[0][1])
    ):
        aurocs = [images.get(r["id"], {}).get("pixel_auroc") for r in members]
        shares = (
            mean([r["pred_label"] == label for r in members]),
            mean([r["pred_score"] for r in members if r["pred_score"] is not None]),
            mean([r["jaccard"] for r in members if r.get("jaccard") is not None]),
            mean([a for a in aurocs if a is not None]),
        )
        cells = [{"text": percent(share), "sort": share} for share in shares]
        rows.append({"category": category, "name": name, "label": label, "images": len(members), "cells": cells})
    return rows


def notes(run: Run) -> list[str]:
    """What a reader must know to read the figures of an evaluation right, and what could not be counted."""
    results = run.results or {}
    pooled, sizes = results["pooled"], results["pixel_size"]
    sizes = f"map and mask resized to {sizes} x {sizes}" if isinstance(sizes, int) else sizes
    lines = [
        "Large figures are the macro mean over categories; pooled ones take all images as one category. All are "
        "percentages.",
        f"Thresholds: {results['threshold_source']}. Image ACC needs none: it is the model's own answers.",
        f"Pixel figures: {sizes}; AUPRO up to a false positive rate of {results['fpr_limit']:g}; the map of an image "
        f"that the model calls normal is "
        f"{'kept' if results['predicted_normal'] == 'keep' else 'zeroed'} unless switched.",
    ]
    intervals = results.get("intervals")
    if intervals:
        lines.insert(
            1,
            f"[low, high]: {100 * intervals['level']:g} % intervals, {intervals['method']}, {intervals['resamples']} "
            "resamples, weights and responses as they are: they do not cover another training run or another sampling.",
        )
    answers, image = pooled["answers"], pooled["image"]
    if answers["n_without_map"]:
        lines.append(f"Without a map, counted as zeros: {answers['n_without_map']} of {image['n_images']} images.")
    if image["n_without_answer"]:
        lines.append(f"Without an answer, wrong for ACC: {image['n_without_answer']} of {image['n_images']} images.")
    if image["n_without_score"]:
        lines.append(f"Without a score, 0.5 for AUROC: {image['n_without_score']} of {image['n_images']} images.")
    if results["anomalous_without_mask"]:
        lines.append(
            f"Anomalous without a mask, not in the pixel figures: {len(results['anomalous_without_mask'])} images."
        )
    if results["bad_images"]:
        shown = ", ".join(entry["id"] for entry in results["bad_images"][:5])
        lines.append(f"Not readable, in no figure: {len(results['bad_images'])} images ({shown}).")
    return lines


def comparison_note(runs: Sequence[Run], compared: Comparison) -> str:
    """On which images the runs are compared, or why they are not."""
    if compared.refused is not None:
        return f"These runs are not compared: {compared.refused}."
    text = f"Compared on the {compared.n_images} images that all runs have"
    if compared.same_images:
        return f"{text}, the same in each."
    left = ", ".join(f"{count} of {run.name}" for run, count in zip(runs, compared.left_out, strict=True) if count)
    return f"{text}; left out: {left}. Figures here are of the common images."


def _value(figures: Mapping[str, Any], figure: Figure, variant: str) -> float | None:
    group = f"pixel_{variant}" if figure.group == "pixel" else figure.group
    value = figures.get(group, {}).get(figure.key)
    return None if value is None or not np.isfinite(value) else float(value)
