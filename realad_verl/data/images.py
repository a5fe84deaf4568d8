"""Any image as an upright 8-bit RGB image, or one error that says what is wrong with it. The one reader of images."""

import contextlib
import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from realad_verl.data.depth import Depth, assumed_depth, stated_depth
from realad_verl.data.files import written
from realad_verl.errors import UserError

with contextlib.suppress(ImportError):  # a kept plugin: .heic and .heif
    importlib.import_module("pillow_heif").register_heif_opener()

MAX_PIXELS = 178_956_970  # 540 MB as RGB; Pillow itself refuses more
ORIENTATION = 0x0112  # the EXIF tag
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # orientation -> what makes the stored pixels upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a, 0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}

_DROPPED = re.compile(";16[BLN]")  # raw modes of 16-bit colour, and grey with alpha, of which Pillow drops half

ImageSource = str | Path | io.BytesIO | Image.Image | np.ndarray


class UnreadableImage(UserError):
    """An image that cannot be used; ``reason`` is the message without the path."""

    def __init__(self, source: str, reason: str):
        super().__init__(f"cannot read {source}: {reason}")
        self.reason = reason


class DepthAssumed(UserWarning):
    """An image of more than 8 bits came alone, and its white was taken from its own brightest pixel."""


@dataclass(frozen=True)
class Shape:
    """Size of an image as it is shown, and the EXIF orientation that turned its stored pixels (1: none)."""

    height: int
    width: int
    orientation: int

    @property
    def swaps(self) -> bool:
        """Width and height are those of the stored pixels in the other order."""
        return self.orientation >= 5


@dataclass(frozen=True)
class _Deep:
    """Upright pixels [H, W] or [H, W, 3] of more than 8 bits, and the depth that their file states."""

    pixels: np.ndarray
    stated: Depth | None


def load_image(source: ImageSource, depth: Depth | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in ``source``: RGB, upright. A path, the bytes of a file, an image of Pillow or an array give the same.

    Turned as its EXIF orientation says; alpha is dropped (what a transparent pixel holds is shown); of an animation the
    first frame. Grey and colour of more than 8 bits are scaled by ``depth``, which belongs to a data set; without one
    by the depth that the file states, else by what its own brightest pixel suggests, with a ``DepthAssumed`` warning.
    An array is [H, W] or [H, W, 1, 3 or 4], RGB. Raises UnreadableImage with the reason: missing, not an image,
    truncated, more than ``max_pixels`` pixels, pixels that are not finite.
    """
    read = _read(source, max_pixels)
    if isinstance(read, Image.Image):
        return read
    assert read is not None  # deep_only is off
    found = depth if depth is not None and not (depth.found and read.stated) else read.stated
    if found is None:
        found = assumed_depth([extremes(read.pixels)])
        warnings.warn(f"{_name(source)} has more than 8 bits: {found}", DepthAssumed, stacklevel=2)
    return Image.fromarray(found.to_8_bit(read.pixels)).convert("RGB")


def deep_extremes(source: ImageSource, max_pixels: int = MAX_PIXELS) -> tuple[str, float, float] | None:
    """("integer" | "float", lowest, highest) of an image of more than 8 bits whose file does not state its depth.

    None for every other image; those are not decoded. Raises UnreadableImage as ``load_image`` does.
    """
    read = _read(source, max_pixels, deep_only=True)
    return None if read is None or isinstance(read, Image.Image) or read.stated else extremes(read.pixels)


def extremes(pixels: np.ndarray) -> tuple[str, float, float]:
    """Kind and range of pixels."""
    return "float" if pixels.dtype.kind == "f" else "integer", float(pixels.min()), float(pixels.max())


def image_shape(path: Path) -> Shape:
    """Size and orientation from the file's head; only a TIFF that Pillow does not know is decoded. UnreadableImage."""
    with _reasons(path):
        try:
            with Image.open(path) as image:
                turn = orientation(image)
                width, height = image.size[::-1] if turn >= 5 else image.size
                return Shape(height, width, turn)
        except Image.UnidentifiedImageError:
            pixels = _tiff_by_cv2(path)
            if pixels is None:
                raise
            return Shape(pixels.shape[0], pixels.shape[1], 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is none of these."""
    turn = image.getexif().get(ORIENTATION, 1)
    return turn if turn in TURNS else 1


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels [H, W, ...] made upright, as EXIF orientation ``turn`` says."""
    return np.ascontiguousarray(TURNS[turn](pixels)) if turn in TURNS else pixels


def _read(source: ImageSource, max_pixels: int, deep_only: bool = False) -> "Image.Image | _Deep | None":
    """RGB and upright, or the deep pixels, upright. None instead of RGB with ``deep_only``."""
    if isinstance(source, np.ndarray):
        pixels = _checked(source)
        return Image.fromarray(pixels).convert("RGB") if pixels.dtype == np.uint8 else _deep(pixels, None, source)
    with _reasons(source):
        if isinstance(source, Image.Image):
            return _decoded(source, source, deep_only)
        try:
            with Image.open(source) as image:
                if image.width * image.height > max_pixels:
                    reason = f"{image.width} x {image.height} pixels, more than max_pixels = {max_pixels}."
                    raise UnreadableImage(_name(source), reason)
                return _decoded(image, source, deep_only)
        except Image.UnidentifiedImageError:
            pixels = _tiff_by_cv2(source)  # colour in floating point, which Pillow does not know
            if pixels is None:
                raise
            return _deep(pixels, None, source)


def _decoded(image: Image.Image, source: ImageSource, deep_only: bool) -> "Image.Image | _Deep | None":
    stated = stated_depth(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep(turned(np.asarray(image), orientation(image)), stated, source)
    if _DROPPED.search(str([tile[3] for tile in getattr(image, "tile", [])])):
        pixels = _by_cv2(_content(image))
        if pixels is not None and pixels.dtype != np.uint8:
            return _deep(turned(pixels, orientation(image)), stated, source)
    if deep_only:
        return None
    image.load()
    return ImageOps.exif_transpose(image).convert("RGB")


def _deep(pixels: np.ndarray, stated: Depth | None, source: ImageSource) -> "_Deep":
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UnreadableImage(_name(source), "it holds pixels that are not finite.")
    return _Deep(pixels, stated)


def _checked(array: np.ndarray) -> np.ndarray:
    """An array that can be an image, without alpha. UnreadableImage for any other."""
    fits = (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) and array.size > 0
    if not fits or array.dtype.kind not in "uif":
        allowed = "give numbers [H, W] or [H, W, 1, 3 or 4], RGB."
        raise UnreadableImage("the array", f"it is {array.dtype} of shape {array.shape}; {allowed}")
    array = array[..., :3] if array.ndim == 3 else array
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _content(opened: Image.Image) -> bytes:
    """The bytes of the file that ``opened``, not decoded yet, was opened from."""
    file: Any = opened.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _by_cv2(content: bytes) -> np.ndarray | None:
    """Pixels [H, W] or [H, W, 3] RGB of any depth, as stored (not turned, without alpha); None if it cannot."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., 2::-1]) if pixels.shape[2] >= 3 else pixels[..., 0]


def _tiff_by_cv2(source: str | Path | io.BytesIO) -> np.ndarray | None:
    content = source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
    return _by_cv2(content) if content[:4] in (b"II*\0", b"MM\0*") else None


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return written(source)
    if isinstance(source, Image.Image) and getattr(source, "filename", ""):
        return written(source.filename)  # type: ignore[attr-defined]
    return "the array" if isinstance(source, np.ndarray) else "the image"


@contextlib.contextmanager
def _reasons(source: ImageSource) -> Iterator[None]:
    """What Pillow raises, as UnreadableImage."""
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            yield
    except FileNotFoundError:
        raise UnreadableImage(name, "no such file.") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, str(error)) from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage(name, _why_unknown(source)) from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, cv2.error) as error:  # what decoders raise for a damaged file
        raise UnreadableImage(name, f"{error}.") from None


def _why_unknown(source: ImageSource) -> str:
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else Path(str(source)).stat().st_size
    if size == 0:
        return "the file is empty."
    if Path(str(source)).suffix.lower() in (".heic", ".heif") and "HEIF" not in Image.OPEN:
        return "Pillow reads HEIC only with a plugin: pip install pillow-heif."
    return "not an image of a known format."
