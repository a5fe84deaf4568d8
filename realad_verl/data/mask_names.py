"""Which mask file belongs to which image, by the names that data sets and labelling tools give."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path, PurePosixPath

SUFFIXES = ("_mask", "-mask", "_gt", "_label", "_labels", "_seg", "_segmentation", "_groundtruth")
PREFIXES = ("mask_", "gt_", "label_")
TRIED = (
    "NAME.*, NAME.jpg.png, NAME" + ".*, NAME".join(SUFFIXES) + ".*, " + "NAME.*, ".join(PREFIXES)
    + "NAME.*, in any case, at the image's own place or, where the name is the only one, anywhere"
)  # fmt: skip


def match_masks(images: Iterable[Path], masks: Iterable[Path], image_root: Path, mask_root: Path) -> dict[Path, Path]:
    """Image -> mask. Each mask belongs to one image: where a name fits several images, or several masks one, none does.

    Names nearer to the image's come first: the very file name, the name without suffix, then ``SUFFIXES`` and
    ``PREFIXES``; each first at the same place below the two roots, then by name alone wherever it lies.
    """
    of_image = {path: PurePosixPath(path.relative_to(image_root).as_posix()) for path in images}
    of_mask = {path: PurePosixPath(path.relative_to(mask_root).as_posix()) for path in masks}
    found: dict[Path, Path] = {}
    for place, fold in product((_at_place, _anywhere), (str, str.lower)):
        for image_key, mask_key in _TIERS:
            taken = set(found.values())
            _pair(
                {p: fold(key) for p, n in of_image.items() if p not in found and (key := place(n, image_key(n)))},
                {p: fold(key) for p, n in of_mask.items() if p not in taken and (key := place(n, mask_key(n)))},
                found,
            )
    return found


def _pair(images: Mapping[Path, str], masks: Mapping[Path, str], found: dict[Path, Path]) -> None:
    """Pair what has one key, where no other image and no other mask has it."""
    mask_of, wanted = defaultdict(list), defaultdict(list)
    for by_key, named in ((mask_of, masks), (wanted, images)):
        for path, key in named.items():
            by_key[key].append(path)
    found |= {paths[0]: mask_of[k][0] for k, paths in wanted.items() if len(paths) == 1 and len(mask_of[k]) == 1}


def _at_place(name: PurePosixPath, key: str | None) -> str | None:
    return None if key is None else f"{name.parent}/{key}"


def _anywhere(name: PurePosixPath, key: str | None) -> str | None:
    return key


def _full(name: PurePosixPath) -> str:
    return name.name


def _stem(name: PurePosixPath) -> str:
    return name.stem


def _without(name: PurePosixPath) -> str | None:
    """The stem without what marks a mask; None where nothing does."""
    stem, low = name.stem, name.stem.lower()
    for suffix in SUFFIXES:
        if low.endswith(suffix) and len(stem) > len(suffix):
            return stem[: -len(suffix)]
    for prefix in PREFIXES:
        if low.startswith(prefix) and len(stem) > len(prefix):
            return stem[len(prefix) :]
    return None


_Key = Callable[[PurePosixPath], str | None]
_TIERS: tuple[tuple[_Key, _Key], ...] = ((_full, _full), (_stem, _stem), (_full, _stem), (_stem, _without))
