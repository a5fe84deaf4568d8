"""What a dataset is to this package: a list of labelled image paths, and a way to read a mask for evaluation.

A reader turns an original folder layout into :class:`Sample` objects without opening one image. Masks are only ever
read by :func:`realad_verl.data.datasets.load_mask`; preparing training data never touches them.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realad_verl.data.account import Account, account
from realad_verl.data.files import written
from realad_verl.data.masks import MaskRule, mask_from_file
from realad_verl.errors import UserError, bad_value

ALL = "all"


@dataclass(frozen=True)
class Sample:
    """One image of a dataset.

    id: path of the image below the dataset's root, with forward slashes; unique in its dataset.
    label: 0 normal, 1 anomalous. defect_type: "good" for a normal image.
    mask_path: the file that :func:`load_mask` reads (an image, or annotations to draw), None if there is none.
    split: the dataset's own split, or "all" where it has none.
    group: images that must not be parted by a train/val split (a pair, views of one object); default: the id.
    """

    id: str
    path: Path
    label: int
    category: str
    defect_type: str
    mask_path: Path | None
    split: str
    dataset: str = "folder"
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)


@dataclass(frozen=True)
class Dataset:
    """A named folder layout. ``normal``, ``anomalous``, ``licence`` and ``source`` are what its publishers state.

    ``lists``, ``mask_folders``: patterns of files that it takes labels from, and of places where it looks for masks.
    ``read_mask``: where the ground truth is no mask image.
    """

    name: str
    title: str
    kind: str
    role: str
    normal: str
    anomalous: str
    licence: str
    source: str
    read: Callable[[Path], list[Sample]]
    test_split: str = ALL
    read_mask: Callable[[Sample], np.ndarray] | None = None
    lists: tuple[str, ...] = ()
    mask_folders: tuple[str, ...] = ()

    def samples(self, root: str | os.PathLike[str], split: str = ALL) -> list[Sample]:
        """Every sample of ``split`` ("all": of every split), sorted by id. UserError on a missing root or wrong layout.

        Files that a split list names but that are not on disk are still returned: whoever opens them counts them.
        """
        root = Path(root)
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            raise UserError(f"dataset {self.name}: root {root} {what}. Give the directory that holds the dataset.")
        samples = sorted(self.read(root), key=lambda sample: sample.id)
        if not samples:
            raise layout_error(self.name, root, "at least one image")
        _check_ids(self.name, samples)
        return self.of_split(samples, split)

    def of_split(self, samples: Sequence[Sample], split: str) -> list[Sample]:
        """Those of ``samples`` (all of them) that ``split`` has; UserError where it is no split of theirs."""
        if split == ALL:
            return list(samples)
        chosen = [sample for sample in samples if sample.split == split]
        if not chosen:
            known = sorted({sample.split for sample in samples} | {ALL})
            raise bad_value("split", split, f"{', '.join(known)} (the splits of {self.name} here)")
        return chosen

    def account(self, root: Path, samples: Sequence[Sample]) -> Account:
        """What became of every file below ``root``, given all ``samples`` that were read from it."""
        masks = [sample.mask_path for sample in samples if sample.mask_path is not None]
        used = {"images": [sample.path for sample in samples], "masks": masks}
        return account(Path(root), used, lists=self.lists, mask_folders=self.mask_folders)

    def load_mask(self, sample: Sample, rule: MaskRule | None = None) -> np.ndarray:
        """Ground truth of an anomalous ``sample``: bool [H, W], True on the defect; ``rule`` is for mask images."""
        if sample.mask_path is None:
            raise UserError(f"dataset {self.name}: {sample.id} is labelled anomalous but has no mask.")
        if not sample.mask_path.exists():
            raise UserError(f"dataset {self.name}: the mask of {sample.id} is missing: {written(sample.mask_path)}.")
        if self.read_mask is not None:
            return self.read_mask(sample)
        return mask_from_file(sample.mask_path, rule)


def _check_ids(name: str, samples: list[Sample]) -> None:
    repeated = [sample_id for sample_id, n in Counter(sample.id for sample in samples).items() if n > 1]
    if repeated:
        raise UserError(f"dataset {name}: the same image is listed more than once: {', '.join(repeated[:5])}.")
    images = {os.path.normpath(sample.path) for sample in samples}
    both = [s.id for s in samples if s.mask_path is not None and os.path.normpath(s.mask_path) in images]
    if both:
        raise UserError(f"dataset {name}: a mask is listed as an image too, for {', '.join(both[:5])}. Fix the list.")


def layout_error(name: str, root: Path, expected: str, hint: str = "") -> UserError:
    """The error for a root whose content is not the layout that ``name`` reads."""
    entries = sorted(written(e.name) + "/" * e.is_dir() for e in root.iterdir()) if root.is_dir() else []
    found = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    message = f"dataset {name}: {root} does not have the expected layout. Expected: {expected}. "
    return UserError(f"{message}Found: {found or 'nothing'}.{' ' + hint if hint else ''}")


def inside(root: Path, relative: str, where: str) -> Path:
    """``root / relative`` for a path that a list file names; UserError if it leads out of ``root``."""
    text = relative.strip().replace("\\", "/")
    normal = os.path.normpath(text)
    if not text or os.path.isabs(text) or normal == ".." or normal.startswith("../"):
        raise UserError(f"{where}: path {relative!r} leads out of {root}. Only paths below the root are read.")
    return root / normal
