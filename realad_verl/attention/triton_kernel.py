"""`rows.head_sum` as two fused Triton kernels: nothing of size heads x rows x keys is written to memory.

The first streams over the keys and leaves the log-sum-exp [H, R] of each wanted row; it is skipped where the attention
kernel gave one. The second loops over the heads inside a program, so that only the sum [R, C] is written.

Small letters are blocks: r rows, c columns or keys, d head width (a power of two, at least 16).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 32
BLOCK_COLUMNS = 64


@triton.jit
def _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    logits = tl.dot(q_rd, tl.trans(k_cd), input_precision="ieee") * scale
    if HAS_SOFTCAP:  # softcap * tanh(logits / softcap)
        logits = softcap * (2.0 / (1.0 + tl.exp(-2.0 * logits / softcap)) - 1.0)
    return logits


@triton.jit
def _visible(rows_r, keys_c, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    back = rows_r[:, None] - keys_c[None, :]  # how far the key lies before the query
    visible = back == back
    if HAS_LEFT:
        visible = visible & (back <= left)
    if HAS_RIGHT:
        visible = visible & (back >= -right)
    return visible


@triton.jit
def _lse_kernel(
    query, key, rows, sink, lse, n_rows, start, stop, scale, softcap, left, right,
    stride_qh, stride_qn, stride_qd, stride_kg, stride_kn, stride_kd,
    SHARE: tl.constexpr, WIDTH: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINK: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D:
tl.constexpr, ):  # fmt: skip
    """lse[h, r] over the keys [start, stop) in sight; one program for a block of rows of one head."""
    head = tl.program_id(1)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    rows_r = tl.load(rows + r, mask=r < n_rows, other=0)
    q_at = query + head * stride_qh + rows_r[:, None] * stride_qn + d[None, :] * stride_qd
    q_rd = tl.load(q_at, mask=(r < n_rows)[:, None] & (d < WIDTH)[None, :], other=0.0)
    top = tl.full([BLOCK_R], -1e30, tl.float32)
    total = tl.full([BLOCK_R], 0.0, tl.float32)
    if HAS_SINK:
        top = tl.full([BLOCK_R], 0.0, tl.float32) + tl.load(sink + head)
        total = total + 1.0
    for first in range(start, stop, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        k_at = key + (head // SHARE) * stride_kg + c[:, None] * stride_kn + d[None, :] * stride_kd
        k_cd = tl.load(k_at, mask=(c < stop)[:, None] & (d < WIDTH)[None, :], other=0.0)
        seen = _visible(rows_r, c, left, right, HAS_LEFT, HAS_RIGHT) & (c < stop)[None, :]
        logits = tl.where(seen, _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP), -1e30)
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        part = tl.where(seen, tl.exp(logits - new_top[:, None]), 0.0)
        total = total * tl.exp(top - new_top) + tl.sum(part, axis=1)
        top = new_top
    tl.store(lse + head * n_rows + r, top + tl.log(total), mask=r < n_rows)


@triton.jit
def _columns_kernel(
    query, key, rows, columns, bias, lse, result, n_rows, n_columns, scale, softcap, left, right,
    stride_qh, stride_qn, stride_qd, stride_kg, stride_kn, stride_kd, stride_bh, stride_br, stride_bc,
    HEADS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D:
tl.constexpr, ):  # fmt: skip
    """result[r, c] = sum over heads of exp(logits - lse); one program for a block of rows and wanted columns."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    rows_r = tl.load(rows + r, mask=r < n_rows, other=0)
    keys_c = tl.load(columns + c, mask=c < n_columns, other=0)
    inside = (r < n_rows)[:, None] & (c < n_columns)[None, :]
    seen = inside & _visible(rows_r, keys_c, left, right, HAS_LEFT, HAS_RIGHT)
    summed = tl.full([BLOCK_R, BLOCK_C], 0.0, tl.float32)
    for head in range(HEADS):
        q_at = query + head * stride_qh + rows_r[:, None] * stride_qn + d[None, :] * stride_qd
        q_rd = tl.load(q_at, mask=(r < n_rows)[:, None] & (d < WIDTH)[None, :], other=0.0)
        k_at = key + (head // SHARE) * stride_kg + keys_c[:, None] * stride_kn + d[None, :] * stride_kd
        k_cd = tl.load(k_at, mask=(c < n_columns)[:, None] & (d < WIDTH)[None, :], other=0.0)
        logits = _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP)
        if HAS_BIAS:
            bias_at = bias + head * stride_bh + r[:, None] * stride_br + c[None, :] * stride_bc
            logits += tl.load(bias_at, mask=inside, other=0.0)
        lse_r = tl.load(lse + head * n_rows + r, mask=r < n_rows, other=0.0)
        summed += tl.where(seen, tl.exp(logits - lse_r[:, None]), 0.0)
    tl.store(result + r[:, None] * n_columns + c[None, :], summed, mask=inside)


def head_sum_triton(
    query_HND: Tensor,
    rows_R: Tensor,
    key_GND: Tensor,
    columns_C: Tensor,
    *,
    scale: float,
    keys: tuple[int, int],
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink_H: Tensor | None = None,
    bias_XRC: Tensor | None = None,
    lse_HR: Tensor | None = None,
) -> Tensor:
    """Attention probabilities of the queries at ``rows_R`` to ``columns_C``, summed over heads, [R, C] fp32.

    Args:
        key_GND: the keys of all N tokens; ``keys`` = [start, stop) are those of the queries' sequence.
        causal, window: which keys the kernel hides, as in `KernelCall`.
        bias_XRC: additive mask of the wanted columns, X = H or 1; needs ``lse_HR``, which knows the other columns.
        lse_HR: the log of the softmax's denominators, sinks included, if known.
    """
    if bias_XRC is not None and lse_HR is None:
        raise ValueError("with a mask the log-sum-exp must be given")
    heads, width, n_rows, n_columns = query_HND.shape[0], query_HND.shape[2], len(rows_R), len(columns_C)
    result_RC = torch.zeros(n_rows, n_columns, dtype=torch.float32, device=query_HND.device)
    if not n_rows or not n_columns:
        return result_RC
    left, right = window[0], (0 if causal else window[1])
    strides: tuple[Any, ...] = (*query_HND.stride(), *key_GND.stride())
    blocks = {
        "BLOCK_R": BLOCK_ROWS,
        "BLOCK_C": BLOCK_COLUMNS,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }
    options: dict[str, Any] = {
        "SHARE": heads // key_GND.shape[0],
        "WIDTH": width,
        "HAS_SOFTCAP": softcap > 0,
        "HAS_LEFT": left >= 0,
        "HAS_RIGHT": right >= 0,
        **blocks,
    }
    lse_options: dict[str, Any] = {**options, "HAS_SINK": sink_H is not None}
    column_options: dict[str, Any] = {**options, "HEADS": heads, "HAS_BIAS": bias_XRC is not None}
    row_blocks = triton.cdiv(n_rows, BLOCK_ROWS)
    if lse_HR is None:
        lse_HR = torch.empty(heads, n_rows, dtype=torch.float32, device=query_HND.device)
        sink = lse_HR if sink_H is None else sink_H.float().contiguous()
        _lse_kernel[(row_blocks, heads)](
            query_HND, key_GND, rows_R, sink, lse_HR, n_rows, *keys, scale, softcap, left, right, *strides,
            **lse_options,
        )  # fmt: skip
    lse_HR = lse_HR.float().contiguous()
    bias = lse_HR if bias_XRC is None else bias_XRC.float()
    bias_strides: tuple[Any, ...] = (0, 0, 0) if bias_XRC is None else bias_XRC.expand(heads, -1, -1).stride()
    _columns_kernel[(row_blocks, triton.cdiv(n_columns, BLOCK_COLUMNS))](
        query_HND, key_GND, rows_R, columns_C, bias, lse_HR, result_RC, n_rows, n_columns, scale, softcap, left, right,
        *strides, *bias_strides, **column_options,
    )  # fmt: skip
    return result_RC
