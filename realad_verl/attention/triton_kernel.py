"""`rows.add_head_sum` as two fused Triton kernels: nothing of size heads x rows x keys is written to memory.

The first streams over the keys and leaves the log-sum-exp [s, H, r] of each wanted row. The second leaves the sum over
heads [s, r, C] of the wanted columns, in a few parts that are summed after it, so that one request fills a GPU too. One
launch each for all requests, however ragged. A program does all query heads that share a key head with one load of it.

Keys are taken relative to the key of the first wanted column (see `rows`), except under a soft cap. Products have the
accuracy of fp32 whatever the global switches say, on tensor cores: a 16-bit query meets the fp32 key as the sum of
three 16-bit numbers, an fp32 query meets it by three TF32 products ("tf32x3").

Small letters are blocks: m query heads x rows, r rows, c columns or keys, d head width (a power of two, at least 16).
"""

# A kernel takes plain numbers where its definition says constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.pieces import Piece

# Rows (times query heads, in the first kernel) and keys a block. Larger ones reuse more of a load; these leave room
# in the 99 KiB of shared memory of consumer cards, too (tests/unit/attention/test_triton_kernel.py).
BLOCK_ROWS, BLOCK_COLUMNS = 64, 64
BLOCK_ROWS_FP32, BLOCK_COLUMNS_WIDE = 32, 32
# Programs of the second kernel that are enough for the largest cards of today (132 to 148 multiprocessors).
ENOUGH_PROGRAMS = 256


@triton.jit
def _logits(q_md, k_cd, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """[m, c] products of a query of any precision and an fp32 key, as accurate as fp32."""
    k_dc = tl.trans(k_cd)
    if q_md.dtype == tl.float32:
        logits = tl.dot(q_md, k_dc, input_precision="tf32x3") * scale
    else:
        high = k_dc.to(q_md.dtype)
        rest = k_dc - high.to(tl.float32)
        middle = rest.to(q_md.dtype)
        low = (rest - middle.to(tl.float32)).to(q_md.dtype)
        logits = tl.dot(q_md, high, tl.dot(q_md, middle, tl.dot(q_md, low))) * scale
    if HAS_SOFTCAP:  # softcap * tanh(logits / softcap)
        logits = softcap * (2.0 / (1.0 + tl.exp(-2.0 * logits / softcap)) - 1.0)
    return logits


@triton.jit
def _visible(rows_m, keys_c, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    back = rows_m[:, None] - keys_c[None, :]  # how far the key lies before the query
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
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """lse[s, h, r] over the keys in sight; one program for a block of heads and rows of a key head of a request."""
    group, s = tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + s)
    if tl.program_id(0) * BLOCK_M < count * SHARE:
        start, stop = tl.load(starts + s), tl.load(stops + s)
        batch = tl.load(batches + s)
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        r, head_m = m // SHARE, group * SHARE + m % SHARE  # a row's heads lie side by side
        real_m = r < count
        rows_m = tl.load(rows + s * n_rows + r, mask=real_m, other=0)
        q_at = query + batch * stride_qb + head_m[:, None] * stride_qh + rows_m[:, None] * stride_qn
        q_md = tl.load(q_at + d[None, :] * stride_qd, mask=real_m[:, None] & (d < WIDTH)[None, :], other=0.0)
        of_head = key + batch * stride_kb + group * stride_kg
        origin_d = tl.zeros([BLOCK_D], tl.float32)
        if not HAS_SOFTCAP:
            at = of_head + tl.load(columns + s * n_columns) * stride_kn + d * stride_kd
            origin_d = tl.load(at, mask=d < WIDTH, other=0.0).to(tl.float32)
        top = tl.full([BLOCK_M], -1e30, tl.float32)
        total = tl.full([BLOCK_M], 0.0, tl.float32)
        if HAS_SINK:
            sink_m = tl.load(sink + head_m, mask=real_m, other=0.0)
            top = sink_m - tl.sum(q_md.to(tl.float32) * origin_d[None, :], axis=1) * scale
            total = total + 1.0
        for first in range(start, stop, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            k_at = of_head + c[:, None] * stride_kn + d[None, :] * stride_kd
            k_cd = tl.load(k_at, mask=(c < stop)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
            logits = _logits(q_md, k_cd - origin_d[None, :], scale, softcap, HAS_SOFTCAP)
            seen = _visible(rows_m, c, left, right, HAS_LEFT, HAS_RIGHT) & (c < stop)[None, :]
            if HAS_MASK:
                m_at = mask + s * stride_ms + head_m[:, None] * stride_mh + r[:, None] * stride_mr
                inside = real_m[:, None] & (c < stop)[None, :]
                logits += tl.load(m_at + (c - start)[None, :] * stride_mk, mask=inside, other=0.0)
                seen = seen & (logits > -1e30)
            logits = tl.where(seen, logits, -1e30)
            new_top = tl.maximum(top, tl.max(logits, axis=1))
            part = tl.where(seen, tl.exp(logits - new_top[:, None]), 0.0)
            total = total * tl.exp(top - new_top) + tl.sum(part, axis=1)
            top = new_top
        tl.store(lse + (s * HEADS + head_m) * n_rows + r, top + tl.log(total), mask=real_m)


@triton.jit
def _columns_kernel(
    query, key, rows, columns, batches, starts, row_counts, column_counts, mask, lse, result,
    scale, softcap, left, right, n_rows, n_columns,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kg, stride_kn, stride_kd,
    stride_ms, stride_mh, stride_mr, stride_mk,
    HEADS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """result[part, s, r, c]: the sum over a part of the heads of exp(logits - lse); a program for a block of it."""
    s, part = tl.program_id(2) // PARTS, tl.program_id(2) % PARTS
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
        each = HEADS // SHARE // PARTS
        for group in range(part * each, (part + 1) * each):
            of_head = key + batch * stride_kb + group * stride_kg
            k_at = of_head + keys_c[:, None] * stride_kn + d[None, :] * stride_kd
            k_cd = tl.load(k_at, mask=(c < columns_here)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
            if not HAS_SOFTCAP:
                at = of_head + first_column * stride_kn + d * stride_kd
                k_cd -= tl.load(at, mask=d < WIDTH, other=0.0).to(tl.float32)[None, :]
            for head in range(group * SHARE, (group + 1) * SHARE):
                q_at = query + batch * stride_qb + head * stride_qh + rows_r[:, None] * stride_qn
                q_rd = tl.load(
                    q_at + d[None, :] * stride_qd, mask=(r < count)[:, None] & (d < WIDTH)[None, :], other=0.0
                )
                logits = _logits(q_rd, k_cd, scale, softcap, HAS_SOFTCAP)
                if HAS_MASK:
                    m_at = mask + s * stride_ms + head * stride_mh + r[:, None] * stride_mr
                    logits += tl.load(m_at + (keys_c - start)[None, :] * stride_mk, mask=inside, other=0.0)
                lse_r = tl.load(lse + (s * HEADS + head) * n_rows + r, mask=r < count, other=0.0)
                summed += tl.where(seen, tl.exp(logits - lse_r[:, None]), 0.0)
        at = result + ((part * (tl.num_programs(2) // PARTS) + s) * n_rows + r[:, None]) * n_columns + c[None, :]
        tl.store(at, summed, mask=inside)


def add_head_sum_triton(sum_srC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """`rows.add_head_sum` in two launches and a sum; ``sum_srC`` [s, r, C] fp32."""
    given = _given(call, piece)
    lse_sHr = denominators_triton(call, piece, given)
    (s, n_rows), n_columns, groups = piece.rows_sr.shape, piece.columns_sC.shape[1], call.key_BGND.shape[1]
    block_r, block_c, launch = given.blocks
    blocks = triton.cdiv(n_rows, block_r), triton.cdiv(n_columns, block_c)
    parts = head_parts(groups, s * blocks[0] * blocks[1])
    part_psrC = sum_srC.new_empty(parts, *sum_srC.shape)
    _columns_kernel[(*blocks, s * parts)](
        *given.at, piece.n_rows_s, piece.n_columns_s, given.mask, lse_sHr, part_psrC, *given.numbers, *given.sizes,
        **given.options, **launch, PARTS=parts, BLOCK_R=block_r, BLOCK_C=block_c,
    )  # fmt: skip
    sum_srC.add_(part_psrC.sum(0), alpha=weight)


def denominators_triton(call: KernelCall, piece: Piece, given: "_Given | None" = None) -> Tensor:
    """`rows.denominators` in one launch; what lies behind a request's real rows is not set."""
    given = given or _given(call, piece)
    (s, n_rows), (heads, groups) = piece.rows_sr.shape, (call.query_BHND.shape[1], call.key_BGND.shape[1])
    lse_sHr = torch.empty(s, heads, n_rows, dtype=torch.float32, device=call.query_BHND.device)
    block_m, block_c, launch = given.blocks
    sink = lse_sHr if call.sink_H is None else call.sink_H.float().contiguous()
    _lse_kernel[(triton.cdiv(n_rows * (heads // groups), block_m), groups, s)](
        *given.at, piece.stop_s, piece.n_rows_s, sink, given.mask, lse_sHr, *given.numbers, *given.sizes,
        **given.options, **launch, HAS_SINK=call.sink_H is not None, BLOCK_M=block_m, BLOCK_C=block_c,
    )  # fmt: skip
    return lse_sHr


class _Given(NamedTuple):
    """What both kernels are given, in their order."""

    at: tuple[Tensor, ...]
    mask: Tensor
    numbers: tuple[float, ...]
    sizes: tuple[int, ...]
    options: dict[str, Any]
    blocks: tuple[int, int, dict[str, int]]


def _given(call: KernelCall, piece: Piece) -> _Given:
    (heads, width), groups = call.query_BHND.shape[1::2], call.key_BGND.shape[1]
    # Causality and window are computed in place; a mask of the kernel's is cut to the rows once for all layers.
    mask = None if call.mask is None else piece.additive_mask(call)
    strides = (0, 0, 0, 0)
    if mask is not None:
        strides = (mask.stride(0), mask.stride(1) * (mask.shape[1] > 1), *mask.stride()[2:])
    options: dict[str, Any] = {
        "HEADS": heads,
        "SHARE": heads // groups,
        "WIDTH": width,
        "HAS_SOFTCAP": call.softcap > 0,
        "HAS_MASK": mask is not None,
        "HAS_LEFT": call.window[0] >= 0,
        "HAS_RIGHT": call.causal or call.window[1] >= 0,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }
    n_rows, n_columns = piece.rows_sr.shape[1], piece.columns_sC.shape[1]
    return _Given(
        at=(call.query_BHND, call.key_BGND, piece.rows_sr, piece.columns_sC, piece.batch_s, piece.start_s),
        mask=call.query_BHND if mask is None else mask,
        numbers=(call.scale, call.softcap, call.window[0], 0 if call.causal else call.window[1]),
        sizes=(n_rows, n_columns, *call.query_BHND.stride(), *call.key_BGND.stride(), *strides),
        options=options,
        blocks=block_sizes(call.query_BHND.dtype, options["BLOCK_D"]),
    )


def block_sizes(dtype: torch.dtype, block_d: int) -> tuple[int, int, dict[str, int]]:
    """Rows and columns of a block for queries of ``dtype``, and how a kernel is launched."""
    rows, wide = (BLOCK_ROWS_FP32 if dtype == torch.float32 else BLOCK_ROWS), block_d > 128
    launch = {"num_warps": 4, "num_stages": 1 if wide else 2 if dtype == torch.float32 else 3}
    return rows, BLOCK_COLUMNS_WIDE if wide else BLOCK_COLUMNS, launch


def head_parts(groups: int, programs: int) -> int:
    """Into how many parts the key heads are cut: as few as give enough programs, a divisor of ``groups``."""
    return next(p for p in range(1, groups + 1) if groups % p == 0 and (p == groups or p * programs >= ENOUGH_PROGRAMS))
