"""The attention loss in verl's engine: a step's gradient is autograd's through eager attention of the same weights."""

import pytest
import torch
from test_engine import run_ranks, slow
from transformers import AutoModelForImageTextToText, AutoTokenizer

from realad_verl.backbones.pieces import response_pieces
from realad_verl.method.baseline import smooth_maps
from realad_verl.method.config import SpanConfig
from realad_verl.method.spans import reasoning_tokens
from realad_verl.tiny import tiny_model_dir

GRID = (12, 12)
LOSS = {"weight": 0.7, "min_count": 1.0}


def eager_model(lora: dict | None):
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), attn_implementation="eager")
    return model.float().eval()


def eager_rows(model, sample: dict) -> tuple[torch.Tensor, list[int]]:
    """[R, P] shares of the image cells of the reasoning tokens, with a gradient through where each head looks."""
    ids, inputs = sample["input_ids"], sample["multi_modal_inputs"]
    output = model(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids)[None],
        position_ids=sample["position_ids"][:, None],
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        output_attentions=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model_dir()))
    reasoning = reasoning_tokens(response_pieces(tokenizer, sample["responses"].tolist()), SpanConfig())
    at = torch.tensor(reasoning, dtype=torch.long) + len(sample["prompts"])
    image = ids == model.config.image_token_id
    total = torch.zeros(())
    for layer in output.attentions:
        p_HRP = layer[0][:, at][..., image]
        mass = p_HRP.sum(-1, keepdim=True)
        total = total + (mass.detach() * p_HRP / mass).sum(0)
    return total / total.sum(-1, keepdim=True), sample["responses"][reasoning].tolist()


def expected(model, samples: list[dict]) -> tuple[dict[str, torch.Tensor], float]:
    """Gradient and value of weight x mean over all reasoning tokens of KL(T || a)."""
    losses = []
    for sample in samples:
        rows_RP, ids = eager_rows(model, sample)
        if not ids:
            continue
        label = int(sample["reward_model"]["ground_truth"] == "yes")
        target = torch.linspace(1, 5 + label, 144) ** 2
        target = target / target.sum()
        losses.append((target * (target.log() - rows_RP.log())).sum(-1))
    loss = torch.cat(losses).mean()
    (LOSS["weight"] * loss).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, float(loss.detach())


def expected_map(model, samples: list[dict], which: int) -> torch.Tensor:
    """M of one response with the baseline of one pass over all normal ones, written out."""
    with torch.no_grad():
        rows = [eager_rows(model, sample) for sample in samples]
    normal = [row for row, s in zip(rows, samples, strict=True) if s["reward_model"]["ground_truth"] == "no"]
    words = torch.tensor([token for _, ids in normal for token in ids])
    shares = torch.cat([rows_RP for rows_RP, ids in normal if ids])
    ratios = []
    for row_P, token in zip(*rows[which], strict=True):
        own = shares[words == token]
        mean = own.mean(0) if len(own) else shares.mean(0)
        ratios.append(row_P / mean.clamp(min=0.01 / 144))
    map_P = smooth_maps(torch.stack(ratios).mean(0), GRID, 1.0)
    return map_P / map_P.sum()


JOBS = [
    {"world": 2, "micro": 1, "checkpointing": True},
    slow({"world": 1, "checkpointing": False}),
    slow({"world": 1, "dynamic": True}),
    slow({"world": 1, "packed": True, "checkpointing": True}),
    slow({"world": 2, "packed": True, "ulysses": 2}),
]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_gradient_of_one_step_equals_eager(tmp_path, job):
    results = run_ranks(tmp_path, **job, attention=LOSS)
    samples = results[0]["samples"] if job.get("ulysses") else [s for result in results for s in result["samples"]]
    want, value = expected(eager_model(None), samples)
    values = [result["metrics"]["attention_loss/value"] for result in results]
    assert sum(values) / len(values) == pytest.approx(value, rel=1e-4), "verl averages a metric over the ranks"
    for result in results:
        got = result["gradients"]
        scale = max(float(w.abs().max()) for w in want.values())
        assert scale > 1e-3 and got.keys() >= want.keys()
        for name, w in want.items():
            assert (got[name] - w).abs().max() <= 1e-5 * max(1.0, scale), name
        assert not any(len(vector) > 2 for vector in result["maps"][0]), "the first pass only fills the baseline"
        before, after = result["baselines"]
        assert before.keys() == after.keys() == {GRID}
        assert all(torch.equal(before[GRID][key], after[GRID][key]) for key in ("ids", "sums", "counts"))
    maps = [m for result in results[: 1 if job.get("ulysses") else None] for m in result["maps"][1]]
    want_map = expected_map(eager_model(None), samples, 0)
    assert torch.allclose(maps[0][2:], want_map, atol=1e-6)
    assert len(maps[3]) == 2, "no reasoning, no map"


@pytest.mark.slow
def test_lora_gets_the_gradient_of_its_merged_weights(tmp_path):
    (result,) = run_ranks(tmp_path, lora_rank=8, attention=LOSS)
    want, _ = expected(eager_model(None), result["samples"])  # B is zero at the start: the weights are the base's
    seen = 0
    for name, got in result["gradients"].items():
        if not name.endswith("lora_B.default.weight"):
            assert not got.any(), name  # A's gradient is zero while B is
            continue
        base = name.removeprefix("base_model.model.").replace(".lora_B.default.weight", ".weight")
        a = result["weights"][name.replace("lora_B", "lora_A")]
        if base not in want:  # the last layer's values, say: no attention comes after them
            assert not got.any(), name
            continue
        scale = float(want[base].abs().max())
        assert (got - 2 * want[base] @ a.T).abs().max() <= 1e-5 * max(1.0, scale), name
        seen += scale > 0
    assert seen > 5
