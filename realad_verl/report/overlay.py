"""An anomaly map laid over its image, as a picture (the page draws its own in the browser)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def heat_colours() -> np.ndarray:
    """256 RGBA colours [256, 4] uint8: inferno, clear where the map is low."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](np.linspace(0.15, 0.97, 256))
    colours[:, 3] = np.clip(np.linspace(-0.1, 1.25, 256), 0, 1) ** 0.8
    return np.round(colours * 255).astype(np.uint8)


def levels(anomaly_map: np.ndarray) -> np.ndarray:
    """The map stretched to 0 .. 255 (uint8, same shape) for display; a constant map becomes zeros."""
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if high <= low:
        return np.zeros(anomaly_map.shape, np.uint8)
    return np.round((anomaly_map - low) * (255 / (high - low))).astype(np.uint8)


def overlay(
    image: Image.Image, anomaly_map: np.ndarray | Sequence[Sequence[float]], strength: float = 0.7
) -> Image.Image:
    """``image`` with ``anomaly_map`` [h, w] (any size: it is resized, bilinear) laid over it; RGB, image size.

    ``strength`` 0 .. 1 is how opaque the highest value is.
    """
    grid = np.asarray(anomaly_map, np.float32)
    heat = Image.fromarray(levels(grid)).resize(image.size, Image.Resampling.BILINEAR)
    rgba = heat_colours()[np.asarray(heat)]
    alpha = Image.fromarray(np.round(rgba[..., 3] * strength).astype(np.uint8))
    return Image.composite(Image.fromarray(rgba[..., :3]), image.convert("RGB"), alpha)
