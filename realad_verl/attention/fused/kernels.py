"""`rows.add_head_sum` as two fused Triton kernels: nothing of size heads x rows x keys is written to memory.

The first writes the keys relative to the key of the first wanted column (see `rows`; under a soft cap as they are), in
a form that tensor cores multiply as exactly as fp32: of 16-bit keys the difference as the sum of two 16-bit numbers,
else one fp32 number, for three TF32 products ("tf32x3"). The difference of two bfloat16 numbers has 16 bits unless
their exponents lie more than 8 apart; then 2^-18 of the larger is lost.

The second streams over the keys for the log-sum-exp of each wanted row, then over the wanted columns, and adds their
probabilities, summed over heads, to the result. One program does the rows x query heads that share a key head's loads.
The key heads are cut into a few parts, each with its own sum, so that one request fills a GPU too. One launch each for
all requests, however ragged, and for several layers, whose queries and keys lie ``offsets`` behind the first's.

Small letters are blocks: m query heads x rows, r rows, c columns or keys, d head width (a power of two, at least 16);
logits are in base 2.
"""

# A kernel takes plain numbers where its definition says constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))


# What differs from batch to batch; compiled anew, each of their kinds would take seconds for nothing.
VARYING = ["n_layers", "n_requests", "n_rows", "n_columns", "n_keys"]
VARYING_OF_ROWS = [*VARYING, "left", "right", "each", "stride_ms", "stride_mh", "stride_mr"]


@triton.jit(do_not_specialize=VARYING)
def keys_kernel(
    key, columns, numbers, offsets, relative, n_layers, n_requests, n_rows, n_columns, n_keys,
    stride_kb, stride_kg, stride_kn, stride_kd,
    SEVERAL: tl.constexpr, ALIGN: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr, HAS_ORIGIN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """relative[layer, term, g, k, d]: k over the keys of all requests, each of which has its origin behind its own."""
    group, s, layer = tl.program_id(1), tl.program_id(2) % n_requests, tl.program_id(2) // n_requests
    batch, start = tl.load(numbers + s), tl.load(numbers + n_requests + s)
    count, at = tl.load(numbers + 2 * n_requests + s), tl.load(numbers + 5 * n_requests + s)
    if tl.program_id(0) * BLOCK_C <= count:
        c, d = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
        if SEVERAL:
            key += tl.multiple_of(tl.load(offsets + n_layers + layer), ALIGN)
        of_head = key + batch * stride_kb + group * stride_kg + d * stride_kd
        k_at = of_head[None, :] + (start + c)[:, None] * stride_kn
        k_cd = tl.load(k_at, mask=(c < count)[:, None] & (d < WIDTH)[None, :], other=0.0).to(tl.float32)
        if HAS_ORIGIN:
            first = tl.load(columns + s * n_columns)
            origin_d = tl.load(of_head + first * stride_kn, mask=d < WIDTH, other=0.0).to(tl.float32)
            k_cd = tl.where((c < count)[:, None], k_cd - origin_d[None, :], origin_d[None, :])
        to = relative + (((layer * TERMS * GROUPS + group) * n_keys + at + c) * BLOCK_D)[:, None] + d[None, :]
        high = k_cd.to(relative.dtype.element_ty)
        tl.store(to, high, mask=(c <= count)[:, None])
        if TERMS == 2:
            rest = (k_cd - high.to(tl.float32)).to(relative.dtype.element_ty)
            tl.store(to + n_keys.to(tl.int64) * GROUPS * BLOCK_D, rest, mask=(c <= count)[:, None])


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


@triton.jit(do_not_specialize=VARYING_OF_ROWS)
def rows_kernel(
    query, relative, rows, columns, numbers, offsets, sink, mask, result, scale, softcap, left, right, weight,
    n_layers, n_requests, n_rows, n_columns, n_keys, each, stride_qb, stride_qh, stride_qn, stride_qd,
    stride_ms, stride_mh, stride_mr, stride_mk,
    SEVERAL: tl.constexpr, ALIGN: tl.constexpr,
    GROUPS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINK: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, LSE_ONLY: tl.constexpr,
    PADDED_SHARE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """result[part, s, r, c] += weight x the sum over a part's heads of exp(logits - lse), or result[s, h, r] = lse.

    One program for a few rows of a request and ``each`` of the key heads of all layers: its part of them.
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
        other_term = n_keys.to(tl.int64) * GROUPS * BLOCK_D
        free = keys  # of these, whole blocks of them, every row sees every one
        if HAS_RIGHT:
            first_row = tl.min(tl.where(real_m, rows_m, 1 << 40), axis=0)
            free = tl.maximum(tl.minimum(first_row + right + 1 - start, keys), 0)
        if HAS_LEFT or HAS_MASK:
            free = free * 0
        free = free // BLOCK_C * BLOCK_C
        for step in range(part * each, tl.minimum((part + 1) * each, n_layers * GROUPS)):
            layer, group = step // GROUPS, step % GROUPS
            head_m = group * SHARE + h
            q_at = query
            if SEVERAL:
                q_at += tl.multiple_of(tl.load(offsets + layer), ALIGN)
            q_at = q_at + batch * stride_qb + head_m[:, None] * stride_qh + rows_m[:, None] * stride_qn
            q_md = tl.load(q_at + d[None, :] * stride_qd, mask=real_m[:, None] & (d < WIDTH)[None, :], other=0.0)
            q_md = q_md.to(relative.dtype.element_ty)
            of_head = relative + ((layer * TERMS * GROUPS + group) * n_keys + at) * BLOCK_D
            key_at = of_head + d[None, :]
            top = tl.full([BLOCK_M], -1e29, tl.float32)  # above what is hidden
            total = tl.full([BLOCK_M], 0.0, tl.float32)
            if HAS_SINK:
                top = tl.load(sink + layer * GROUPS * SHARE + head_m, mask=real_m, other=0.0) * LOG2E
                if not HAS_SOFTCAP:
                    origin_d = tl.load(of_head + keys * BLOCK_D + d).to(tl.float32)
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
                    to = (
                        result
                        + ((part.to(tl.int64) * n_requests + s) * n_rows + out_r[:, None]) * n_columns
                        + c[None, :]
                    )
                    inside = (out_r < count)[:, None] & (c < columns_here)[None, :]
                    before = tl.load(to, mask=inside, other=0.0)
                    tl.store(to, before + weight * summed_rc, mask=inside)
