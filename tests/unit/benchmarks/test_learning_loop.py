import sys
from pathlib import Path

import pytest
import torch

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.tiny.arch import IMAGE_SIZE, new_model
from realad_verl.tiny.rollout import TinyRollout

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from learning_loop import Evidences, PackedForward, group_advantages, pad


def test_packed_responses_have_the_log_probabilities_of_separate_ones():
    model, processor = new_model(3)
    rollout = TinyRollout(model.eval(), processor)
    images = torch.stack([torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[i].image) for i in range(2)])
    responses = rollout.sample(images, n=3, max_tokens=7, seed=0)
    responses[1] = responses[1][:4]
    with torch.no_grad():
        logits, ids = rollout.logits(images.repeat_interleave(3, 0), responses)
        packed = PackedForward(rollout)(model, images, ids.view(2, 3, -1)).flatten(0, 1)
    alone = logits.log_softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(packed[ids >= 0], alone[ids >= 0], atol=1e-4)
    assert not packed[ids < 0].any()


def test_evidence_read_from_the_packed_forward_is_that_of_separate_ones():
    model, processor = new_model(3)
    rollout, cfg = TinyRollout(model.eval(), processor), MethodConfig()
    images = torch.stack([torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[i].image) for i in range(2)])
    encode = processor.tokenizer.encode
    texts = ["<think> A small dark scratch is visible at the top. </think>", "<think> I find no damage on the wood."]
    responses = [encode(texts[0]), encode(texts[1]), encode("no think"), encode(texts[0])]
    plans, rows, _, _ = rollout.read(images.repeat_interleave(2, 0), responses, cfg)
    alone = EvidenceBuilder(model.config, rollout.tokenizer, cfg).reduce(plans, rows)
    log_p, packed = Evidences(rollout, cfg)(images, responses, pad(responses, 2))
    assert log_p.requires_grad
    assert [e.problem for e in packed] == [None, None, "no_reasoning", None]
    for a, b in zip(alone, packed, strict=True):
        assert a.jaccard == (None if b.jaccard is None else pytest.approx(b.jaccard))
        if a.anomaly_map_P is not None:
            assert torch.allclose(a.anomaly_map_P, b.anomaly_map_P, atol=1e-6)


def test_group_advantages():
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    assert advantages[0].tolist() == pytest.approx([-0.866, 0.866, -0.866, 0.866], abs=1e-3)
    assert not advantages[1].any(), "a group of equal rewards teaches nothing"
