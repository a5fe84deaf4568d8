"""Tables of the page: which figures, how they are written, and how a second run differs from the first."""

from collections.abc import Sequence
from typing import Any

from realad_verl.report.load import Run

# (group, key, label, explanation, unit): "%" is written x 100, "+" means that higher is better, "-" lower, "" neither.
HEADLINE = (
    ("image", "image_auroc", "Image AUROC", "ranking of pred_score", "+"),
    ("image", "image_acc", "Image ACC", "the model's own answers", "+"),
    ("image", "image_f1_max", "Image F1-max", "oracle threshold", "+"),
    ("image", "image_ap", "Image AP", "average precision", "+"),
    ("pixel", "pixel_auroc", "Pixel AUROC", "all pixels", "+"),
    ("pixel", "pixel_aupr", "Pixel AUPR", "average precision", "+"),
    ("pixel", "pixel_aupro", "AUPRO", "per-region overlap", "+"),
    ("pixel", "pixel_f1_max", "Pixel F1-max", "oracle threshold", "+"),
    ("pixel", "pixel_acc", "Pixel ACC", "at the stated threshold", "+"),
    ("answers", "well_formed", "Well-formed", "answers in the format", "+"),
    ("answers", "jaccard_anomalous", "J anomalous", "evidence regions, anomalous images", "+"),
    ("answers", "jaccard_normal", "J normal", "evidence regions, normal images", "-"),
    ("answers", "contradictions", "Contradictions", "reasoning against answer", "-"),
    ("text", "rouge_l", "ROUGE-L", "against reference reasoning", "+"),
    ("text", "sbert", "SBERT", "against reference reasoning", "+"),
)
CATEGORY = (
    *(("image", "image_auroc", "AUROC"), ("image", "image_ap", "AP"), ("image", "image_f1_max", "F1-max")),
    *(("image", "image_acc", "ACC"), ("pixel", "pixel_auroc", "AUROC"), ("pixel", "pixel_aupr", "AUPR")),
    *(("pixel", "pixel_aupro", "AUPRO"), ("pixel", "pixel_f1_max", "F1-max"), ("pixel", "pixel_acc", "ACC")),
    *(("answers", "well_formed", "Form"), ("answers", "contradictions", "Contra.")),
)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; an en dash where it does not exist."""
    return "–" if value is None else f"{100 * value:.1f}"


def headline(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry a figure: its label, and by run the macro mean, the pooled value and the change from the first."""
    evaluated = [run for run in runs if run.results]
    entries = []
    for group, key, label, note, better in HEADLINE:
        values = [_get(run, "macro_mean", group, key) for run in evaluated]
        if all(v is None for v in values) and group == "text":
            continue
        entry = {"group": group, "label": label, "note": note, "cells": []}
        present = [v for v in values if v is not None]
        best = (max(present) if better == "+" else min(present)) if len(present) > 1 and len(set(present)) > 1 else None
        for run, value in zip(evaluated, values, strict=True):
            delta = None if value is None or values[0] is None or run is evaluated[0] else value - values[0]
            good = None if not delta else (delta > 0) == (better == "+")
            text = "" if delta is None or abs(delta) < 0.0005 else f"{100 * delta:+.1f}".replace("-", "−")
            pooled = percent(_get(run, "pooled", group, key))
            cell = {"value": percent(value), "pooled": pooled, "delta": text, "good": good}
            entry["cells"].append(cell | {"best": best is not None and value == best})
        entries.append(entry)
    return entries


def category_rows(run: Run, variant: str) -> list[dict[str, Any]]:
    """Rows of the per-category table; ``variant`` is "kept" or "zeroed" (the maps of predicted-normal images)."""
    results = run.results or {}
    named = [(name, figures, "") for name, figures in results["categories"].items()]
    named += [("macro mean", results["macro_mean"], "total"), ("pooled", results["pooled"], "total")]
    rows = []
    for name, figures, kind in named:
        cells = []
        for group, key, _ in CATEGORY:
            value = figures.get(f"pixel_{variant}" if group == "pixel" else group, {}).get(key)
            cells.append({"text": percent(value), "share": value if key != "contradictions" else None})
        image = figures.get("image", {})
        rows.append({"name": name, "kind": kind, "cells": cells, "images": image.get("n_images")})
        rows[-1]["anomalous"] = image.get("n_anomalous_images")
    return rows


def comparison_rows(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Category x run for the three figures that matter most; None for fewer than two evaluations."""
    evaluated = [run for run in runs if run.results]
    if len(evaluated) < 2:
        return None
    figures = (("image", "image_auroc", "Image AUROC"), ("pixel", "pixel_auroc", "Pixel AUROC"))
    figures += (("pixel", "pixel_aupro", "AUPRO"),)
    names = sorted({name for run in evaluated for name in (run.results or {})["categories"]})
    rows = []
    for name in [*names, "macro mean"]:
        cells = []
        for group, key, _ in figures:
            where = [_category(run, name).get(group, {}).get(key) for run in evaluated]
            top = max((v for v in where if v is not None), default=None)
            cells += [{"text": percent(v), "best": v is not None and v == top} for v in where]
        rows.append({"name": name, "kind": "total" if name == "macro mean" else "", "cells": cells})
    return {"runs": [run.name for run in evaluated], "figures": [f[2] for f in figures], "rows": rows}


def notes(run: Run) -> list[str]:
    """What a reader must know to read the figures of an evaluation right, and what could not be counted."""
    results = run.results or {}
    pooled, sizes = results["pooled"], results["pixel_size"]
    sizes = f"map and mask resized to {sizes} x {sizes}" if isinstance(sizes, int) else sizes
    lines = [
        "Large figures are the macro mean over categories, small ones pool all images. All are percentages.",
        f"Thresholds: {results['threshold_source']}. Image ACC needs none: it is the model's own answers.",
        f"Pixel figures: {sizes}; AUPRO up to a false positive rate of {results['fpr_limit']:g}; the map of an image "
        f"that the model calls normal is {'kept' if results['predicted_normal'] == 'keep' else 'zeroed'}.",
    ]
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


def _get(run: Run, part: str, group: str, key: str) -> float | None:
    return (run.results or {}).get(part, {}).get(group, {}).get(key)


def _category(run: Run, name: str) -> dict[str, Any]:
    results = run.results or {}
    return results["macro_mean"] if name == "macro mean" else results["categories"].get(name, {})
