"""The images to calibrate on: rows of `realad prepare`, with their image-level labels and nothing else."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from realad_verl.data.images import load_image
from realad_verl.errors import UserError
from realad_verl.method.labels import read_label

LEAST = 24  # images of each class: below, the AUROC that everything is chosen by has an interval of +- 0.16 or more


@dataclass(frozen=True)
class Labelled:
    """One image's place in a file, its id and its label (1 anomalous)."""

    file: Path
    row: int
    id: str
    label: int


def choose_images(files: Sequence[Path], limit: int | None, seed: int) -> list[Labelled]:
    """The images of ``files``, at most ``limit``, as many of each class, in an order that the seed shuffles.

    UserError: a file that cannot be read or has a column for masks, a label that is none, fewer than ``LEAST`` images
    of a class.
    """
    images = [image for file in files for image in _listed(Path(file))]
    by_class = {label: [image for image in images if image.label == label] for label in (0, 1)}
    random = np.random.default_rng(seed)
    size = min(map(len, by_class.values())) if limit is None else min(limit // 2, *map(len, by_class.values()))
    if size < LEAST:
        counts = f"{len(by_class[0])} normal and {len(by_class[1])} anomalous"
        asked = "" if limit is None else f" and --images {limit} takes {limit // 2} of each"
        raise UserError(
            f"{', '.join(map(str, files))} hold {counts} images{asked}. Calibration wants at least {LEAST} of each "
            "class, better 100: everything is chosen by how well it tells the classes apart."
        )
    chosen = [some[i] for some in by_class.values() for i in random.permutation(len(some))[:size]]
    return [chosen[i] for i in random.permutation(len(chosen))]


def _listed(file: Path) -> Iterator[Labelled]:
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {file}: {error}. Give a parquet file of `realad prepare`.") from None
    names = parquet.schema_arrow.names
    masks = [name for name in names if "mask" in name.lower()]
    if masks:
        raise UserError(
            f"{file} has a column {masks[0]}. Calibration uses image labels only, so that the maps stay a test: "
            "give data of `realad prepare`, which has no masks."
        )
    missing = {"images", "reward_model"} - set(names)
    if missing:
        raise UserError(f"{file} has no column {sorted(missing)[0]}. Give a parquet file of `realad prepare`.")
    columns = [name for name in ("reward_model", "extra_info") if name in names]
    row = 0
    for batch in parquet.iter_batches(columns=columns):
        for item in batch.to_pylist():
            label = read_label((item["reward_model"] or {}).get("ground_truth"))
            if label is None:
                raise UserError(f"{file}, row {row}: ground_truth = {item['reward_model']} is no label.")
            yield Labelled(file, row, str((item.get("extra_info") or {}).get("id", row)), label)
            row += 1


class ImageReader:
    """Decodes the images of a choice, a row group of a file in memory at a time."""

    def __init__(self) -> None:
        self._group: tuple[Path, int] | None = None
        self._rows: list[Any] = []

    def __call__(self, image: Labelled) -> Image.Image:
        """The image, RGB. UserError naming file and row where it cannot be decoded."""
        parquet = pq.ParquetFile(image.file)
        first = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if image.row < first + count:
                break
            first += count
        if self._group != (image.file, group):
            self._rows = parquet.read_row_group(group, columns=["images"]).column("images").to_pylist()
            self._group = (image.file, group)
        try:
            return load_image(io.BytesIO(self._rows[image.row - first][0]["bytes"]))
        except (UserError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{image.file}, row {image.row} ({image.id}): {error}") from None


def class_counts(images: Sequence[Labelled]) -> dict[str, int]:
    """{"normal": ..., "anomalous": ...}"""
    counts = Counter(image.label for image in images)
    return {"normal": counts[0], "anomalous": counts[1]}
