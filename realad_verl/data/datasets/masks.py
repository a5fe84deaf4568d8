"""Turning mask files into bool arrays, for every convention that the readers meet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from realad_verl.errors import UserError


def mask_from_file(path: Path) -> np.ndarray:
    """Mask image -> bool [H, W].

    - Grey or RGB, 0/255, edges maybe softened by resampling or JPEG: True above the middle (127).
    - Class ids, as in VisA (largest value <= 127): True above 0. A palette image counts by its indices.
    - An alpha channel that varies: it is the mask if the colours are constant, else it multiplies them.
    - All zero although the image is labelled defective: stays all False; the image-level label is not changed by it.
    """
    with opened(path) as image:
        values = _values(image)
    threshold = 127 if values.size and values.max() > 127 else 0
    return values > threshold


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The decoded image at ``path``; UserError naming the file if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {path}: {error}.") from error


def _values(image: Image.Image) -> np.ndarray:
    if image.mode == "P" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        grey, alpha = rgba[..., :3].max(axis=-1), rgba[..., 3]
        if alpha.min() == alpha.max():
            return grey
        if grey.min() == grey.max():
            return alpha
        return (grey.astype(np.uint16) * alpha // 255).astype(np.uint8)
    if image.mode in ("1", "L", "I", "I;16", "F"):
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    return np.asarray(image.convert("RGB")).max(axis=-1)


def mask_from_polygons(annotations: Sequence[dict[str, Any]], height: int, width: int, where: str) -> np.ndarray:
    """COCO annotations -> bool [height, width]: union of filled polygons; a box where there is no polygon."""
    mask = np.zeros((height, width), np.uint8)
    for annotation in annotations:
        shapes = annotation.get("segmentation") or [_box_corners(annotation.get("bbox", []), where)]
        if not isinstance(shapes, list):
            raise UserError(f"{where}: run-length segmentation is not supported, only polygons.")
        for shape in shapes:
            points = np.asarray(shape, dtype=np.float64).reshape(-1, 2)
            cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _box_corners(box: Sequence[float], where: str) -> list[float]:
    if len(box) != 4:
        raise UserError(f"{where}: an annotation has neither polygon nor box.")
    x, y, w, h = box
    return [x, y, x + w - 1, y, x + w - 1, y + h - 1, x, y + h - 1]
