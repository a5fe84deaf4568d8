"""Any image file as an upright 8-bit RGB image, or one error that says what is wrong with it."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from realad_verl.errors import UserError

MAX_PIXELS = 178_956_970  # 540 MB as RGB; Pillow itself refuses more
DEPTHS = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1, 2**32 - 1)  # of grey images in a larger container


def load_image(path: str | Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in ``path`` (or in the bytes of a file), RGB, turned as its EXIF orientation says.

    Alpha is dropped (what a transparent pixel holds is shown), of an animation the first frame is taken. Grey of more
    than 8 bits is scaled by the smallest usual bit depth (8, 10, 12, 14, 16, 32) that holds its brightest pixel; grey
    in floating point by 1, or by its range if it leaves [0, 1]. Raises UserError naming the path and the reason:
    missing, not an image, truncated, more than ``max_pixels`` pixels, pixels that are not finite.
    """
    source, path = path, "the image" if isinstance(path, io.BytesIO) else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            with Image.open(source) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    raise UserError(
                        f"cannot read {path}: {width} x {height} pixels, more than max_pixels = {max_pixels}."
                    )
                opened.load()
                return _to_rgb(ImageOps.exif_transpose(opened), path)
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: no such file.") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except Image.UnidentifiedImageError:
        size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else Path(source).stat().st_size
        reason = "the file is empty" if size == 0 else "not an image of a known format"
        raise UserError(f"cannot read {path}: {reason}.") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for a damaged file
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {error}.") from None


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image), path)).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey: np.ndarray, path: str | Path) -> np.ndarray:
    values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"cannot read {path}: it holds pixels that are not finite.")
    low, high = values.min(), values.max()
    if low < 0 or (grey.dtype.kind == "f" and high > 1):
        values, high = values - low, high - low
        scale = high or 1.0
    elif grey.dtype.kind == "f":
        scale = 1.0
    else:
        scale = next(depth for depth in DEPTHS if high <= depth)
    return np.round(values / scale * 255).astype(np.uint8)
