"""Cases for the fused kernels, against `rows.head_sum`: run by test_triton_kernel.py, interpreted or on a GPU.

Not collected by itself: without a GPU, TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import pytest
import torch

from realad_verl.attention import flash_reference
from realad_verl.attention import triton_kernel as kernel
from realad_verl.attention.calls import KernelCall
from realad_verl.attention.layout import additive_mask
from realad_verl.attention.rows import head_sum

CUDA = torch.cuda.is_available()
N, H, G = 90, 4, 2
ROWS, COLUMNS = torch.tensor([89, *range(40, 75), 3]), torch.tensor([0, 2, *range(5, 85, 1), 89])


def made(width, dtype=torch.float32):
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    query = 3 * torch.randn(N, H, width).to(device, dtype).transpose(0, 1)  # strides as in a packed kernel
    key = torch.randn(N, G, width).to(device, dtype).transpose(0, 1)
    return query, key, ROWS.to(device), COLUMNS.to(device)


def expected(query, key, rows, columns, keys, causal, window, softcap, sink):
    call = KernelCall(query[None], key[None], scale=0.2, causal=causal, window=window)
    positions = torch.arange(*keys, device=query.device)
    return head_sum(
        query,
        rows,
        key[:, keys[0] : keys[1]],
        columns - keys[0],
        scale=0.2,
        bias=lambda some: additive_mask(call, 0, some, positions),
        softcap=softcap,
        sink_H=sink,
    )


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("width", "causal", "window", "softcap"),
    [(16, True, (-1, -1), 0.0), (24, True, (20, 0), 0.0), (8, True, (-1, -1), 2.0), (16, False, (9, 30), 0.0)],
)
def test_full_softmax_equals_the_reference(width, causal, window, softcap, sinks):
    query, key, rows, columns = made(width)
    sink = torch.linspace(-1, 3, H, device=query.device) if sinks else None
    options = {"causal": causal, "window": window, "softcap": softcap}
    got = kernel.head_sum_triton(query, rows, key, columns, scale=0.2, keys=(0, N), sink_H=sink, **options)
    want = expected(query, key, rows, columns, (0, N), sink=sink, **options)
    assert want.max() > 0.1
    assert (got - want).abs().max() <= 5e-6


def test_one_sequence_of_a_pack():
    query, key, rows, columns = made(16)
    rows, columns = rows[rows >= 40], columns[columns >= 35]
    got = kernel.head_sum_triton(query, rows, key, columns, scale=0.2, keys=(35, N))
    want = expected(query, key, rows, columns, (35, N), True, (-1, -1), 0.0, None)
    assert (got - want).abs().max() <= 5e-6


@pytest.mark.parametrize("per_head", [False, True])
def test_log_sum_exp_and_mask_given(per_head):
    query, key, rows, columns = made(16)
    torch.manual_seed(1)
    bias = torch.randn(H if per_head else 1, len(rows), N, device=query.device)
    bias[:, :, 7] = float("-inf")
    logits = query[:, rows].float() @ key.float().repeat_interleave(H // G, 0).transpose(1, 2) * 0.2 + bias
    got = kernel.head_sum_triton(
        query, rows, key, columns, scale=0.2, keys=(0, N), causal=False, bias_XRC=bias[..., columns],
        lse_HR=logits.logsumexp(-1),
    )  # fmt: skip
    assert (got - logits.softmax(-1).sum(0)[:, columns]).abs().max() <= 5e-6
    with pytest.raises(ValueError, match="log-sum-exp must be given"):
        kernel.head_sum_triton(query, rows, key, columns, scale=0.2, keys=(0, N), bias_XRC=bias[..., columns])


def test_half_precision():
    dtype = torch.bfloat16 if CUDA else torch.float16  # Triton's interpreter does no arithmetic on bfloat16
    query, key, rows, columns = made(16, dtype)
    got = kernel.head_sum_triton(query, rows, key, columns, scale=0.2, keys=(0, N))
    want = expected(query, key, rows, columns, (0, N), True, (-1, -1), 0.0, None)
    assert (got - want).abs().max() <= 2e-5


def test_nothing_wanted():
    query, key, rows, columns = made(16)
    assert kernel.head_sum_triton(query, rows[:0], key, columns, scale=1.0, keys=(0, N)).shape == (0, len(columns))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_reading_with_them(attention):
    from attention_models import assert_rows, causal_model, eager_attention, padded, read, requests_for

    model, inputs, requests = causal_model("gemma3_text", attention), padded([12, 10], 12), requests_for([12, 10], 12)
    device = "cuda" if CUDA else "cpu"
    model, inputs = model.to(device), {name: value.to(device) for name, value in inputs.items()}
    with flash_reference.as_flash_attention_2():
        rows, _ = read(model, requests, inputs, fused=True)
        assert_rows([row.cpu() for row in rows], requests, eager_attention(model, **inputs).cpu(), within=5e-6)
