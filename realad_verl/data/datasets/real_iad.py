"""Real-IAD: 30 objects seen from 5 sides, 151,050 images, 51,329 of them anomalous with a mask.

Layout: ``realiad_jsons/<object>.json`` (or one folder deeper, realiad_jsons/realiad_jsons/) and the images under
``realiad_1024/``, ``realiad_512/`` or ``realiad_256/`` ``<object>/{OK,NG/<defect>}/S0001/*.jpg``; the largest size that
is there is read. JSON: ``{"meta": {"normal_class": "OK", "prefix": "<object>/"}, "train": [...], "test": [...]}``, each
entry with image_path and mask_path (null for a normal image), both below the prefix, and anomaly_class ("OK", or a
two-letter code). The label is per view: a defective object has normal views, given as OK. Of its split files this
reads the multi-view ones (``realiad_jsons``), else the single-view ones (``realiad_jsons_sv``). The views of one object
are one group.

Source: Wang et al., "Real-IAD", CVPR 2024, and public loaders that read it. Not checked against the original archive.
"""

import json
from pathlib import Path
from typing import Any

from realad_verl.data.datasets.base import Dataset, Sample, inside, layout_error
from realad_verl.errors import UserError

IMAGE_FOLDERS = ("realiad_1024", "realiad_512", "realiad_256")
JSON_FOLDERS = ("realiad_jsons/realiad_jsons", "realiad_jsons", "realiad_jsons/realiad_jsons_sv", "realiad_jsons_sv")


def _read(root: Path) -> list[Sample]:
    images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    lists: list[Path] = next(filter(None, (sorted((root / name).glob("*.json")) for name in JSON_FOLDERS)), [])
    if images is None or not lists:
        raise layout_error("real_iad", root, f"realiad_jsons/<object>.json and one of {', '.join(IMAGE_FOLDERS)}")
    return [sample for path in lists for sample in _read_object(root, images, path)]


def _read_object(root: Path, images: Path, path: Path) -> list[Sample]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        normal, prefix = content["meta"]["normal_class"], content["meta"]["prefix"]
        entries = [(split, entry) for split in ("train", "test") for entry in content[split]]
        base = inside(images, prefix, str(path))
        return [_sample(root, base, path, split, entry, normal) for split, entry in entries]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a Real-IAD split file: {type(error).__name__} {error}.") from error


def _sample(root: Path, base: Path, listed_in: Path, split: str, entry: dict[str, Any], normal: str) -> Sample:
    path = inside(base, entry["image_path"], str(listed_in))
    label = int(entry["anomaly_class"] != normal)
    mask = entry.get("mask_path")
    return Sample(
        id=path.relative_to(root).as_posix(),
        path=path,
        label=label,
        category=listed_in.stem,
        defect_type=entry["anomaly_class"] if label else "good",
        mask_path=inside(base, mask, str(listed_in)) if label and mask else None,
        split=split,
        dataset="real_iad",
        group=path.parent.relative_to(root).as_posix(),
    )


REAL_IAD = Dataset(
    name="real_iad",
    title="Real-IAD",
    kind="objects",
    role="extra",
    normal="99,721",
    anomalous="51,329",
    licence="on request from its authors",
    source="Real-IAD/Real-IAD",
    read=_read,
    test_split="test",
    lists=("realiad_jsons*/*.json",),
    mask_folders=("*/NG/*.png",),
)
