"""The images of the page: thumbnails, small maps, outlines, answers and shaded reasoning, as plain data."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realad_verl.data.files import unwritten
from realad_verl.data.images import load_image
from realad_verl.errors import UserError
from realad_verl.evaluate.metrics import UNDECIDED
from realad_verl.evaluate.records import THUMBNAIL, load_map
from realad_verl.evaluate.store import stays_below
from realad_verl.evaluate.text_metrics import contradicts
from realad_verl.report.load import Run, View
from realad_verl.report.overlay import levels


def gallery(runs: Sequence[Run], max_images: int) -> dict[str, Any]:
    """``items`` (worst case first), their ``thumbs`` (base64 WebP, same order) and the names of the ``views``.

    Of more than ``max_images`` images the worst half of that number is shown and an even choice of the others.
    """
    pairs = [(run, view) for run in runs for view in run.views]
    ids = sorted({i for _, view in pairs for i in view.rows})
    ids.sort(key=lambda i: -max(badness(view.rows[i]) for _, view in pairs if i in view.rows))
    total = len(ids)
    if total > max_images:
        worst = max_images // 2
        rest = np.linspace(worst, total - 1, max_images - worst).round().astype(int)
        ids = ids[:worst] + [ids[k] for k in rest]
    items, thumbs, missing = [], [], 0
    for sample_id in ids:
        run, first = next((run, view) for run, view in pairs if sample_id in view.rows)
        thumb = thumbnail(first.rows[sample_id], first.folder, run.settings.get("root"))
        missing += thumb is None
        thumbs.append(thumb)
        items.append(_item(sample_id, [view for _, view in pairs]))
    views = [view.name for _, view in pairs]
    return {"views": views, "items": items, "thumbs": thumbs, "total": total, "missing": missing}


def badness(row: dict[str, Any]) -> float:
    """How wrong an answer is, 0 .. 2: distance of the score from the label, plus 1 for a wrong or missing answer."""
    score = row.get("pred_score")
    if score is None:
        score = UNDECIDED if row.get("pred_label") is None else row["pred_label"]
    return abs(row["gt_label"] - score) + (row.get("pred_label") != row["gt_label"])


def thumbnail(row: dict[str, Any], folder: Path, root: str | None) -> str | None:
    """Base64 WebP of the row's image, from the run folder where it is there, else from the data set; None if gone."""
    stored = row.get("thumb")
    if stored and (folder / stored).is_file():
        return base64.b64encode((folder / stored).read_bytes()).decode()
    for base in (folder, Path(unwritten(root)) if root else None):
        path = base / unwritten(row["image"]) if base and row.get("image") and stays_below(row["image"]) else None
        if path and path.is_file():
            try:
                small = load_image(path)
            except UserError:
                continue
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=72)
            return base64.b64encode(buffer.getvalue()).decode()
    return None


def _item(sample_id: str, views: Sequence[View]) -> dict[str, Any]:
    first = next(view.rows[sample_id] for view in views if sample_id in view.rows)
    outlines = [view.images[sample_id]["outline"] for view in views if view.images.get(sample_id)]
    return {
        "id": sample_id,
        "category": first.get("category") or "",
        "defect": first.get("defect_type") or "",
        "gt": first["gt_label"],
        "size": first.get("image_size"),
        "outline": outlines[0] if outlines else [],
        "cells": [_cell(view, sample_id) if sample_id in view.rows else None for view in views],
    }


def _cell(view: View, sample_id: str) -> dict[str, Any]:
    row = view.rows[sample_id]
    cell = {
        k: row.get(k) for k in ("answer", "pred_label", "pred_score", "well_formed", "problem", "jaccard", "n_kept")
    }
    cell |= {"fallback": bool(row.get("fallback")), "response": row["response"], "tokens": row.get("tokens") or []}
    cell["bad"] = round(badness(row), 4)
    cell["contradiction"] = contradicts(row.get("reasoning"), row.get("answer")) is True
    cell["pixel_auroc"] = view.images.get(sample_id, {}).get("pixel_auroc")
    cell["map"] = None
    if row.get("grid_map") is not None:  # a training sample holds its map itself
        cell["map"] = small_map(np.asarray(row["grid_map"], np.float32))
    elif row.get("map"):
        if "map_scale" not in row:
            raise UserError(f"{view.folder}: the row of {sample_id} has a map but no map_scale.")
        anomaly_map = load_map(view.folder / row["map"], row["map_scale"])
        cell["map"] = small_map(anomaly_map)
    return cell


def small_map(anomaly_map: np.ndarray) -> dict[str, Any]:
    """``data``: base64 of 8-bit levels row by row, 0 = ``low`` and 255 = ``high`` of this map; for display only."""
    if max(anomaly_map.shape) > 96:
        anomaly_map = np.asarray(Image.fromarray(anomaly_map).resize((64, 64), Image.Resampling.BOX))
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    data = base64.b64encode(levels(anomaly_map).tobytes()).decode()
    rows, cols = anomaly_map.shape
    return {"rows": rows, "cols": cols, "low": low, "high": high, "data": data}
