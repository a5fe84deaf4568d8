"""Evidence on its way from the worker to the trainer: small float vectors, one a sample and field.

verl moves worker outputs through TransferQueue as jagged tensors with one ragged dimension, and hands equal-length
samples back as one dense tensor. So each field is one vector a sample, never empty, and :func:`unpack` accepts both.

| field              | floats            | content                                                            |
|--------------------|-------------------|--------------------------------------------------------------------|
| evidence_summary   | 6                 | Jaccard (NaN: none), reasoning tokens, kept, fallback, problem, ms |
| evidence_map       | 2 + P             | grid rows, grid columns, the anomaly map (P = 0 where there is none) |
| evidence_tokens    | 1 + 5 R           | R, then token index in the response, S_T, S_I, weight, kept        |

The reward needs the summary alone (24 bytes a sample). Map and tokens are for logging, sent only when asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realad_verl.method.evidence import Evidence

SUMMARY = "evidence_summary"
DETAIL = ("evidence_map", "evidence_tokens")
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


def unpack_summary(vector: Tensor) -> Summary:
    """The inverse of :func:`pack_summary`."""
    jaccard, n_reasoning, n_kept, fallback, problem, milliseconds = vector.tolist()
    return Summary(
        jaccard=None if math.isnan(jaccard) else jaccard,
        n_reasoning=int(n_reasoning),
        n_kept=int(n_kept),
        fallback=bool(fallback),
        problem=PROBLEMS[int(problem)],
        milliseconds=milliseconds,
    )


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


def payload(item):
    """The payload of one sample's non-tensor field, whichever container TransferQueue or verl hands it back in."""
    return item if isinstance(item, dict) else getattr(item, "data", item)
