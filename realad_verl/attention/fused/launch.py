"""How the fused kernels of `kernels` are launched: on which blocks, over how many programs, for which layers."""

# A kernel takes plain numbers where its definition says constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.fused.kernels import LOG2E, keys_kernel, rows_kernel
from realad_verl.attention.pieces import Piece, moved

# Rows x query heads and keys a block. Larger ones reuse more of a load; these leave room in the 99 KiB of shared
# memory of consumer cards, too (tests/unit/attention/test_triton_kernel.py).
BLOCK_ROWS, BLOCK_COLUMNS = 64, 64
BLOCK_ROWS_FP32, BLOCK_COLUMNS_WIDE = 32, 32
# Programs that are enough for the largest cards of today (132 to 148 multiprocessors).
ENOUGH_PROGRAMS = 1024


def add_head_sum_triton(sum_psrC: Tensor, calls: Sequence[KernelCall], piece: Piece, weight: float) -> None:
    """`rows.add_head_sum` for all calls in two launches; ``sum_psrC`` [P, s, r, C] fp32, with P of `head_parts`.

    The calls differ in their numbers only: those of one `KernelCall.kind`.
    """
    _run(calls, piece, sum_psrC, weight)


def denominators_triton(call: KernelCall, piece: Piece) -> Tensor:
    """`rows.denominators` in two launches; what lies behind a request's real rows is not set."""
    size = len(piece.parts), call.query_BHND.shape[1], piece.rows_sr.shape[1]
    lse_sHr = torch.empty(size, dtype=torch.float32, device=call.query_BHND.device)
    _run([call], piece, lse_sHr)
    return lse_sHr


def head_parts(call: KernelCall, piece: Piece, layers: int) -> int:
    """Into how many parts the key heads of so many layers are cut, each with a sum of its own: enough to fill a GPU."""
    programs = len(piece.parts) * _plan_of(call, piece).row_blocks
    return min(layers * call.key_BGND.shape[1], -(-ENOUGH_PROGRAMS // programs))


def _run(calls: Sequence[KernelCall], piece: Piece, result: Tensor, weight: float | None = None) -> None:
    """Both kernels: adds to the sums [P, s, r, C], or sets the denominators [s, H, r] where no weight is given."""
    call, n_layers, n_requests = calls[0], len(calls), len(piece.parts)
    plan = _plan_of(call, piece)
    n_keys = piece.sight.total + n_requests  # one more for each: what its keys are relative to
    sizes = n_layers, n_requests, piece.rows_sr.shape[1], piece.columns_sC.shape[1], n_keys
    n_groups = call.key_BGND.shape[1]
    relative = torch.empty(
        (n_layers, plan.terms, n_groups, n_keys, plan.block_d), dtype=plan.dtype, device=result.device
    )
    offsets, align = (piece.numbers_6s, 1) if n_layers == 1 else _offsets(calls)
    layers = {"SEVERAL": n_layers > 1, "ALIGN": align}
    keys_kernel[(*plan.keys_grid, n_layers * n_requests)](
        call.key_BGND, piece.columns_sC, piece.numbers_6s, offsets, relative, *sizes, *call.key_BGND.stride(),
        **layers, **plan.keys_options,
    )  # fmt: skip
    # Causality and window are computed in place; a mask of the kernel's is cut to the rows once for all layers.
    mask, strides = relative, (0, 0, 0, 0)
    if call.mask is not None:
        mask = piece.additive_mask(call)
        strides = (mask.stride(0), mask.stride(1) * (mask.shape[1] > 1), *mask.stride()[2:])
    sink = relative if call.sink_H is None else torch.stack([c.sink_H for c in calls]).float()
    left, right = call.window[0], 0 if call.causal else call.window[1]
    parts = n_groups if weight is None else len(result)
    each = -(-n_layers * n_groups // parts)
    rows_kernel[(plan.row_blocks, parts, n_requests)](
        call.query_BHND, relative, piece.rows_sr, piece.columns_sC, piece.numbers_6s, offsets, sink, mask, result,
        call.scale * LOG2E.value, call.softcap, left, right, weight or 0.0, *sizes, each,
        *call.query_BHND.stride(), *strides, **layers, **plan.rows_options,
        HAS_SINK=call.sink_H is not None, HAS_MASK=call.mask is not None, HAS_LEFT=left >= 0, HAS_RIGHT=right >= 0,
        LSE_ONLY=weight is None,
    )  # fmt: skip


def _offsets(calls: Sequence[KernelCall]) -> tuple[Tensor, int]:
    """How many elements the calls' queries and keys lie behind those of the first [2, L], and what divides that."""
    states = [call.query_BHND for call in calls], [call.key_BGND for call in calls]
    at = [[state.data_ptr() for state in some] for some in states]
    size = calls[0].query_BHND.element_size(), calls[0].key_BGND.element_size()
    found = [[(a - some[0]) // n for a in some] for some, n in zip(at, size, strict=True)]
    align = 16 // max(size) if all(a % 16 == 0 for some in at for a in some) else 1
    return moved(torch.tensor(found), calls[0].query_BHND.device), align


class _Plan(NamedTuple):
    """What all calls of one kind have in common."""

    dtype: torch.dtype  # of the relative keys
    terms: int
    block_d: int
    row_blocks: int
    keys_grid: tuple[int, int]
    keys_options: dict[str, Any]
    rows_options: dict[str, Any]


def _plan_of(call: KernelCall, piece: Piece) -> _Plan:
    query, key = call.query_BHND, call.key_BGND
    sizes = query.shape[1], key.shape[1], query.shape[3], *piece.rows_sr.shape, piece.sight.longest
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
    shared = {"GROUPS": groups, "WIDTH": width, "TERMS": terms, "BLOCK_C": block_c, "BLOCK_D": block_d}
    return _Plan(
        dtype=dtype,
        terms=terms,
        block_d=block_d,
        row_blocks=row_blocks,
        keys_grid=(triton.cdiv(n_keys + 1, block_c), groups),
        keys_options={**shared, "HAS_ORIGIN": not softcap},
        rows_options={
            **shared, "SHARE": share, "PADDED_SHARE": padded_share, "HAS_SOFTCAP": softcap, "BLOCK_M": block_m, **launch
        },
    )  # fmt: skip


def block_sizes(dtype: torch.dtype, block_d: int, padded_share: int) -> tuple[int, int, dict[str, int]]:
    """Rows x heads and keys of a block, and how a kernel is launched, for keys of ``dtype``."""
    fp32, wide = dtype == torch.float32, block_d > 128
    block_m = max(BLOCK_ROWS_FP32 if fp32 else BLOCK_ROWS, padded_share)
    return (
        block_m,
        BLOCK_COLUMNS_WIDE if wide else BLOCK_COLUMNS,
        {"num_warps": 4, "num_stages": 1 if wide else 2 if fp32 else 3},
    )
