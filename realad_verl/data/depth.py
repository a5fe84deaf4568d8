"""One scale for all images of a data set that have more than 8 bits.

Twelve bits of a camera mostly lie in files of sixteen that do not say so. Scaled by its own brightest pixel, an image
with a bright speck would become darker than one without, and its brightness would give the label away.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realad_verl.data.parallel import ordered_map
from realad_verl.errors import UserError, bad_value

DEPTHS = (8, 10, 12, 14, 16, 32)  # usual bits of a pixel in a larger container
BITS_PER_SAMPLE = 258  # the TIFF tag
CONTAINERS = (8, 16, 32, 64)  # bits of a file's samples that say nothing about the camera's


@dataclass(frozen=True)
class Depth:
    """``black`` and ``white`` become 0 and 255; what lies beyond is cut. ``source``: where the two come from.

    ``found`` in the set's own pixels, it gives way to what a file states; a setting does not.
    """

    black: float
    white: float
    source: str = "a setting"
    found: bool = False

    def __post_init__(self) -> None:
        if not self.white > self.black:
            raise bad_value("white", self.white, f"a number above black = {self.black:g}")

    def __str__(self) -> str:
        return f"white taken as {self.white:g}, black as {self.black:g} ({self.source})"

    def to_8_bit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any kind as uint8 of the same shape."""
        share = (pixels.astype(np.float64) - self.black) / (self.white - self.black)
        return np.round(np.clip(share, 0.0, 1.0) * 255).astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def assumed_depth(found: Iterable[tuple[str, float, float]]) -> Depth:
    """The depth of images with these (kind, lowest, highest): one set of them, or one image.

    Whole numbers: the smallest usual depth (8, 10, 12, 14, 16, 32 bits) that holds the brightest pixel. Floating point:
    1, or the brightest pixel where it is above 1. Black is 0, or the darkest pixel where it is below 0. UserError where
    whole numbers and floating point are mixed.
    """
    found = list(found)
    kinds = {kind for kind, _, _ in found}
    if len(kinds) > 1:
        raise UserError(
            "images of whole numbers and of floating point, both of more than 8 bits, are mixed: no one scale fits. "
            "Convert one kind, or give the white level of both with --white."
        )
    low, high = min(low for _, low, _ in found), max(high for _, _, high in found)
    black = min(0.0, low)
    if kinds == {"float"}:
        white, what = max(1.0, high), "floating point"
    elif black < 0:
        white, what = max(high, black + 1), "numbers below 0"
    else:
        bits = next((bits for bits in DEPTHS if high <= 2**bits - 1), 64)
        white, what = float(2**bits - 1), f"{bits} bits"
    return Depth(black, white, f"{what}: the brightest pixel is {high:g}", found=True)


def stated_depth(image: Image.Image) -> Depth | None:
    """The depth that an opened file states: a Netpbm file's largest value, a TIFF file's bits if they are unusual."""
    if image.format == "PPM":
        return Depth(0.0, 65535.0, "the file states it")  # Pillow scales its largest value to this
    bits = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)), default=8)
    if bits in CONTAINERS:
        return None
    return Depth(0.0, float(2**bits - 1), "the file states it")


def find_depth(
    paths: Iterable[Path],
    deep_extremes: Callable[[Path], tuple[str, float, float] | None],
    white: float | None = None,
    workers: int = 2,
) -> Depth | None:
    """The one depth of a data set, from a first pass over ``paths``; None where no image needs one.

    ``white``: a setting that decides without a pass. Only images of more than 8 bits are decoded; what cannot be read
    is left to whoever reads it next. ``deep_extremes`` is that of ``realad_verl.data.images``.
    """
    if white is not None:
        return Depth(0.0, white, "a setting")

    def extremes(path: Path) -> tuple[str, float, float] | None:
        try:
            return deep_extremes(path)
        except UserError:
            return None

    found = [entry for entry in ordered_map(extremes, paths, workers) if entry is not None]
    if not found:
        return None
    depth = assumed_depth(found)
    return replace(depth, source=f"{depth.source}, of {len(found)} images of more than 8 bits")
