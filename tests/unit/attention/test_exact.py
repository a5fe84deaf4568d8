"""The rows are those of a float64 softmax of the same q and k, whatever precision the forward around them has."""

from contextlib import nullcontext

import pytest
import torch
from attention_models import TEXT, causal_model, read
from exact_reference import exact_beside, means_over_layers

from realad_verl.attention import flash_reference
from realad_verl.attention.readout import RowRequest

LENGTHS, WIDTH = [150, 90, 200], 200
WITHIN = 3e-5  # absolute, of probabilities


def model_with_offset(attention: str, offset: float, dtype: torch.dtype):
    """Biases of q and k that put ``offset`` on every logit: they lie in the pair of dimensions that rotates slowest."""
    model = causal_model(hidden_size=64, head_dim=16, max_position_embeddings=512, attention=attention)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            bias = projection.bias.data.zero_().view(-1, 16)
            bias[:, 7] = (offset * 16**0.5) ** 0.5
    return model.to(dtype)


def biased_model(attention: str, dtype: torch.dtype):
    """Large random biases of q and k."""
    model = causal_model(hidden_size=64, head_dim=16, max_position_embeddings=512, attention=attention)
    torch.manual_seed(2)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.bias.data.normal_(std=15)
    return model.to(dtype)


def batch(layout: str) -> tuple[dict, list[RowRequest]]:
    """Three sequences, padded on a side or packed, and rows at their ends to columns all over their first half."""
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(10, TEXT["vocab_size"], (length,), generator=generator) for length in LENGTHS]
    places = []
    if layout == "packed":
        positions = torch.cat([torch.arange(length) for length in LENGTHS])
        inputs = {"input_ids": torch.cat(sequences)[None], "position_ids": positions[None], "use_cache": False}
        starts = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
        places = [(0, start) for start in starts[:-1]]
    else:
        ids, mask = (torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long) for _ in range(2))
        for row, (length, sequence) in enumerate(zip(LENGTHS, sequences, strict=True)):
            start = WIDTH - length if layout == "left" else 0
            ids[row, start : start + length], mask[row, start : start + length] = sequence, 1
            places.append((row, start))
        inputs = {"input_ids": ids, "attention_mask": mask}
    requests = [
        RowRequest(row, start, length, torch.arange(length - 40, length), torch.arange(2, length // 2))
        for (row, start), length in zip(places, LENGTHS, strict=True)
    ]
    return inputs, requests


def check(model, layout: str, autocast: bool) -> None:
    inputs, requests = batch(layout)
    forward = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with flash_reference.as_flash_attention_2(), forward, exact_beside() as found:
        rows, _ = read(model, requests, inputs)
    assert [len(layers) for layers in found.values()] == [3]
    for got, want in zip(rows, means_over_layers(found), strict=True):
        assert got.dtype == torch.float32
        assert want.max() > 0.02 and want.sum(1).min() > 1e-3  # not a comparison of nothing
        assert (got.double() - want).abs().max() <= WITHIN


LAYOUTS = [
    ("sdpa", "left"),
    ("sdpa", "right"),
    ("sdpa", "packed"),
    ("flash_attention_2", "left"),
    ("flash_attention_2", "packed"),
]


@pytest.mark.parametrize("offset", [0, 100, 1000])
@pytest.mark.parametrize(("attention", "layout"), LAYOUTS)
def test_rows_are_exact_under_autocast_whatever_the_offset_of_the_logits(attention, layout, offset):
    """So does verl run bf16 training."""
    check(model_with_offset(attention, offset, torch.float32), layout, autocast=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("attention", "layout"), [LAYOUTS[0], LAYOUTS[-1]])
def test_rows_are_exact_in_weights_of_any_precision(attention, layout, dtype):
    check(model_with_offset(attention, 1000, dtype), layout, autocast=False)


@pytest.mark.parametrize(("attention", "layout"), LAYOUTS)
def test_rows_are_exact_under_large_biases(attention, layout):
    check(biased_model(attention, torch.float32), layout, autocast=True)


@pytest.mark.parametrize(
    "lower",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    ],
    ids=["high", "medium", "allow_tf32", "cuda tf32", "mkldnn bf16", "all tf32"],
)
def test_global_switches_to_lower_precision_change_nothing_and_stay_as_they_were(lower):
    from realad_verl.attention.precision import full_precision

    a, b = torch.randn(2, 64, 300, generator=torch.Generator().manual_seed(0)), torch.randn(2, 300, 64)
    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    kept = [x.fp32_precision for x in (torch.backends, *matmuls)]
    want = torch.bmm(a, b)
    try:
        lower()
        before = _switches()
        assert "tf32" in before or "bf16" in before
        with full_precision("cpu"):
            assert [m.fp32_precision for m in matmuls] == ["ieee", "ieee"]
            assert torch.equal(torch.bmm(a, b), want)
            assert not torch.is_autocast_enabled("cpu")
        assert _switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, value in zip((torch.backends, *matmuls), kept, strict=True):
            backend.fp32_precision = value


def _switches() -> list:
    """What the old and the new way of asking say; None where torch refuses to answer."""

    def asked(question):
        try:
            return question()
        except RuntimeError:  # "mix of the legacy and new APIs"
            return None

    return [
        asked(torch.get_float32_matmul_precision),
        asked(lambda: torch.backends.cuda.matmul.allow_tf32),
        *(x.fp32_precision for x in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)),
    ]
