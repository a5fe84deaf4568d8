import sys
from pathlib import Path

import pytest
import torch

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.data.tiny_arch import IMAGE_SIZE, new_model
from realad_verl.data.tiny_rollout import TinyRollout

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from learning_loop import PackedForward, group_advantages


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


def test_group_advantages():
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    assert advantages[0].tolist() == pytest.approx([-0.866, 0.866, -0.866, 0.866], abs=1e-3)
    assert not advantages[1].any(), "a group of equal rewards teaches nothing"
