"""The files that ``realad localize`` writes for one image."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from realad_verl.data.files import written
from realad_verl.localize import Localization

OVERLAY_SIDE = 1200  # pixels; a larger image is shown smaller
COLOURS = "inferno"  # perceptually uniform


def write_outputs(out: Path, name: str, path: Path, image: Image.Image, result: Localization) -> dict[str, Any]:
    """Writes the files of one image; returns the content of its JSON.

    NAME.json and NAME.overlay.png always, and where there is a map: NAME.map.npy, the anomaly map [H, W], float32, as
    it is, and NAME.map.png, 16 bits, stretched from ``map_min``..``map_max`` (in the JSON) to 0..65535 (constant: 0).
    """
    record = summary(path, result)
    files = {"overlay": f"{name}.overlay.png"}
    if result.anomaly_map is not None:
        files |= {"map": f"{name}.map.npy", "map_png": f"{name}.map.png"}
        np.save(out / files["map"], result.anomaly_map)
        grey = np.round(_stretched(result.anomaly_map) * 65535).astype(np.uint16)
        # imencode and a plain write, since imwrite reports failure (a full disk) by its return value alone.
        (out / files["map_png"]).write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    draw_overlay(out / files["overlay"], image, result)
    record["files"] = {kind: written(file) for kind, file in files.items()}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (out / f"{name}.json").write_text(text, encoding="utf-8")
    return record


def summary(path: Path, result: Localization) -> dict[str, Any]:
    """A result as plain JSON values: all but the map at image size, of which the extremes."""
    skip = {"anomaly_map", "grid_map", "tokens"}
    record: dict[str, Any] = {"image": written(path)}
    record |= {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in skip}
    record["tokens"] = [dataclasses.asdict(token) for token in result.tokens]
    record["grid_map"] = None if result.grid_map is None else result.grid_map.tolist()
    low_high = (None, None) if result.anomaly_map is None else (result.anomaly_map.min(), result.anomaly_map.max())
    record["map_min"], record["map_max"] = (None if value is None else float(value) for value in low_high)
    return record


def draw_overlay(file: Path, image: Image.Image, result: Localization) -> None:
    """The image beside the image under its anomaly map, with a colour bar; titled with answer and score."""
    from matplotlib.figure import Figure

    shown = image.copy()
    shown.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    shape = min(max(shown.height / shown.width, 0.25), 3.0)
    figure = Figure(figsize=(9.0, max(2.2, 3.9 * shape + 0.7)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title(result), fontsize=12)
    left.imshow(shown, aspect="auto" if min(shown.size) < 8 else "equal")
    right.imshow(shown.convert("L"), cmap="gray", vmin=0, vmax=255, aspect=left.get_aspect())
    if result.anomaly_map is not None:
        small = cv2.resize(result.anomaly_map, shown.size, interpolation=cv2.INTER_LINEAR)
        drawn = right.imshow(small, cmap=COLOURS, alpha=0.6, aspect=left.get_aspect())
        figure.colorbar(drawn, ax=right, label="weighted attention", fraction=0.05, format="%.2g")
    for axes, text in ((left, "image"), (right, "anomaly map" if result.anomaly_map is not None else "no anomaly map")):
        axes.set_title(text, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(file)


def title(result: Localization) -> str:
    """Answer, score, and what is missing."""
    score = "no score" if result.pred_score is None else f"score {result.pred_score:.3f}"
    problems = [problem for problem in (result.format_problem, result.problem) if problem]
    return f"answer: {result.answer or 'none'}   {score}" + (f"   ({', '.join(problems)})" if problems else "")


def _stretched(values: np.ndarray) -> np.ndarray:
    """To [0, 1] by its own range; zeros where it is constant."""
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
