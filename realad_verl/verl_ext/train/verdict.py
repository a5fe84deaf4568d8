"""What a response earns by its evidence, judged where the evidence is: on the worker, which has label and answer too.

The trainer is one process for all samples of all ranks: it adds numbers, and decodes and parses only what it logs.
"""

# TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportCallIssue=false

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from realad_verl.method.evidence import Evidence
from realad_verl.method.labels import read_label
from realad_verl.method.spans import parse_response
from realad_verl.verl_ext.names import CUT, REPLACED
from realad_verl.verl_ext.train import wire


def judge(text: str, ground_truth: Any, jaccard: float | None, method: MethodConfig) -> wire.Verdict:
    """Label, whether the answer of ``text`` is right, and R_cons (CGRO step 4): 0 where there is no label."""
    parsed, label = parse_response(text, method.spans), read_label(ground_truth)
    right = label is not None and read_label(parsed.answer) == label
    score = consistency_score(jaccard, label, parsed.well_formed, method.consistency, accurate=right)
    return wire.Verdict(label, right, score)


def verdicts(micro_batch: TensorDict, evidences: Sequence[Evidence], builder: EvidenceBuilder) -> dict[str, Tensor]:
    """The verdict of each sample of a micro-batch, as a field of the worker's output."""
    responses = micro_batch["responses"].unbind()
    truths = (row.get("ground_truth") for row in payloads(micro_batch, "reward_model", len(responses)))
    texts = (builder.tokenizer.decode(ids, skip_special_tokens=True) for ids in responses)
    judged = [judge(*each, builder.cfg) for each in zip(texts, truths, (e.jaccard for e in evidences), strict=True)]
    return {wire.VERDICT: wire.jagged([wire.pack_verdict(verdict) for verdict in judged])}


def notes(micro_batch: TensorDict) -> dict[str, Tensor]:
    """What the trainer is to know of each sample's rollout: the parts of its reward, whether it was cut or replaced.

    ``extra_fields`` and ``extra_info`` hold the prompt's image too: they stay here, some hundred bytes travel.
    """
    n = len(micro_batch["responses"].unbind())
    pairs = zip(payloads(micro_batch, "extra_fields", n), payloads(micro_batch, "extra_info", n), strict=True)
    return {wire.NOTES: wire.jagged([wire.pack_notes(_note(fields, info)) for fields, info in pairs])}


def _note(extra_fields: Mapping[str, Any], extra_info: Mapping[str, Any]) -> dict[str, float]:
    given = extra_fields.get("reward_extra_info") or {}
    parts = {name: float(v) for name, v in given.items() if isinstance(v, int | float) and name != "score"}
    return parts | {CUT: float(bool(extra_fields.get(CUT))), REPLACED: float(REPLACED in extra_info)}


def payloads(micro_batch: TensorDict, field: str, n: int) -> list[Mapping[str, Any]]:
    """A non-tensor field as one mapping a sample; empty ones where the batch or the sample has none."""
    items = micro_batch.get(field, None)
    found = [wire.payload(item) for item in items] if items is not None else [None] * n
    return [item if isinstance(item, Mapping) else {} for item in found]
