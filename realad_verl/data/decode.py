"""One image from disk to the PNG bytes of a parquet row."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from realad_verl.data.depth import Depth
from realad_verl.data.images import UnreadableImage, load_image

RESAMPLING = "bicubic, antialiased, aspect ratio not kept"
PNG_LEVEL = 1  # on photos a quarter of the time of Pillow's default, 6, for about the same size


@dataclass(frozen=True)
class Decoded:
    """png: the resized image. sha256: of the RGB pixels at full size, so lossless re-saving does not change it."""

    png: bytes
    sha256: str


@dataclass(frozen=True)
class Unusable:
    """An image that could not be decoded. kind: "missing", "empty" or "unreadable"."""

    kind: str
    detail: str


def decode(path: Path, size: int, depth: Depth | None = None, keep_aspect: bool = False) -> Decoded | Unusable:
    """Read ``path``, by the ``depth`` of its data set, and bring it to ``size`` x ``size`` pixels.

    ``keep_aspect``: scale it so that its longest side has ``size`` pixels.
    """
    if not path.exists():
        return Unusable("missing", "no such file")
    if path.stat().st_size == 0:
        return Unusable("empty", "0 bytes")
    try:
        image = load_image(path, depth)
    except UnreadableImage as error:
        return Unusable("unreadable", error.reason)
    digest = content_sha256(image)
    buffer = io.BytesIO()
    width, height = (round(side * size / max(image.size)) for side in image.size) if keep_aspect else (size, size)
    new = (max(1, width), max(1, height))
    image.resize(new, Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return Decoded(buffer.getvalue(), digest)


def content_sha256(image: Image.Image) -> str:
    """SHA-256 of the width, the height and the RGB pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height};".encode())
    digest.update(np.asarray(image).tobytes())
    return digest.hexdigest()
