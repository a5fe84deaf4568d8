"""A response judged on the worker, and what the trainer makes of it, against one sample after the other."""

import itertools
import random

import pytest
import torch

from realad_verl.method.config import ConsistencyConfig, MethodConfig
from realad_verl.method.consistency import consistency_reward
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.metrics import scored
from realad_verl.verl_ext.train.verdict import judge
from realad_verl.verl_ext.train.wire import Verdict, jagged

TEXTS = {
    "yes": "<think>a scratch</think><answer>yes</answer>",
    "no": "<think>all fine</think><answer>no</answer>",
    "malformed": "a scratch, yes",
}


@pytest.mark.parametrize("gate", ["none", "format", "accuracy"])
def test_who_may_earn_it(gate):
    cfg = ConsistencyConfig(gate=gate)
    for (name, text), (truth, label), jaccard in itertools.product(
        TEXTS.items(), (("yes", 1), ("no", 0), ("maybe", None), (None, None)), (0.1, 0.9, None)
    ):
        got = judge(text, truth, jaccard, MethodConfig(consistency=cfg))
        right = label is not None and name == {1: "yes", 0: "no"}[label]
        may = {"none": True, "format": name != "malformed", "accuracy": right}[gate]
        want = consistency_reward(jaccard, label, cfg) if may and label is not None else 0.0
        assert got == Verdict(label, right, want), (name, truth, jaccard)


def batch(n: int, equal: bool):
    """Fields of ``n`` samples as TransferQueue hands them back, and the samples one by one."""
    draw = random.Random(0)
    lengths = [7 if equal else draw.randint(1, 30) for _ in range(n)]
    rewards = [torch.zeros(length) for length in lengths]
    for vector in rewards:
        vector[-1] = draw.choice([0.0, 1.0, 2.0])
    judged = [Verdict(draw.choice([0, 1, None]), draw.random() < 0.5, draw.choice([0.0, 1.0, 0.25])) for _ in range(n)]
    notes = [{"format_reward": float(draw.random() < 0.5), **({"other": 0.5} if i % 2 else {})} for i in range(n)]
    summaries = [torch.tensor([draw.random(), 9.0, 5.0, 0.0, 0.0, 1.5]) for _ in range(n)]
    columns = summaries, [wire.pack_verdict(v) for v in judged], [wire.pack_notes(note) for note in notes], rewards
    fields = [jagged(vectors) for vectors in columns]
    if equal:
        fields = [
            torch.stack(vectors) if len({len(v) for v in vectors}) == 1 else jagged(vectors) for vectors in columns
        ]
    return fields, list(zip(judged, notes, rewards, summaries, strict=True))


@pytest.mark.parametrize("equal", [False, True])
def test_a_batch_equals_its_samples(equal):
    fields, samples = batch(64, equal)
    real = [i % 5 != 0 for i in range(64)]
    before = [vector.clone() for *_, vector, _ in samples]
    got, rm_scores = scored(*fields, 0.5, real)
    for i, (sample, vector) in enumerate(zip(got, rm_scores.unbind(), strict=True)):
        judged, note, reward, summary = samples[i]
        want = reward.clone()
        want[-1] += 0.5 * judged.consistency if real[i] else 0.0
        assert torch.equal(vector, want) and sample.total == float(want.sum())
        assert (sample.label, sample.right, sample.consistency) == (judged.label, judged.right, judged.consistency)
        assert sample.other == note and sample.summary.jaccard == float(summary[0])
        assert torch.equal(reward, before[i])  # the batch's own scores are as they were
