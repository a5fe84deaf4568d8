"""VISION (V1): 14 industrial sets, about 18,400 images, COCO instance masks.

Layout: ``<set>/{train,val,inference}/_annotations.coco.json`` with the images beside it; sets Cable, Capacitor,
Casting, Console, Cylinder, Electronics, Groove, Hemisphere, Lens, PCB_1, PCB_2, Ring, Screw, Wood. An image of train or
val with an annotation is anomalous, without one normal; users of the set report that nearly all of them have one.
``inference`` holds images *without released labels*: they are skipped, not taken as normal. So most sets give anomalous
images only: prepare it with ``--no-balance``. Masks are drawn from the polygons; the defect type is the COCO category.

Source: Bai et al., arXiv:2306.07890, and the layout in MMDetection's VISION project page. Not checked against the
original archive.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from realad_verl.data.datasets.base import Dataset, Sample, inside, layout_error
from realad_verl.data.files import relative_id, subdirectories, written
from realad_verl.data.masks import mask_from_polygons
from realad_verl.errors import UserError

ANNOTATIONS = "_annotations.coco.json"
SPLITS = ("train", "val")


def _read(root: Path) -> list[Sample]:
    folders = [
        (category, split)
        for category in subdirectories(root)
        for split in SPLITS
        if (category / split / ANNOTATIONS).is_file()
    ]
    if not folders:
        raise layout_error("vision", root, f"<set>/train/{ANNOTATIONS} and <set>/val/{ANNOTATIONS}")
    return [sample for category, split in folders for sample in _read_split(root, category, split)]


@lru_cache(maxsize=32)
def _coco(path: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """file name -> (image entry, its annotations, names of its defects)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        marks: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
        for mark in content["annotations"]:
            marks[mark["image_id"]].append(mark)
        return {
            entry["file_name"]: (
                entry,
                marks[entry["id"]],
                ",".join(sorted({names[mark["category_id"]] for mark in marks[entry["id"]]})),
            )
            for entry in content["images"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a COCO annotation file: {type(error).__name__} {error}.") from error


def _read_split(root: Path, category: Path, split: str) -> list[Sample]:
    annotations = category / split / ANNOTATIONS
    samples = []
    for file_name, (_, marks, defects) in _coco(annotations).items():
        path = inside(category / split, file_name, str(annotations))
        samples.append(
            Sample(
                id=relative_id(path, root),
                path=path,
                label=int(bool(marks)),
                category=written(category.name),
                defect_type=defects if marks else "good",
                mask_path=annotations if marks else None,
                split=split,
                dataset="vision",
            )
        )
    return samples


def _read_mask(sample: Sample) -> np.ndarray:
    assert sample.mask_path is not None  # Dataset.load_mask has checked it
    name = sample.path.relative_to(sample.mask_path.parent).as_posix()
    entry, marks, _ = _coco(sample.mask_path)[name]
    return mask_from_polygons(marks, int(entry["height"]), int(entry["width"]), f"{sample.mask_path}, image {name}")


VISION = Dataset(
    name="vision",
    title="VISION",
    kind="objects and textures",
    role="train",
    normal="18,422 in all",
    anomalous="",
    licence="CC BY-NC 4.0",
    source="VISION-Workshop/VISION-Datasets",
    read=_read,
    test_split="val",
    read_mask=_read_mask,
    lists=tuple(f"*/{split}/{ANNOTATIONS}" for split in SPLITS),
)
