"""What a model says about one image, and how it is put together from response, evidence and score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from realad_verl.method.anomaly_map import resize_map
from realad_verl.method.config import SpanConfig
from realad_verl.method.evidence import Evidence
from realad_verl.method.labels import read_label
from realad_verl.method.spans import parse_response


@dataclass(frozen=True)
class TokenEvidence:
    """One reasoning token: its text, raw S_T and S_I, weight w_r, and whether the map is made of it."""

    text: str
    s_t: float
    s_i: float
    weight: float
    kept: bool


@dataclass(frozen=True)
class Localization:
    """What a model says about one image.

    ``image_size``: (height, width). ``answer``: None where the response gives no single yes or no, and then so is
    ``pred_label`` (1 = anomalous). ``pred_score``: P(yes) / (P(yes) + P(no)) where the answer begins, in [0, 1];
    without an answer, after an opening answer tag put behind the response [ours]; None for NaN logits. ``problem``:
    why evidence is missing or partial (table in realad_verl.evidence); ``format_problem``: how the response departs
    from the format (table in realad_verl.method.spans).
    ``anomaly_map`` [H, W] float32 is ``grid_map`` [rows, cols] resized to the image; attention mass, not a probability.
    """

    image_size: tuple[int, int]
    answer: str | None
    pred_label: int | None
    pred_score: float | None
    response: str
    reasoning: str | None
    well_formed: bool
    problem: str | None
    format_problem: str | None
    anomaly_map: np.ndarray | None
    grid_map: np.ndarray | None
    tokens: list[TokenEvidence]
    jaccard: float | None
    n_kept: int
    fallback: bool


def localization(
    image: Image.Image,
    pieces: Sequence[str],
    reasoning: Sequence[int],
    evidence: Evidence,
    score: float,
    spans: SpanConfig,
) -> Localization:
    """The result of one image: ``pieces`` are the response's tokens, ``reasoning`` those reasoned with, by index."""
    text = "".join(pieces)
    parsed = parse_response(text, spans)
    map_P, size = evidence.anomaly_map_P, (image.height, image.width)
    columns = (evidence.s_t_R, evidence.s_i_R, evidence.weights_R, evidence.kept_R)
    values = zip(*(column.tolist() for column in columns), strict=True)
    return Localization(
        image_size=size,
        answer=parsed.answer,
        pred_label=read_label(parsed.answer),
        pred_score=score if math.isfinite(score) else None,
        response=text,
        reasoning=parsed.reasoning,
        well_formed=parsed.well_formed,
        problem=evidence.problem,
        format_problem=parsed.problem,
        anomaly_map=None if map_P is None else resize_map(map_P, evidence.grid, size).cpu().numpy(),
        grid_map=None if map_P is None else map_P.reshape(evidence.grid).cpu().numpy(),
        tokens=[TokenEvidence(pieces[index], *value) for index, value in zip(reasoning, values, strict=True)],
        jaccard=evidence.jaccard,
        n_kept=evidence.n_kept,
        fallback=evidence.fallback,
    )
