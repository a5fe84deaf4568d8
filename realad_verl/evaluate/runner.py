"""The loop of ``realad evaluate``: images in batches through an engine, one row each, then the summary."""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realad_verl.data.account import remarks
from realad_verl.data.datasets import Dataset, Sample
from realad_verl.data.depth import Depth
from realad_verl.data.files import relative_id
from realad_verl.data.images import UnreadableImage, load_image
from realad_verl.data.masks import MaskSetting
from realad_verl.errors import UserError
from realad_verl.evaluate.engines import Engine
from realad_verl.evaluate.ground_truth import GroundTruth
from realad_verl.evaluate.records import file_stem, localization_fields, sample_fields, save_thumbnail
from realad_verl.evaluate.store import ResultStore, write_json
from realad_verl.evaluate.summary import SummaryConfig, summarise
from realad_verl.evaluate.text_metrics import score_texts


def limited(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most ``limit`` samples: in turn from each (category, label), and within each in turn from its defect types."""
    if limit is None or limit >= len(samples):
        return list(samples)
    groups: dict[tuple[str, int], dict[str, list[Sample]]] = {}
    for sample in samples:
        groups.setdefault((sample.category, sample.label), {}).setdefault(sample.defect_type, []).append(sample)
    turns = []
    for name, types in groups.items():
        spread = sorted((place, kind, s.id) for kind, group in types.items() for place, s in enumerate(group))
        turns += [(place, name, sample_id) for place, (_, _, sample_id) in enumerate(spread)]
    chosen = {sample_id for _, _, sample_id in sorted(turns)[:limit]}
    return [sample for sample in samples if sample.id in chosen]


def pending(samples: Sequence[Sample], done: set[str], shard: tuple[int, int]) -> list[Sample]:
    """The samples of this shard (every N-th, from the I-th) that have no row yet."""
    index, count = shard
    return [sample for sample in samples[index - 1 :: count] if sample.id not in done]


def evaluate_samples(
    samples: Sequence[Sample],
    engine: Engine,
    store: ResultStore,
    root: Path,
    *,
    image_size: int | None = None,
    depth: Depth | None = None,
    batch_size: int = 8,
    shard: tuple[int, int] = (1, 1),
    samples_per_image: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> int:
    """Write a row for each of ``samples``; returns how many images could not be read (their rows hold ``error``).

    The model sees ``image_size`` x ``image_size`` pixels as in training (bicubic, aspect ratio not kept), or with None
    the image as it is. A row's ``image_size`` is that of the original, as [height, width]. ``depth``: the data set's,
    for images of more than 8 bits. With ``samples_per_image`` a row's ``sampled`` holds the labels (1, 0, None) of that
    many answers at temperature 1.
    """
    bad = 0
    with store.writer(shard) as writer:
        for batch in _batches(samples, batch_size):
            images, readable = [], []
            for sample in batch:
                image = _read_image(sample.path, depth)
                if isinstance(image, str):
                    writer.append(sample_fields(sample, root) | {"error": image})
                    bad += 1
                    on_image()
                else:
                    images.append(image)
                    readable.append(sample)
            start = time.perf_counter()
            squared = [_squared(image, image_size) for image in images]
            found = engine(squared) if images else []
            seconds = (time.perf_counter() - start) / max(1, len(images))
            drawn = _sampled(engine, squared, samples_per_image, readable)
            for sample, image, localization, labels in zip(readable, images, found, drawn, strict=True):
                thumb = f"thumbs/{file_stem(sample.id)}.webp"
                save_thumbnail(store.folder / thumb, image)
                row = sample_fields(sample, root) | localization_fields(localization, store.folder, sample.id)
                row["image_size"] = [image.height, image.width]
                row |= {} if labels is None else {"sampled": labels}
                writer.append(row | {"thumb": thumb, "seconds": round(seconds, 4)})
                on_image()
    return bad


def _sampled(
    engine: Engine, images: Sequence[Image.Image], n: int, samples: Sequence[Sample]
) -> list[list[int | None] | None]:
    """The labels of ``n`` sampled answers to each image; the seed is of the batch's images."""
    if not n or not images:
        return [None] * len(images)
    responses = engine.sample(images, n, zlib.crc32(samples[0].id.encode()))
    return [[engine.localizer.label_of(ids) for ids in of_image] for of_image in responses]


def finish(
    samples: Sequence[Sample],
    store: ResultStore,
    config: SummaryConfig,
    *,
    mask_setting: MaskSetting = MaskSetting(),
    references: dict[str, str] | None = None,
    sbert_model: str | None = None,
    extra: dict[str, Any] | None = None,
    workers: int = 2,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Write results.json and images.json once every sample has a row, by whichever shard; None before that."""
    by_id = {sample.id: sample for sample in samples}
    rows = [row for row in store.rows() if row["id"] in by_id]
    if len(rows) < len(by_id):
        return None
    if references is not None:
        score_texts([r for r in rows if not r.get("error")], references, sbert_model)

    truth = GroundTruth(samples, mask_setting, workers)

    def mask_of(row: dict[str, Any]) -> np.ndarray | None:
        sample = by_id[row["id"]]
        return truth.mask(sample) if sample.label else np.zeros(row["image_size"], bool)  # spares opening the image

    more: dict[str, Any] = {"references": references, "on_image": on_image, "workers": workers}
    results, images = summarise(rows, store.folder, mask_of, config, **more)
    results |= {"masks": truth.to_dict()} | (extra or {})
    write_json(store.folder / "images.json", images)
    write_json(store.folder / "results.json", results)
    return results


def found_files(
    dataset: Dataset, root: Path, everything: Sequence[Sample], chosen: Sequence[Sample], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Account and remarks of the data set's folder, for results.json."""
    found, files = dataset.account(root, everything), {s.id: relative_id(s.path, root) for s in everything}
    found.skip((files[i] for i in files.keys() - {s.id for s in chosen}), "another split, or beyond --limit")
    for row in rows:
        if row.get("error") and row["id"] in files:
            found.refuse([files[row["id"]]], row["error"])
    return {"account": found.to_dict(), "remarks": remarks(chosen, found)}


def read_references(path: Path) -> dict[str, str]:
    """Reference reasoning by sample id, from JSON lines ``{"id": ..., "reasoning": ...}``."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"references: cannot read {path}: {error}") from error
    references = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                references[str(row["id"])] = str(row["reasoning"])
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(f'{path}, line {number} must be {{"id": ..., "reasoning": ...}}.') from None
    return references


def _read_image(path: Path, depth: Depth | None) -> Image.Image | str:
    """The image, or the reason why it cannot be read."""
    try:
        return load_image(path, depth)
    except UnreadableImage as error:
        return error.reason


def _squared(image: Image.Image, size: int | None) -> Image.Image:
    return image if size is None else image.resize((size, size), Image.Resampling.BICUBIC)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    yield from (samples[k : k + size] for k in range(0, len(samples), size))
