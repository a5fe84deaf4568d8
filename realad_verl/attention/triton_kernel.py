"""`rows.add_head_sum` as two fused Triton kernels: nothing of size heads x rows x keys is written to memory.

The first streams over the keys and leaves the log-sum-exp [s, H, r] of each wanted row. The second loops over the
heads inside a program, so that only the sum [s, r, C] is written. One launch each for all requests, however ragged.

Keys are taken relative to the key of the first wanted column (see `rows`), except under a soft cap. Products are of
three TF32 products ("tf32x3"), which is fp32 to the last bits, whatever the global switches say.

Small letters are blocks: r rows, c columns or keys, d head width (a power of two, at least 16).
"""

# A kernel takes plain numbers where its definition says constexpr.
# pyright: reportArgumentType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.pieces import Piece

BLOCK_ROWS = 32
BLOCK_COLUMNS = 64


@triton.jit
def _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    logits = tl.dot(q_rd, tl.trans(k_cd), input_precision="tf32x3") * scale
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
    query, key, rows, columns, batches, starts, stops, counts, sink, mask, lse, scale, softcap, left, right,
    n_rows, n_columns,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kg, stride_kn, stride_kd,
    stride_ms, stride_mh, stride_mr, stride_mk,
    HEADS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINK: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """lse[s, h, r] over the keys in sight; one program for a block of rows of one head of one request."""
    head, s = tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + s)
    if tl.program_id(0) * BLOCK_R < count:
        start, stop = tl.load(starts + s), tl.load(stops + s)
        batch = tl.load(batches + s)
        r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
        d = tl.arange(0, BLOCK_D)
        rows_r = tl.load(rows + s * n_rows + r, mask=r < count, other=0)
        q_at = query + batch * stride_qb + head * stride_qh + rows_r[:, None] * stride_qn + d[None, :] * stride_qd
        q_rd = tl.load(q_at, mask=(r < count)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
        of_head = key + batch * stride_kb + (head // SHARE) * stride_kg
        origin_d = tl.zeros([BLOCK_D], tl.float32)
        if not HAS_SOFTCAP:
            at = of_head + tl.load(columns + s * n_columns) * stride_kn + d * stride_kd
            origin_d = tl.load(at, mask=d < WIDTH, other=0.0).to(tl.float32)
        top = tl.full([BLOCK_R], -1e30, tl.float32)
        total = tl.full([BLOCK_R], 0.0, tl.float32)
        if HAS_SINK:
            top = tl.load(sink + head) - tl.sum(q_rd * origin_d[None, :], axis=1) * scale
            total = total + 1.0
        for first in range(start, stop, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            k_at = of_head + c[:, None] * stride_kn + d[None, :] * stride_kd
            k_cd = tl.load(k_at, mask=(c < stop)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
            logits = _logits(q_rd, k_cd - origin_d[None, :], scale, softcap, HAS_SOFTCAP)
            seen = _visible(rows_r, c, left, right, HAS_LEFT, HAS_RIGHT) & (c < stop)[None, :]
            if HAS_MASK:
                m_at = mask + s * stride_ms + head * stride_mh + r[:, None] * stride_mr
                m_at += (c - start)[None, :] * stride_mk
                inside = (r < count)[:, None] & (c < stop)[None, :]
                logits += tl.load(m_at, mask=inside, other=0.0)
                seen = seen & (logits > -1e30)
            logits = tl.where(seen, logits, -1e30)
            new_top = tl.maximum(top, tl.max(logits, axis=1))
            part = tl.where(seen, tl.exp(logits - new_top[:, None]), 0.0)
            total = total * tl.exp(top - new_top) + tl.sum(part, axis=1)
            top = new_top
        tl.store(lse + (s * HEADS + head) * n_rows + r, top + tl.log(total), mask=r < count)


@triton.jit
def _columns_kernel(
    query, key, rows, columns, batches, starts, row_counts, column_counts, mask, lse, result,
    scale, softcap, left, right, weight, n_rows, n_columns,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kg, stride_kn, stride_kd,
    stride_ms, stride_mh, stride_mr, stride_mk,
    HEADS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """result[s, r, c] += weight x the sum over heads of exp(logits - lse); one program for a block of rows, columns."""
    s = tl.program_id(2)
    count, columns_here = tl.load(row_counts + s), tl.load(column_counts + s)
    if (tl.program_id(0) * BLOCK_R < count) & (tl.program_id(1) * BLOCK_C < columns_here):
        batch, start = tl.load(batches + s), tl.load(starts + s)
        r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        d = tl.arange(0, BLOCK_D)
        rows_r = tl.load(rows + s * n_rows + r, mask=r < count, other=0)
        keys_c = tl.load(columns + s * n_columns + c, mask=c < columns_here, other=0)
        first_column = tl.load(columns + s * n_columns)
        inside = (r < count)[:, None] & (c < columns_here)[None, :]
        seen = inside & _visible(rows_r, keys_c, left, right, HAS_LEFT, HAS_RIGHT)
        summed = tl.full([BLOCK_R, BLOCK_C], 0.0, tl.float32)
        for head in range(HEADS):
            q_at = query + batch * stride_qb + head * stride_qh + rows_r[:, None] * stride_qn + d[None, :] * stride_qd
            q_rd = tl.load(q_at, mask=(r < count)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
            of_head = key + batch * stride_kb + (head // SHARE) * stride_kg
            k_at = of_head + keys_c[:, None] * stride_kn + d[None, :] * stride_kd
            k_cd = tl.load(k_at, mask=(c < columns_here)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
            if not HAS_SOFTCAP:
                at = of_head + first_column * stride_kn + d * stride_kd
                k_cd -= tl.load(at, mask=d < WIDTH, other=0.0).to(tl.float32)[None, :]
            logits = _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP)
            if HAS_MASK:
                m_at = mask + s * stride_ms + head * stride_mh + r[:, None] * stride_mr
                logits += tl.load(m_at + (keys_c - start)[None, :] * stride_mk, mask=inside, other=0.0)
            lse_r = tl.load(lse + (s * HEADS + head) * n_rows + r, mask=r < count, other=0.0)
            summed += tl.where(seen, tl.exp(logits - lse_r[:, None]), 0.0)
        at = result + (s * n_rows + r[:, None]) * n_columns + c[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + weight * summed, mask=inside)


def add_head_sum_triton(sum_srC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """`rows.add_head_sum` in two launches; ``sum_srC`` [s, r, C] fp32 must be contiguous."""
    (heads, width), groups = call.query_BHND.shape[1::2], call.key_BGND.shape[1]
    (s, n_rows), n_columns = piece.rows_sr.shape, piece.columns_sC.shape[1]
    lse_sHr = torch.empty(s, heads, n_rows, dtype=torch.float32, device=sum_srC.device)
    # Causality and window are computed in place; a mask of the kernel's is cut to the rows once for all layers.
    mask = None if call.mask is None else piece.additive_mask(call)
    masked: Any = lse_sHr if mask is None else mask
    mask_strides = (
        (0, 0, 0, 0) if mask is None else (mask.stride(0), mask.stride(1) * (mask.shape[1] > 1), *mask.stride()[2:])
    )
    sink = lse_sHr if call.sink_H is None else call.sink_H.float().contiguous()
    numbers = (call.scale, call.softcap, call.window[0], 0 if call.causal else call.window[1])
    sizes = (n_rows, n_columns, *call.query_BHND.stride(), *call.key_BGND.stride(), *mask_strides)
    options: dict[str, Any] = {
        "HEADS": heads,
        "SHARE": heads // groups,
        "WIDTH": width,
        "HAS_SOFTCAP": call.softcap > 0,
        "HAS_MASK": mask is not None,
        "HAS_LEFT": call.window[0] >= 0,
        "HAS_RIGHT": call.causal or call.window[1] >= 0,
        "BLOCK_R": BLOCK_ROWS,
        "BLOCK_C": BLOCK_COLUMNS,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }
    at = (call.query_BHND, call.key_BGND, piece.rows_sr, piece.columns_sC, piece.batch_s, piece.start_s)
    blocks = triton.cdiv(n_rows, BLOCK_ROWS)
    _lse_kernel[(blocks, heads, s)](
        *at, piece.stop_s, piece.n_rows_s, sink, masked, lse_sHr, *numbers, *sizes,
        **options, HAS_SINK=call.sink_H is not None,
    )  # fmt: skip
    _columns_kernel[(blocks, triton.cdiv(n_columns, BLOCK_COLUMNS), s)](
        *at, piece.n_rows_s, piece.n_columns_s, masked, lse_sHr, sum_srC, *numbers, weight, *sizes, **options,
    )  # fmt: skip
