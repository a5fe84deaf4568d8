"""Images from disk to the PNG bytes of a parquet row, several at a time, in order, in bounded memory."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from realad_verl.data.images import load_image
from realad_verl.errors import UserError

RESAMPLING = "bicubic, antialiased, aspect ratio not kept"
PNG_LEVEL = 1  # on photos a quarter of the time of Pillow's default, 6, for about the same size

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def decode(path: Path, size: int) -> Decoded | Unusable:
    """Read ``path`` and bring it to ``size`` x ``size`` pixels."""
    if not path.exists():
        return Unusable("missing", "no such file")
    if path.stat().st_size == 0:
        return Unusable("empty", "0 bytes")
    try:
        image = load_image(path)
    except UserError as error:
        return Unusable("unreadable", str(error).removeprefix(f"cannot read {path}: "))
    digest = content_sha256(image)
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return Decoded(buffer.getvalue(), digest)


def content_sha256(image: Image.Image) -> str:
    """SHA-256 of the width, the height and the RGB pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height};".encode())
    digest.update(np.asarray(image).tobytes())
    return digest.hexdigest()


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map(function, items)`` on ``workers`` threads. At most 3 * workers results exist at a time.

    Threads, not processes: Pillow decodes, resizes and compresses without the interpreter lock.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
