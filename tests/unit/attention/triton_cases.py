"""Cases for the fused kernels, against `rows.add_head_sum`: run by test_triton_kernel.py, interpreted or on a GPU.

Not collected by itself: without a GPU, TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import math

import pytest
import torch

from realad_verl.attention import flash_reference
from realad_verl.attention.calls import KernelCall
from realad_verl.attention.layout import RowRequest, place
from realad_verl.attention.pieces import cut, whole
from realad_verl.attention.rows import add_fused, add_head_sum, new_sums

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
G, N = 2, 90
H = 2 * G


def call_of(width: int, batch: int = 2, dtype: torch.dtype = torch.float32, share: int = 2, **options) -> KernelCall:
    torch.manual_seed(0)
    query = 3 * torch.randn(batch, N, G * share, width).to(DEVICE, dtype)
    query = query.transpose(1, 2)  # strides as in a packed kernel
    key = torch.randn(batch, N, G, width).to(DEVICE, dtype).transpose(1, 2)
    options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    return KernelCall(query, key, scale=0.2, **{"causal": True, **options})


def requests(packed: bool = False) -> list[RowRequest]:
    """Ragged: unlike numbers of rows, columns and keys, one without a row."""
    first = RowRequest(0, 0, 50, torch.tensor([49, *range(5, 40), 3]), torch.tensor([0, 2, *range(4, 48)]))
    second = RowRequest(0 if packed else 1, 50, 40, torch.tensor([39, 12]), torch.arange(1, 9))
    none = RowRequest(0, 0, 50, torch.tensor([], dtype=torch.long), torch.arange(3))
    return [first, none, second]


def both(call: KernelCall, wanted: list[RowRequest]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    placed = place(wanted, call)
    found = []
    for add, pieces in (
        (add_head_sum, cut(placed, call.query_BHND.shape[1], G, call.key_BGND.shape[3], 1 << 26, DEVICE)),
        (add_fused, whole(placed, G, DEVICE)),
    ):
        rows = {}
        # They are added to.
        sums = [new_sums(call, piece, int(add is add_fused)) + 1 for piece in pieces]
        add(sums, [call] if add is add_fused else call, pieces, 0.5)
        for piece, part in zip(pieces, sums, strict=True):
            for (i, _, count, columns), sum_rC in zip(piece.parts, part.sum(0) - len(part), strict=True):
                rows[i] = sum_rC[:count, :columns]
        found.append([rows[i] for i in sorted(rows)])
    return found[0], found[1]


def check(call: KernelCall, wanted: list[RowRequest], within: float = 5e-6) -> None:
    want, got = both(call, wanted)
    assert len(got) == len(want) == 2
    for one, other in zip(got, want, strict=True):
        assert other.max() > 0.02
        assert (one - other).abs().max() <= within


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("width", "options"),
    [
        (16, {}),
        (24, {"window": (20, 0)}),
        (8, {"softcap": 2.0}),
        (16, {"causal": False, "window": (9, 30)}),
    ],
)
def test_kernel_calls_of_every_kind(width, options, sinks):
    sink = torch.linspace(-1, 3, H) if sinks else None
    check(call_of(width, sink_H=sink, **options), requests())


@pytest.mark.parametrize("share", [1, 3, 7, 40, 71])
def test_heads_that_share_a_key_head(share):
    """Also more than a block of rows and heads has (71, of Falcon, behind 32 and 64)."""
    check(call_of(16, share=share), requests())


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sinks", [False, True])
def test_several_layers_in_one_launch(sinks, aligned):
    torch.manual_seed(2)
    layers = []
    for _ in range(3):
        shapes = (2, N, H, 16), (2, N, G, 16)
        buffers = [torch.randn(math.prod(shape) + 1, device=DEVICE).half() for shape in shapes]
        states = [x[:-1] if aligned else x[1:] for x in buffers]
        query, key = (x.view(shape).transpose(1, 2) for x, shape in zip(states, shapes, strict=True))
        sink_H = torch.randn(H, device=DEVICE) if sinks else None
        layers.append(KernelCall(query, key, scale=0.4, causal=True, sink_H=sink_H))
    placed = place(requests(), layers[0])
    (piece,), (fused,) = (cut(placed, H, G, 16, 1 << 26, DEVICE), whole(placed, G, DEVICE))
    want, got = new_sums(layers[0], piece), new_sums(layers[0], fused, 2)
    for layer in layers:
        add_head_sum([want], layer, [piece], 0.5)
    add_fused([got], layers, [fused], 0.5)
    order = [[p[0] for p in some.parts] for some in (piece, fused)]
    assert want.sum() > 1
    for i, (_, _, rows, columns) in enumerate(piece.parts):
        other = got.sum(0)[order[1].index(order[0][i])]
        assert (want[0, i, :rows, :columns] - other[:rows, :columns]).abs().max() <= 5e-6


@pytest.mark.parametrize("kind", ["bool", "additive", "per head"])
def test_masks_of_the_kernel(kind):
    torch.manual_seed(1)
    visible = torch.ones(N, N).tril().bool() & (torch.rand(2, 1, N, N) > 0.1)
    visible[..., 0] = True
    mask = visible
    if kind != "bool":
        bias = torch.randn(2, H if kind == "per head" else 1, N, N)
        mask = bias.masked_fill(~visible, torch.finfo(torch.float32).min)
    check(call_of(16, mask=mask, causal=False), requests())


def test_packed_sequences():
    bounds = torch.tensor([0, 50, 90], dtype=torch.int32)
    check(call_of(16, batch=1, cu_seqlens=bounds), requests(packed=True))


def test_an_offset_of_all_logits_costs_no_precision():
    call = call_of(16)
    for states in (call.query_BHND, call.key_BGND):
        states[..., 0] = (1000 / call.scale) ** 0.5
    check(call, requests(), within=1e-5)


def test_half_precision():
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter does no bfloat16
    check(call_of(16, dtype=dtype), requests(), within=2e-5)


def test_half_precision_of_keys_of_any_magnitude():
    """Their difference from the first is no 16-bit number: each is multiplied as the sum of two."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    call = call_of(16, dtype=dtype)
    magnitudes = 10 ** torch.linspace(-4, 1, call.key_BGND.numel()).to(DEVICE)[torch.randperm(call.key_BGND.numel())]
    call.key_BGND.mul_(magnitudes.view_as(call.key_BGND).to(dtype))
    check(call, requests(), within=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_reading_with_them(attention):
    from attention_models import assert_rows, causal_model, eager_attention, padded, read, requests_for

    model, inputs, wanted = causal_model("gemma3_text", attention), padded([12, 10], 12), requests_for([12, 10], 12)
    model, inputs = model.to(DEVICE), {name: value.to(DEVICE) for name, value in inputs.items()}
    with flash_reference.as_flash_attention_2():
        rows, _ = read(model, wanted, inputs, kernel="triton")
        assert_rows([row.cpu() for row in rows], wanted, eager_attention(model, **inputs).cpu(), within=5e-6)


@pytest.mark.parametrize(("max_bytes", "launches"), [(1 << 26, [6]), (40_000, [4, 2]), (1, [1] * 6)])
def test_layers_wait_for_each_other_within_the_bound_on_memory(max_bytes, launches, monkeypatch):
    from attention_models import assert_rows, causal_model, eager_attention, padded, read, requests_for

    from realad_verl.attention import sums

    seen, add = [], sums.add_fused
    monkeypatch.setattr(sums, "add_fused", lambda found, calls, *a: seen.append(len(calls)) or add(found, calls, *a))
    model, inputs, wanted = causal_model(num_hidden_layers=6), padded([12, 10], 12), requests_for([12, 10], 12)
    model, inputs = model.to(DEVICE), {name: value.to(DEVICE) for name, value in inputs.items()}
    rows, _ = read(model, wanted, inputs, kernel="triton", max_bytes=max_bytes)
    assert seen == launches
    assert_rows([row.cpu() for row in rows], wanted, eager_attention(model, **inputs).cpu(), within=5e-6)


@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_autocast_and_tf32_change_nothing(kernel):
    from attention_models import causal_model, padded, read, requests_for
    from exact_reference import exact_beside, means_over_layers

    model, inputs = causal_model().to(DEVICE), {name: x.to(DEVICE) for name, x in padded([12, 10], 12).items()}
    if DEVICE.type != "cuda":
        model = model.half()  # the interpreter does no bfloat16
    torch.set_float32_matmul_precision("high")
    try:
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
        with torch.autocast(DEVICE.type, dtype), exact_beside() as found:
            rows, _ = read(model, requests_for([12, 10], 12), inputs, kernel=kernel)
    finally:
        torch.set_float32_matmul_precision("highest")
    for got, want in zip(rows, means_over_layers(found), strict=True):
        assert (got.cpu() - want).abs().max() <= 3e-5


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_window", "gemma3_text"])
def test_rows_with_a_gradient_have_their_denominators(kind):
    """Ragged requests: what lies behind a request's own rows reaches no gradient."""
    from attention_models import causal_model, padded
    from test_gradient_rows import gradients, loss_of, requests_for

    from realad_verl.attention.gradient_rows import gradient_reading
    from realad_verl.attention.readout import AttentionReadout

    model, wanted = causal_model(kind).to(DEVICE), requests_for("left")
    inputs = {name: value.to(DEVICE) for name, value in padded([12, 10], 12).items()}
    found = {}
    for kernel in ("torch", "triton"):
        with gradient_reading(AttentionReadout(model, kernel=kernel), wanted) as reading:
            model(**inputs, use_cache=False)
        rows = [row.cpu() for row in reading.log_rows()]
        found[kernel] = torch.cat([row.detach().flatten() for row in rows]), gradients(model, loss_of(rows))
    assert (found["triton"][0] - found["torch"][0])[found["torch"][0] > -50].abs().max() <= 1e-5
    for name, want in found["torch"][1].items():
        assert (found["triton"][1][name] - want).abs().max() <= 1e-5 * max(1.0, float(want.abs().max())), name
