import sys
from pathlib import Path

import numpy as np
import torch

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.config import MethodConfig
from realad_verl.tiny.arch import IMAGE_SIZE, new_model
from realad_verl.tiny.rollout import TinyRollout

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from learning_attention import TaughtEvidences
from learning_loop import Evidences, LoopConfig, pad


def test_first_step_fills_the_baseline_and_the_second_teaches():
    model, processor = new_model(3)
    rollout = TinyRollout(model.eval(), processor)
    loss = AttentionLossConfig(weight=1.0, min_count=1.0)
    cfg = LoopConfig(MethodConfig(), 0.0, n=2, attention=loss)
    images = torch.stack([torch.from_numpy(ProceduralDefects(IMAGE_SIZE)[i].image) for i in range(3)])
    encode = processor.tokenizer.encode
    texts = ["<think> A small dark scratch is visible at the top. </think>", "<think> I find no damage on the wood."]
    responses = [encode(text) for text in [*texts, *texts, texts[0], "no think"]]
    labels, right = np.array([1, 1, 0, 0, 1, 1]), np.array([True, False, True, True, False, False])
    taught = TaughtEvidences(rollout, model, cfg)
    log_p, plans, rows = taught.read(images, responses, pad(responses, 2))
    plain_p, _, plain = Evidences(rollout, MethodConfig()).read(images, responses, pad(responses, 2))
    assert torch.equal(log_p, plain_p) and all(torch.equal(a, b) for a, b in zip(rows, plain, strict=True))
    assert taught.attention_loss(labels, right)[0] is None
    taught.read(images, responses, pad(responses, 2))
    value, logged = taught.attention_loss(labels, right)
    assert value is not None and value.item() > 0 and logged["attention_loss"] == value.item()
    value.backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any("q_proj" in name for name in moved) and not any("lm_head" in name for name in moved)
