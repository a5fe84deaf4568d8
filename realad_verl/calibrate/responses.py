"""Step one, the long one: sample responses and read every head of them once; each batch is kept on disk."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from realad_verl.calibrate.images import ImageReader, Labelled
from realad_verl.calibrate.read import Reading, Response
from realad_verl.evaluate.engines import Engine
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence, compute_evidence_batch, no_evidence

PARTS = "parts"


@dataclass(frozen=True)
class Sampled:
    """One image's responses, and what the default read-out says of each.

    maps_HP: its mean map of every head on ``grid``, None where no response had evidence; heads: their (layer, head).
    jaccard, fallback, answer, formed: one entry a response (J None: none; answer 1 yes, 0 no, None neither).
    map_P: the mean of the responses' default anomaly maps.
    """

    image: Labelled
    ids: list[list[int]]
    heads: list[tuple[int, int]]
    maps_HP: Tensor | None
    grid: tuple[int, int]
    map_P: Tensor | None
    jaccard: list[float | None]
    fallback: list[bool]
    answer: list[int | None]
    formed: list[bool]


def sample_and_read(
    images: Sequence[Labelled],
    engine: Engine,
    reading: Reading,
    out: Path,
    *,
    n: int,
    seed: int,
    batch_size: int,
    on_image: Callable[[int], None] = lambda count: None,
) -> tuple[list[Sampled], dict[str, float]]:
    """Every image's responses and maps, and the seconds spent ("generating", "reading") in batches made now.

    A batch that is on disk in ``out`` is not made again. ``reading`` has the default read-out.
    """
    decode, seconds, found = ImageReader(), {"generating": 0.0, "reading": 0.0}, []
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        path = out / PARTS / f"{start:06d}.pt"
        if not path.exists():
            pictures = [decode(image) for image in batch]
            began = time.perf_counter()
            ids = engine.sample(pictures, n, seed * 1_000_003 + start)
            seconds["generating"] += time.perf_counter() - began
            began = time.perf_counter()
            responses, maps = reading(pictures, ids, by_head=True)
            part = [_packed(*one, reading.builder.cfg) for one in zip(ids, responses, maps, strict=True)]
            seconds["reading"] += time.perf_counter() - began
            torch.save(part, path.with_suffix(f".{os.getpid()}.partial"))
            os.replace(path.with_suffix(f".{os.getpid()}.partial"), path)
        found += [Sampled(image, **one) for image, one in zip(batch, torch.load(path), strict=True)]
        on_image(len(batch))
    return found, seconds


def _packed(ids: list[list[int]], responses: list[Response], maps: Any, method: MethodConfig) -> dict[str, Any]:
    """What is kept of one image, as plain values and tensors (torch.load reads no other)."""
    evidence = evidence_of(responses, method)
    stacked = None if maps.grid is None else maps.stacked(maps.grid)
    heads, maps_HP = stacked if stacked is not None else ([], None)
    there = [e.anomaly_map_P for e in evidence if e.anomaly_map_P is not None]
    return {
        "ids": [list(some) for some in ids],
        "heads": heads,
        "maps_HP": maps_HP,
        "grid": maps.grid or (0, 0),
        "map_P": torch.stack(there).mean(0) if there else None,
        "jaccard": [e.jaccard for e in evidence],
        "fallback": [e.fallback for e in evidence],
        "answer": [response.answer for response in responses],
        "formed": [response.well_formed for response in responses],
    }


def evidence_of(
    responses: Sequence[Response], method: MethodConfig, relative: Callable[[Response], Tensor] | None = None
) -> list[Evidence]:
    """The evidence of read responses; ``relative`` makes their rows relative to a baseline."""
    there = [r for r in responses if r.rows_RP is not None and r.s_t_R is not None]
    triples = [(r.rows_RP if relative is None else relative(r), r.s_t_R, r.grid) for r in there]
    found = iter(compute_evidence_batch(triples, method))  # type: ignore[arg-type]
    return [next(found) if r.rows_RP is not None else no_evidence(r.problem or "", 0) for r in responses]
