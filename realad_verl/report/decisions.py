"""What the page needs of every image, shown or not: for the threshold slider and for the downloads."""

from collections.abc import Sequence
from typing import Any

from realad_verl.report.load import Run

COLUMNS = ("answer", "pred_label", "pred_score", "jaccard", "well_formed", "problem")


def decisions(run: Run) -> dict[str, Any]:
    """Labels and scores of a run, the thresholds of its accuracies, and where these come from."""
    results = run.results or {}
    rows = [row for view in run.views for row in view.rows.values() if row["pred_score"] is not None]
    oracle = results["threshold_source"].startswith("oracle")
    pooled = results["pooled"]
    return {
        "name": run.name,
        "gt": [row["gt_label"] for row in rows],
        "score": [round(row["pred_score"], 4) for row in rows],
        "image": pooled["image"]["image_acc_threshold"],
        "map": {variant: pooled[f"pixel_{variant}"]["pixel_acc_threshold"] for variant in ("kept", "zeroed")},
        "source": "best on this very set" if oracle else "chosen on validation",
    }


def image_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Every image as a row of plain values, for the downloads: ``columns`` and ``rows``, a block of columns a run."""
    ids = sorted({i for run in runs for view in run.views for i in view.rows})
    names = [*COLUMNS, "pixel_auroc"]
    columns = ["id", "category", "defect_type", "gt_label"]
    columns += names if len(runs) == 1 else [f"{run.name}: {name}" for run in runs for name in names]
    rows = []
    for image_id in ids:
        cells = [_of(run, image_id) for run in runs]
        first = next(row for row in cells if row)
        rows.append([image_id, first.get("category"), first.get("defect_type"), first["gt_label"]])
        rows[-1] += [row.get(name) for row in cells for name in names]
    return {"columns": columns, "rows": rows}


def _of(run: Run, image_id: str) -> dict[str, Any]:
    for view in run.views:
        if image_id in view.rows:
            return view.rows[image_id] | {"pixel_auroc": view.images.get(image_id, {}).get("pixel_auroc")}
    return {}
