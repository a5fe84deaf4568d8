"""What an evaluated image leaves on disk: one row of results.jsonl and one small map.

A row is a flat JSON object. ``image`` and ``mask`` are paths below ``settings.json``'s ``root`` (for a training sample:
beside the row); ``map`` is a 16-bit grey PNG beside the row, at the size of the image-token grid, whose value 65535
stands for ``map_scale``; ``thumb`` is a small WebP for the report; ``tokens`` lists the reasoning tokens as
[text, S_T, S_I, weight, kept].
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from realad_verl.data.files import written
from realad_verl.errors import UserError

PNG_MAX = 65535
THUMBNAIL = 384
FIELDS = (  # of a row without an ``error``
    *("id", "category", "defect_type", "split", "gt_label", "image", "mask", "image_size"),
    *("response", "reasoning", "answer", "pred_label", "pred_score", "well_formed", "problem"),
    *("jaccard", "n_kept", "fallback", "map", "map_scale", "tokens", "seconds"),
)


def sample_fields(sample: Any, root: Path) -> dict[str, Any]:
    """The fields of a row that the data set gives (``sample`` is a ``realad_verl.data.datasets.Sample``)."""
    return {
        "id": sample.id,
        "category": sample.category,
        "defect_type": sample.defect_type,
        "split": sample.split,
        "gt_label": int(sample.label),
        "image": _below(sample.path, root),
        "mask": None if sample.mask_path is None else _below(sample.mask_path, root),
    }


def localization_fields(localization: Any, folder: Path, sample_id: str) -> dict[str, Any]:
    """The fields of a row that the model gives; writes the map into ``folder``/maps."""
    name, scale = None, 0.0
    if localization.grid_map is not None:
        name = f"maps/{file_stem(sample_id)}.png"
        scale = save_map(folder / name, np.asarray(localization.grid_map, np.float32))
    return {
        "image_size": list(localization.image_size),
        "response": localization.response,
        "reasoning": localization.reasoning,
        "answer": localization.answer,
        "pred_label": localization.pred_label,
        "pred_score": localization.pred_score,
        "well_formed": localization.well_formed,
        "problem": localization.problem,
        "jaccard": localization.jaccard,
        "n_kept": localization.n_kept,
        "fallback": localization.fallback,
        "map": name,
        "map_scale": scale,
        "tokens": [[t.text, _short(t.s_t), _short(t.s_i), _short(t.weight), t.kept] for t in localization.tokens],
    }


def save_map(path: Path, anomaly_map: np.ndarray) -> float:
    """Write ``anomaly_map`` [h, w] (>= 0) as a 16-bit PNG; returns the value that 65535 stands for.

    A value is off by at most half a step, that is largest value / 131070.
    """
    if anomaly_map.min() < 0 or not np.isfinite(anomaly_map).all():
        raise ValueError("an anomaly map is finite and not negative")
    scale = float(anomaly_map.max())
    levels = np.round(anomaly_map.astype(np.float64) * (PNG_MAX / scale)) if scale > 0 else np.zeros_like(anomaly_map)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), levels.astype(np.uint16)):
        raise OSError(f"cannot write {path}")
    return scale


def save_thumbnail(path: Path, image: Image.Image, longest: int = THUMBNAIL) -> None:
    """Write ``image`` as a WebP of at most ``longest`` pixels a side, for the report."""
    small = image.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    small.save(path, "WEBP", quality=72, method=4)


def load_map(path: Path, scale: float) -> np.ndarray:
    """The map [h, w] float32 that ``save_map`` wrote. UserError where the file is missing or another kind of image."""
    levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise UserError(f"{path} is not a 16-bit grey PNG. Delete its row in results.jsonl and evaluate again.")
    return (levels.astype(np.float64) * (scale / PNG_MAX)).astype(np.float32)


def file_stem(sample_id: str) -> str:
    """A file name for any sample id: readable, and different for different ids."""
    digest = hashlib.sha256(sample_id.encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id)[-80:] + "-" + digest


def _below(path: Path, root: Path) -> str:
    path = Path(path)
    return written(path.relative_to(root) if path.is_relative_to(root) else path)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
