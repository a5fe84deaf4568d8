"""Writes procedural images in the plain ``folder`` layout: normal/, anomalous/ and masks/."""

import json
from pathlib import Path

import cv2
import numpy as np

from realad_verl.data.procedural.dataset import ProceduralDefects
from realad_verl.errors import UserError, bad_value


def write_folder(
    out: Path, n: int, *, domain: str = "source", size: int = 168, seed: int = 0, start: int = 0
) -> dict[str, int]:
    """Write ``n`` images, half of them anomalous, and ``captions.jsonl`` (for evaluation, never for training).

    Args:
        out: folder to make; it must not hold images yet.
        n: number of images.
        domain, size, seed: see `ProceduralDefects`.
        start: index of the first image, to cut apart splits from one sequence.

    Returns:
        Counts by folder name.

    Raises:
        UserError: n < 1, or ``out`` already holds files.
    """
    if n < 1:
        raise bad_value("count", n, "1 or more")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty. Name a new folder.")
    samples = ProceduralDefects(size, domain, seed)
    counts = {"normal": 0, "anomalous": 0, "masks": 0}
    for name in counts:
        (out / name).mkdir(parents=True, exist_ok=True)
    with (out / "captions.jsonl").open("w") as captions:
        for index in range(start, start + n):
            sample = samples[index]
            folder, file = ("normal", "anomalous")[sample.label], f"{index:06d}.png"
            _write(out / folder / file, cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))
            counts[folder] += 1
            if sample.label:
                _write(out / "masks" / file, sample.mask.astype(np.uint8) * 255)
                counts["masks"] += 1
            row = {
                "file": f"{folder}/{file}", "surface": sample.surface, "defect_type": sample.defect_type,
                "place": sample.place, "caption": sample.caption,
            }  # fmt: skip
            captions.write(json.dumps(row) + "\n")
    return counts


def _write(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise UserError(f"cannot write {path}. Check that the disk has room and the folder is writable.")
