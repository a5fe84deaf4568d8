"""Evidence on its way from the worker to the trainer: small float vectors, one a sample and field.

verl moves worker outputs through TransferQueue as jagged tensors with one ragged dimension, and hands equal-length
samples back as one dense tensor. So each field is one vector a sample, never empty, and what unpacks accepts both.

| field              | floats            | content                                                            |
|--------------------|-------------------|--------------------------------------------------------------------|
| evidence_summary   | 6                 | Jaccard (NaN: none), reasoning tokens, kept, fallback, problem, ms |
| evidence_map       | 2 + P             | grid rows, grid columns, the anomaly map (P = 0 where there is none) |
| evidence_tokens    | 1 + 5 R           | R, then token index in the response, S_T, S_I, weight, kept        |
| evidence_verdict   | 3                 | label (NaN: none), whether the answer is right, R_cons             |
| evidence_answer    | 2                 | P(yes) (NaN: no answer), well formed: of validation, when asked for |
| rollout_notes      | bytes, not floats | JSON: parts of the reward by name, whether it was cut or replaced  |

The reward needs the verdict (12 bytes a sample), the metrics the summary (24) and the notes (some 100). Map and tokens
are for logging, sent only when asked for.
"""

# Jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from realad_verl.method.evidence import Evidence

SUMMARY = "evidence_summary"
DETAIL = ("evidence_map", "evidence_tokens")
VERDICT = "evidence_verdict"
ANSWER = "evidence_answer"
NOTES = "rollout_notes"
# Wire codes of Evidence.problem; 0 means none. Append only: the number is what travels.
PROBLEMS = (
    None,
    "no_image",
    "no_words",
    "no_reasoning",
    "too_few_tokens",
    "non_finite",
    "multiple_images",
    "refused",
    "constant_rows",
)


@dataclass(frozen=True)
class Summary:
    """What the reward and the metrics need of one sample."""

    jaccard: float | None
    n_reasoning: int
    n_kept: int
    fallback: bool
    problem: str | None
    milliseconds: float


@dataclass(frozen=True)
class Verdict:
    """``label`` 0, 1 or None; whether the answer equals it; ``consistency``: R_cons, without its weight."""

    label: int | None
    right: bool
    consistency: float


@dataclass(frozen=True)
class Answer:
    """``share``: P(yes) / (P(yes) + P(no)) where the answer begins, None without one."""

    share: float | None
    well_formed: bool


@dataclass(frozen=True)
class Detail:
    """What a picture of one sample needs. ``tokens``: [5, R] index, S_T, S_I, weight, kept; ``map_HW`` None: no map."""

    map_HW: Tensor | None
    tokens: Tensor


def pack_summary(evidence: Evidence, milliseconds: float) -> Tensor:
    """[6] float32, the summary of one sample; ``milliseconds`` is its share of the micro-batch's evidence time."""
    jaccard = math.nan if evidence.jaccard is None else evidence.jaccard
    problem = PROBLEMS.index(evidence.problem)
    values = [jaccard, evidence.n_reasoning, evidence.n_kept, float(evidence.fallback), problem, milliseconds]
    return torch.tensor(values, dtype=torch.float32)


def unpack_summaries(field: Tensor) -> list[Summary]:
    """A batch's summaries; the inverse of :func:`pack_summary`, for all samples at once."""
    return [_summary(*row) for row in rows(field).tolist()]


def _summary(jaccard, n_reasoning, n_kept, fallback, problem, milliseconds) -> Summary:
    return Summary(
        jaccard=None if math.isnan(jaccard) else jaccard,
        n_reasoning=int(n_reasoning),
        n_kept=int(n_kept),
        fallback=bool(fallback),
        problem=PROBLEMS[int(problem)],
        milliseconds=milliseconds,
    )


def pack_verdict(verdict: Verdict) -> Tensor:
    """[3] float32."""
    label = math.nan if verdict.label is None else verdict.label
    return torch.tensor([label, verdict.right, verdict.consistency], dtype=torch.float32)


def unpack_verdicts(field: Tensor) -> list[Verdict]:
    """A batch's verdicts; the inverse of :func:`pack_verdict`."""
    return [Verdict(None if math.isnan(y) else int(y), bool(right), cons) for y, right, cons in rows(field).tolist()]


def pack_answer(answer: Answer) -> Tensor:
    """[2] float32."""
    return torch.tensor([math.nan if answer.share is None else answer.share, answer.well_formed], dtype=torch.float32)


def unpack_answers(field: Tensor) -> list[Answer]:
    """A batch's answers; the inverse of :func:`pack_answer`."""
    return [Answer(None if math.isnan(share) else share, bool(formed)) for share, formed in rows(field).tolist()]


def pack_notes(notes: Mapping[str, float]) -> Tensor:
    """[bytes] uint8."""
    return torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)


def unpack_notes(field: Tensor) -> list[dict[str, float]]:
    """A batch's notes; the inverse of :func:`pack_notes`."""
    values, offsets = flat(field)
    text, ends = values.numpy().tobytes(), offsets.tolist()
    return [json.loads(text[start:end]) for start, end in pairwise(ends)]


def pack_detail(evidence: Evidence, reasoning: Sequence[int]) -> dict[str, Tensor]:
    """The two detail vectors of one sample; ``reasoning`` are the R token indices within the response."""
    empty = torch.zeros(0)
    map_P = evidence.anomaly_map_P if evidence.anomaly_map_P is not None else empty
    rows = [torch.tensor(list(reasoning)), evidence.s_t_R, evidence.s_i_R, evidence.weights_R, evidence.kept_R]
    flat = [row.reshape(-1).float().cpu() for row in rows]
    return {
        "evidence_map": torch.cat([torch.tensor(evidence.grid, dtype=torch.float32), map_P.float().cpu()]),
        "evidence_tokens": torch.cat([torch.tensor([float(len(reasoning))]), *flat]),
    }


def unpack_detail(map_vector: Tensor, token_vector: Tensor) -> Detail:
    """The inverse of :func:`pack_detail`."""
    rows, cols = int(map_vector[0]), int(map_vector[1])
    map_HW = map_vector[2:].reshape(rows, cols) if map_vector.numel() > 2 else None
    return Detail(map_HW=map_HW, tokens=token_vector[1:].reshape(5, int(token_vector[0])))


def jagged(vectors: Sequence[Tensor]) -> Tensor:
    """One vector a sample as the jagged tensor that verl wants in ``model_output``."""
    return torch.nested.as_nested_tensor(list(vectors), layout=torch.jagged)


def flat(field: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of a jagged or dense field one after the other, and where each begins and the last ends [B + 1]."""
    if field.is_nested:
        return field.values(), field.offsets()
    return field.reshape(-1), torch.arange(field.shape[0] + 1) * (field.numel() // max(field.shape[0], 1))


def rows(field: Tensor) -> Tensor:
    """[B, n] of a field whose samples all have n values, jagged or dense."""
    values, offsets = flat(field)
    return values.reshape(len(offsets) - 1, -1)


def payload(item):
    """The payload of one sample's non-tensor field, whichever container TransferQueue or verl hands it back in."""
    return item if isinstance(item, dict) else getattr(item, "data", item)
