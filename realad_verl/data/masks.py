"""Masks for evaluation: which values of a mask file are defect, and how a mask lies on its image. The one reader.

What is the defect is decided for a whole data set, by kind of file [ours]:

| kind   | the values that count                                                        |
|--------|------------------------------------------------------------------------------|
| alpha  | the alpha channel, where it varies; the colours are then not looked at       |
| index  | the indices of a palette                                                     |
| colour | the largest of red, green and blue                                           |
| grey   | the grey value, of any depth                                                 |

Of these values the *levels* are those that fill some area: pixels whose eight neighbours are equal. All levels above
zero are defect, so the cut is half of the lowest one: soft edges and JPEG noise, which fill no area, are cut there.
Where nothing fills an area (thin lines), the values that hold a tenth of the marked pixels are the levels; without any
level (a continuous map) the cut is half of the largest value. ``MaskSetting`` overrides.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from realad_verl.data.files import images_in, written
from realad_verl.data.images import Shape, UnreadableImage, orientation, turned
from realad_verl.data.parallel import ordered_map
from realad_verl.errors import UserError, bad_value

KINDS = ("alpha", "index", "colour", "grey")
CONTINUOUS = 32  # more different values than this in one mask: soft or noisy, not levels alone
NOISE = 8  # in such a mask the flat tails of a blur and of JPEG are below this


class Misfit(UserError):
    """A mask whose size and shape are not its image's. ``reason`` names both sizes."""

    def __init__(self, path: Path, mask: tuple[int, int], image: Shape):
        turn = f", turned by EXIF orientation {image.orientation}" if image.orientation > 1 else ""
        self.reason = f"the mask is {mask[1]} x {mask[0]} pixels, its image {image.width} x {image.height}{turn}"
        super().__init__(f"{written(path)}: {self.reason}. Give a mask of the image's size, or of its shape.")


@dataclass(frozen=True)
class MaskSetting:
    """Which levels are defect, where the rule of the set must not decide.

    "auto"; "nonzero" (every value above 0); "inverted" (every value that "auto" calls background); or levels, as
    "100,255".
    """

    text: str = "auto"

    def __post_init__(self) -> None:
        if self.text not in ("auto", "nonzero", "inverted") and not self.levels:
            raise bad_value("mask_levels", self.text, "auto, nonzero, inverted, or levels such as 100,255")

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels that are listed, () where none are."""
        try:
            return tuple(float(part) for part in self.text.split(","))
        except ValueError:
            return ()


@dataclass
class Levels:
    """What the masks of a set hold, by kind: levels with how many files have each, the same for masks where nothing
    fills an area (``thin``), the largest value, files, and files that hold other values too (soft edges, noise)."""

    found: dict[str, Counter] = field(default_factory=dict)
    thin: dict[str, Counter] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    files: Counter = field(default_factory=Counter)
    soft: Counter = field(default_factory=Counter)

    def add(self, values: np.ndarray, kind: str) -> None:
        """Count one mask."""
        different = np.unique(values)
        if values.dtype.kind == "f" and not np.isfinite(different).all():
            raise ValueError("it holds values that are not finite")
        levels = filled_levels(values, len(different))
        self.found.setdefault(kind, Counter()).update(levels)
        if not max(levels, default=0.0) and different[-1] > 0:
            levels = frequent_levels(values)
            self.thin.setdefault(kind, Counter()).update(levels)
        self.largest[kind] = max(self.largest.get(kind, 0.0), float(different[-1]))
        self.files[kind] += 1
        self.soft[kind] += any(float(value) not in levels for value in different if value > 0)

    def cut(self, kind: str) -> float:
        """Values above it are defect."""
        return min(self.above(kind), default=self.largest.get(kind, 0.0)) / 2

    def above(self, kind: str) -> list[float]:
        """The levels above zero; those of thin masks only where no other mask has one."""
        filled = [level for level in self.found.get(kind, ()) if level > 0]
        return sorted(filled or self.thin.get(kind, ()))

    def merge(self, other: "Levels") -> None:
        """Add the masks of ``other``."""
        for mine, theirs in ((self.found, other.found), (self.thin, other.thin)):
            for kind, levels in theirs.items():
                mine.setdefault(kind, Counter()).update(levels)
        for kind, value in other.largest.items():
            self.largest[kind] = max(self.largest.get(kind, 0.0), value)
        self.files.update(other.files)
        self.soft.update(other.soft)


@dataclass(frozen=True)
class MaskRule:
    """The rule of one set: a cut for each kind of file, or a setting."""

    levels: Levels
    setting: MaskSetting = MaskSetting()

    def defect(self, values: np.ndarray, kind: str) -> np.ndarray:
        """Bool [H, W]: True on the defect."""
        if self.setting.levels:
            return np.isin(values, self.setting.levels)
        if self.setting.text == "nonzero":
            return values > 0
        found = values > self.levels.cut(kind)
        return ~found if self.setting.text == "inverted" else found

    def lines(self) -> list[str]:
        """The rule in words, a line for each kind of file."""
        return [self._line(kind) for kind in KINDS if self.levels.files[kind]]

    def _line(self, kind: str) -> str:
        shown = [level for level in self.levels.found[kind] if level <= 0] + self.levels.above(kind)
        names = ", ".join(f"{level:g}" for level in shown[:12]) + (f" and {len(shown) - 12} more" if shown[12:] else "")
        soft = f", other values in {self.levels.soft[kind]}" if self.levels.soft[kind] else ""
        what = {"nonzero": "all above 0", "inverted": f"all up to {self.levels.cut(kind):g}"}.get(
            self.setting.text,
            f"levels {self.setting.text}" if self.setting.levels else f"all above {self.levels.cut(kind):g}",
        )
        return f"{self.levels.files[kind]} masks by {kind}: levels found: {names}{soft}; defect = {what}"


def filled_levels(values: np.ndarray, different: int) -> set[float]:
    """The values that fill some area; see the top of this file."""
    plain = values.astype(np.float32) if values.dtype.kind == "f" or values.dtype.itemsize > 2 else values
    kernel = np.ones((3, 3), np.uint8)
    plain = plain.astype(np.uint8) if plain.dtype == bool else plain
    flat = cv2.erode(plain, kernel) == cv2.dilate(plain, kernel)
    levels = {float(value) for value in np.unique(values[flat])}
    if different > CONTINUOUS:
        low = NOISE * (float(values.max()) / 255 if values.max() > 255 or values.dtype.kind == "f" else 1)
        levels = {level for level in levels if level == 0 or level >= low}
        levels = levels if len(levels) <= CONTINUOUS else set()
    return levels


def frequent_levels(values: np.ndarray) -> set[float]:
    """The values above zero that hold at least a tenth of the pixels above zero."""
    different, counts = np.unique(values[values > 0], return_counts=True)
    return {float(value) for value in different[counts >= 0.1 * counts.sum()]}


def read_values(path: Path) -> tuple[np.ndarray, str]:
    """(values [H, W], kind) of a mask file, turned as its own EXIF orientation says. Raises UserError naming it."""
    try:
        with Image.open(path) as image:
            image.load()
            values, kind = _values(image)
            return turned(values, orientation(image)), kind
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(written(path), f"{error}.") from error


def _values(image: Image.Image) -> tuple[np.ndarray, str]:
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            return alpha, "alpha"
    if image.mode in ("P", "PA"):
        return np.asarray(image.getchannel(0) if image.mode == "PA" else image), "index"
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.asarray(image.convert("L") if image.mode == "1" else image), "grey"
    if image.mode == "LA":
        return np.asarray(image.getchannel(0)), "grey"
    colours = np.asarray(image.convert("RGB"))
    same = (colours[..., 0] == colours[..., 1]).all() and (colours[..., 0] == colours[..., 2]).all()
    return colours.max(axis=-1), "grey" if same else "colour"


def mask_files(path: Path) -> list[Path]:
    """The files of a mask: itself, or those of a folder that holds one for each defect (MVTec LOCO)."""
    return images_in(path) if path.is_dir() else [path]


def rule_of(paths: Iterable[Path], setting: MaskSetting = MaskSetting(), workers: int = 2) -> MaskRule:
    """The rule of the set of masks ``paths``, by reading all of them; what cannot be read is left to a later reader."""
    levels = Levels()
    for one in ordered_map(_levels_of, paths, workers):
        if one is not None:
            levels.merge(one)
    return MaskRule(levels, setting)


def _levels_of(path: Path) -> Levels | None:
    levels = Levels()
    try:
        levels.add(*read_values(path))
    except ValueError:  # a UserError too
        return None
    return levels


def mask_from_file(path: Path, rule: MaskRule | None = None) -> np.ndarray:
    """Mask file, or folder of them -> bool [H, W], True on the defect; all zero stays all False.

    Without a ``rule`` the levels of this mask alone decide.
    """
    files = mask_files(path)
    if not files:
        raise UserError(f"{written(path)} holds no mask file.")
    rule = rule if rule is not None else rule_of(files, workers=1)
    parts = [rule.defect(*read_values(file)) for file in files]
    if len({part.shape for part in parts}) > 1:
        raise UserError(f"{written(path)}: its mask files have different sizes: {[part.shape for part in parts]}.")
    return np.logical_or.reduce(parts)


def fitted(mask: np.ndarray, image: Shape, path: Path) -> tuple[np.ndarray, str]:
    """The mask [H, W] as it lies on its upright image, and what was found: "" or one of ``FITS``.

    Of the image's size, or of its shape in another size: as it is. Of the size of the stored pixels of a photo that
    EXIF turns: turned with it. Raises Misfit for anything else.
    """
    height, width = mask.shape
    if image.swaps and _same_shape(width, height, image) and not _same_shape(height, width, image):
        mask, found = turned(mask, image.orientation), "turned"
    elif not _same_shape(height, width, image):
        raise Misfit(path, (height, width), image)
    else:
        found = "either way up" if image.orientation > 1 and (not image.swaps or height == width) else ""
    return mask, found if found or mask.shape == (image.height, image.width) else "of another size"


FITS = {
    "turned": "masks of the stored pixels of photos that EXIF turns: turned with them",
    "of another size": "masks of their image's shape in another size: used at their own size",
    "either way up": "masks that fit photos that EXIF turns either way: taken as drawn on the upright photo",
}


def _same_shape(height: int, width: int, image: Shape) -> bool:
    """Equal, or equal but for scale, where the smaller of the two may be off by the rounding of one pixel."""
    larger = max(image.height, image.width, height, width)
    off = abs(height * image.width - width * image.height)
    return off <= min(larger, 0.05 * width * image.height)  # 5 %: a mask of a few pixels fits no other shape


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
