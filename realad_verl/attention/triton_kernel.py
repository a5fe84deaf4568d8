"""`rows.add_head_sum` as two fused Triton kernels: nothing of size heads x rows x keys is written to memory.

The first writes the keys relative to the key of the first wanted column (see `rows`; under a soft cap as they are), in
a form that tensor cores multiply as exactly as fp32: of 16-bit keys the difference as the sum of two 16-bit numbers,
else one fp32 number, for three TF32 products ("tf32x3"). The difference of two bfloat16 numbers has 16 bits unless
their exponents lie more than 8 apart; then 2^-18 of the larger is lost.

The second streams over the keys for the log-sum-exp of each wanted row, then over the wanted columns, and adds their
probabilities, summed over heads, to the result. One program does the rows x query heads that share a key head's loads.
The key heads are cut into a few parts, each with its own sum, so that one request fills a GPU too. One launch each for
all requests, however ragged.

Small letters are blocks: m query heads x rows, r rows, c columns or keys, d head width (a power of two, at least 16);
logits are in base 2.
"""

# A kernel takes plain numbers where its definition says constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.pieces import Piece

# Rows x query heads and keys a block. Larger ones reuse more of a load; these leave room in the 99 KiB of shared
# memory of consumer cards, too (tests/unit/attention/test_triton_kernel.py).
BLOCK_ROWS, BLOCK_COLUMNS = 64, 64
BLOCK_ROWS_FP32, BLOCK_COLUMNS_WIDE = 32, 32
# Programs that are enough for the largest cards of today (132 to 148 multiprocessors).
ENOUGH_PROGRAMS = 1024
LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _keys_kernel(
    key, columns, numbers, relative, n_requests, n_columns, n_keys, stride_kb, stride_kg, stride_kn, stride_kd,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, HAS_ORIGIN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """relative[term, g, k, d], k over the keys of all requests: each has its own and, behind them, what they lack."""
    group, s = tl.program_id(1), tl.program_id(2)
    batch, start = tl.load(numbers + s), tl.load(numbers + n_requests + s)
    count, at = tl.load(numbers + 2 * n_requests + s), tl.load(numbers + 5 * n_requests + s)
    if tl.program_id(0) * BLOCK_C <= count:
        c, d = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
        of_head = key + batch * stride_kb + group * stride_kg + d * stride_kd
        k_at = of_head[None, :] + (start + c)[:, None] * stride_kn
        k_cd = tl.load(k_at, mask=(c < count)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
        if HAS_ORIGIN:
            first = tl.load(columns + s * n_columns)
            origin_d = tl.load(of_head + first * stride_kn, mask=d < WIDTH, other=0.0).to(tl.float32)
            k_cd = tl.where((c < count)[:, None], k_cd - origin_d[None, :], origin_d[None, :])
        to = relative + ((group * n_keys + at + c) * BLOCK_D)[:, None] + d[None, :]
        high = k_cd.to(relative.dtype.element_ty)
        tl.store(to, high, mask=(c <= count)[:, None])
        if TERMS == 2:
            rest = (k_cd - high.to(tl.float32)).to(relative.dtype.element_ty)
            tl.store(to + GROUPS * n_keys * BLOCK_D, rest, mask=(c <= count)[:, None])


@triton.jit
def _logits(q_md, key_at, other_term, inside_c, scale, softcap, TERMS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """[m, c] products of the query and the keys at ``key_at`` [c, d], as accurate as fp32."""
    k_cd = tl.load(key_at, mask=inside_c[:, None], other=0.0)
    if q_md.dtype == tl.float32:
        logits = tl.dot(q_md, tl.trans(k_cd), input_precision="tf32x3")
    elif TERMS == 2:
        rest_cd = tl.load(key_at + other_term, mask=inside_c[:, None], other=0.0)
        logits = tl.dot(q_md, tl.trans(k_cd), tl.dot(q_md, tl.trans(rest_cd)))
    else:
        logits = tl.dot(q_md, tl.trans(k_cd))
    if HAS_SOFTCAP:  # softcap * tanh(logits / softcap)
        logits = softcap * (2.0 / (1.0 + tl.exp2(-2.0 * logits * scale / softcap)) - 1.0)
        return logits * LOG2E
    return logits * scale


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
def _with(total, top, logits):
    """Sum of exp2 relative to ``top``, and the top, with one more block of logits."""
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    part = tl.sum(tl.exp2(logits - new_top[:, None]), axis=1)
    return total * tl.exp2(top - new_top) + part, new_top


@triton.jit
def _rows_kernel(
    query, relative, rows, columns, numbers, sink, mask, result, scale, softcap, left, right, weight,
    n_requests, n_rows, n_columns, n_keys, stride_qb, stride_qh, stride_qn, stride_qd,
    stride_ms, stride_mh, stride_mr, stride_mk,
    GROUPS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, TERMS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINK: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, LSE_ONLY: tl.constexpr,
    PADDED_SHARE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """result[part, s, r, c] += weight x the sum over a part's heads of exp(logits - lse), or result[s, h, r] = lse.

    One program for a few rows of a request and a part of the key heads.
    """
    ROWS: tl.constexpr = BLOCK_M // PADDED_SHARE
    part, s = tl.program_id(1), tl.program_id(2)
    count = tl.load(numbers + 3 * n_requests + s)
    if tl.program_id(0) * ROWS < count:
        batch, start = tl.load(numbers + s), tl.load(numbers + n_requests + s)
        keys, at = tl.load(numbers + 2 * n_requests + s), tl.load(numbers + 5 * n_requests + s)
        columns_here = tl.load(numbers + 4 * n_requests + s)
        m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        r, h = tl.program_id(0) * ROWS + m // PADDED_SHARE, m % PADDED_SHARE  # a row's heads lie side by side
        real_m = (h < SHARE) & (r < count)
        rows_m = tl.load(rows + s * n_rows + r, mask=real_m, other=0)
        other_term = GROUPS * n_keys * BLOCK_D
        free = keys  # of these, whole blocks of them, every row sees every one
        if HAS_RIGHT:
            first_row = tl.min(tl.where(real_m, rows_m, 1 << 40), axis=0)
            free = tl.maximum(tl.minimum(first_row + right + 1 - start, keys), 0)
        if HAS_LEFT or HAS_MASK:
            free = free * 0
        free = free // BLOCK_C * BLOCK_C
        for group in range(part * (GROUPS // PARTS), (part + 1) * (GROUPS // PARTS)):
            head_m = group * SHARE + h
            q_at = query + batch * stride_qb + head_m[:, None] * stride_qh + rows_m[:, None] * stride_qn
            q_md = tl.load(q_at + d[None, :] * stride_qd, mask=real_m[:, None] & (d < WIDTH)[None, :], other=0.0)
            q_md = q_md.to(relative.dtype.element_ty)
            key_at = relative + (group * n_keys + at) * BLOCK_D + d[None, :]
            top = tl.full([BLOCK_M], -1e29, tl.float32)  # above what is hidden
            total = tl.full([BLOCK_M], 0.0, tl.float32)
            if HAS_SINK:
                top = tl.load(sink + head_m, mask=real_m, other=0.0) * LOG2E
                if not HAS_SOFTCAP:
                    origin_d = tl.load(relative + (group * n_keys + at + keys) * BLOCK_D + d).to(tl.float32)
                    top -= tl.sum(q_md.to(tl.float32) * origin_d[None, :], axis=1) * scale
                total += 1.0
            m_at = mask + s * stride_ms + head_m[:, None] * stride_mh + r[:, None] * stride_mr
            for first in range(0, free, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                k_at = key_at + c[:, None] * BLOCK_D
                logits = _logits(q_md, k_at, other_term, c < keys, scale, softcap, TERMS, HAS_SOFTCAP)
                total, top = _with(total, top, logits)
            for first in range(free, keys, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                k_at = key_at + c[:, None] * BLOCK_D
                logits = _logits(q_md, k_at, other_term, c < keys, scale, softcap, TERMS, HAS_SOFTCAP)
                seen = _visible(rows_m, start + c, left, right, HAS_LEFT, HAS_RIGHT) & (c < keys)[None, :]
                if HAS_MASK:
                    inside = real_m[:, None] & (c < keys)[None, :]
                    logits += tl.load(m_at + c[None, :] * stride_mk, mask=inside, other=0.0) * LOG2E
                    seen = seen & (logits > -1e30)
                total, top = _with(total, top, tl.where(seen, logits, -1e30))
            lse_m = top + tl.log2(total)
            if LSE_ONLY:
                tl.store(result + (s * GROUPS * SHARE + head_m) * n_rows + r, lse_m / LOG2E, mask=real_m)
            else:
                out_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
                for first in range(0, columns_here, BLOCK_C):
                    c = first + tl.arange(0, BLOCK_C)
                    keys_c = tl.load(columns + s * n_columns + c, mask=c < columns_here, other=0)
                    k_at = key_at + (keys_c - start)[:, None] * BLOCK_D
                    logits = _logits(q_md, k_at, other_term, c < columns_here, scale, softcap, TERMS, HAS_SOFTCAP)
                    seen = _visible(rows_m, keys_c, left, right, HAS_LEFT, HAS_RIGHT)
                    seen = seen & real_m[:, None] & (c < columns_here)[None, :]
                    if HAS_MASK:
                        logits += tl.load(m_at + (keys_c - start)[None, :] * stride_mk, mask=seen, other=0.0) * LOG2E
                    p_mc = tl.where(seen, tl.exp2(logits - lse_m[:, None]), 0.0)
                    summed_rc = tl.sum(tl.reshape(p_mc, [ROWS, PADDED_SHARE, BLOCK_C]), axis=1)
                    to = result + ((part * n_requests + s) * n_rows + out_r[:, None]) * n_columns + c[None, :]
                    inside = (out_r < count)[:, None] & (c < columns_here)[None, :]
                    before = tl.load(to, mask=inside, other=0.0)
                    tl.store(to, before + weight * summed_rc, mask=inside)


def add_head_sum_triton(sum_psrC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """`rows.add_head_sum` in two launches; ``sum_psrC`` [P, s, r, C] fp32, with P of `head_parts`."""
    _run(call, piece, sum_psrC, weight)


def denominators_triton(call: KernelCall, piece: Piece) -> Tensor:
    """`rows.denominators` in two launches; what lies behind a request's real rows is not set."""
    size = len(piece.parts), call.query_BHND.shape[1], piece.rows_sr.shape[1]
    lse_sHr = torch.empty(size, dtype=torch.float32, device=call.query_BHND.device)
    _run(call, piece, lse_sHr)
    return lse_sHr


def head_parts(call: KernelCall, piece: Piece) -> int:
    """Into how many parts the key heads are cut, each with a sum of its own."""
    return _plan_of(call, piece).parts


def _run(call: KernelCall, piece: Piece, result: Tensor, weight: float | None = None) -> None:
    """Both kernels: adds to the sums [P, s, r, C], or sets the denominators [s, H, r] where no weight is given."""
    plan, n_requests, n_columns = _plan_of(call, piece), len(piece.parts), piece.columns_sC.shape[1]
    n_keys = piece.total_keys + n_requests  # one more for each: what its keys are relative to
    size = plan.terms, call.key_BGND.shape[1], n_keys, plan.block_d
    relative = torch.empty(size, dtype=plan.dtype, device=result.device)
    _keys_kernel[plan.keys_grid](
        call.key_BGND, piece.columns_sC, piece.numbers_6s, relative, n_requests, n_columns, n_keys,
        *call.key_BGND.stride(), **plan.keys_options,
    )  # fmt: skip
    # Causality and window are computed in place; a mask of the kernel's is cut to the rows once for all layers.
    mask, strides = relative, (0, 0, 0, 0)
    if call.mask is not None:
        mask = piece.additive_mask(call)
        strides = (mask.stride(0), mask.stride(1) * (mask.shape[1] > 1), *mask.stride()[2:])
    sink = relative if call.sink_H is None else call.sink_H.float().contiguous()
    left, right = call.window[0], 0 if call.causal else call.window[1]
    parts = size[1] if weight is None else plan.parts
    sizes = n_requests, piece.rows_sr.shape[1], n_columns, n_keys
    _rows_kernel[(plan.row_blocks, parts, n_requests)](
        call.query_BHND, relative, piece.rows_sr, piece.columns_sC, piece.numbers_6s, sink, mask, result,
        call.scale * LOG2E.value, call.softcap, left, right, weight or 0.0, *sizes,
        *call.query_BHND.stride(), *strides, **plan.rows_options, PARTS=parts, HAS_SINK=call.sink_H is not None,
        HAS_MASK=call.mask is not None, HAS_LEFT=left >= 0, HAS_RIGHT=right >= 0, LSE_ONLY=weight is None,
    )  # fmt: skip


class _Plan(NamedTuple):
    """What all calls of one kind have in common."""

    dtype: torch.dtype  # of the relative keys
    terms: int
    block_d: int
    parts: int
    row_blocks: int
    keys_grid: tuple[int, int, int]
    keys_options: dict[str, Any]
    rows_options: dict[str, Any]


def _plan_of(call: KernelCall, piece: Piece) -> _Plan:
    query, key = call.query_BHND, call.key_BGND
    sizes = query.shape[1], key.shape[1], query.shape[3], *piece.rows_sr.shape, piece.keys_sK.shape[1]
    return _plan(query.dtype, key.dtype, call.softcap > 0, *sizes)


@lru_cache(maxsize=256)
def _plan(
    query: torch.dtype,
    key: torch.dtype,
    softcap: bool,
    heads: int,
    groups: int,
    width: int,
    s: int,
    r: int,
    n_keys: int,
) -> _Plan:
    """Made once: at every layer its Python would take as long as the launches."""
    dtype = query if query == key and query in (torch.bfloat16, torch.float16) else torch.float32
    terms = 2 if dtype != torch.float32 and not softcap else 1
    share, block_d = heads // groups, max(16, triton.next_power_of_2(width))
    padded_share = triton.next_power_of_2(share)
    block_m, block_c, launch = block_sizes(dtype, block_d, padded_share)
    row_blocks = triton.cdiv(r, block_m // padded_share)
    parts = (p for p in range(1, groups + 1) if groups % p == 0)
    shared = {"GROUPS": groups, "WIDTH": width, "TERMS": terms, "BLOCK_C": block_c, "BLOCK_D": block_d}
    return _Plan(
        dtype=dtype,
        terms=terms,
        block_d=block_d,
        parts=next((p for p in parts if p * s * row_blocks >= ENOUGH_PROGRAMS), groups),
        row_blocks=row_blocks,
        keys_grid=(triton.cdiv(n_keys + 1, block_c), groups, s),
        keys_options={**shared, "HAS_ORIGIN": not softcap},
        rows_options={
            **shared, "SHARE": share, "PADDED_SHARE": padded_share, "HAS_SOFTCAP": softcap, "BLOCK_M": block_m, **launch
        },
    )  # fmt: skip


def block_sizes(dtype: torch.dtype, block_d: int, padded_share: int) -> tuple[int, int, dict[str, int]]:
    """Rows x heads and keys of a block, and how a kernel is launched, for keys of ``dtype``."""
    fp32, wide = dtype == torch.float32, block_d > 128
    block_m = max(BLOCK_ROWS_FP32 if fp32 else BLOCK_ROWS, padded_share)
    return block_m, BLOCK_COLUMNS_WIDE if wide else BLOCK_COLUMNS, {"num_warps": 4, "num_stages": 1 if wide else 2 if fp32 else 3}
