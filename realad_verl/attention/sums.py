"""Rows of some requests, summed over the heads of the kernel calls of many layers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.layout import Placement, RowRequest
from realad_verl.attention.pieces import Piece, cut, whole
from realad_verl.attention.precision import full_precision
from realad_verl.attention.rows import (
    add_fused,
    add_head_sum,
    add_own_weights,
    fused_kind,
    fused_on,
    new_sums,
)


class HeadSums:
    """What `Reading` adds up, by kinds of layers that share their pieces.

    Fused kernels take several layers by one launch: at sequences so short that the CPU launches slower than the GPU
    computes, each launch counts. Their queries and keys are kept until then, within ``max_bytes``.

    Args:
        kernel, max_bytes: see `AttentionReadout`.
        layers: how many will come.
        place: the requests in a kernel's coordinates.
        timed: around what is computed.
    """

    def __init__(
        self,
        kernel: str,
        max_bytes: int,
        layers: int,
        place: Callable[[KernelCall], Sequence[Placement]],
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._kernel, self._max_bytes, self._layers = kernel, max_bytes, layers
        self._place, self._timed = place, timed
        self._pieces: dict[tuple, list[Piece]] = {}
        self._sums: dict[tuple, list[Tensor]] = {}  # `rows.new_sums` of each piece
        self._waiting: dict[tuple, list[KernelCall]] = {}

    def alone(self) -> "HeadSums":
        """Another, of the same pieces, for one layer."""
        other = HeadSums(self._kernel, self._max_bytes, 1, self._place, self._timed)
        other._pieces = self._pieces
        return other

    def add(self, call: KernelCall, weight: float) -> None:
        """Adds ``weight`` x the sum over the call's heads, for all requests at once where they fit into one piece."""
        kind, fused = _kind(call), call.weights_BHNN is None and fused_on(self._kernel, call.query_BHND.device)
        at_once = max(1, min(self._layers, self._max_bytes // _bytes(call))) if fused else 0
        with self._timed() if kind not in self._sums else nullcontext():
            sums, pieces = self._sums_of(kind, call, at_once), self._pieces[kind]
        if not fused:
            with self._timed(), full_precision(call.query_BHND.device.type):
                add = add_head_sum if call.weights_BHNN is None else add_own_weights
                add(sums, call, pieces, weight)
            return
        together = (kind, weight, fused_kind(call))
        self._waiting.setdefault(together, []).append(call)
        if len(self._waiting[together]) == at_once:
            self._add_waiting(together)

    def finish(self) -> None:
        """Nothing but a sum for each request is kept from here on."""
        for together in list(self._waiting):
            self._add_waiting(together)
        self._sums = {kind: [_in_one(sum_psrC) for sum_psrC in sums] for kind, sums in self._sums.items()}

    def of_requests(self, requests: Sequence[RowRequest], device: torch.device) -> list[Tensor]:
        """[R, C] of each request, out of the pieces' sums."""
        self.finish()
        found = [torch.zeros(len(r.queries), len(r.columns), device=device) for r in requests]
        for kind, sums in self._sums.items():
            for piece, (sum_srC,) in zip(self._pieces[kind], sums, strict=True):
                for (request, first, rows, columns), sum_rC in zip(piece.parts, sum_srC, strict=True):
                    found[request][first : first + rows] += sum_rC[:rows, :columns]
        return found

    def _add_waiting(self, together: tuple) -> None:
        kind, weight, _ = together
        with self._timed():
            add_fused(self._sums[kind], self._waiting.pop(together), self._pieces[kind], weight)

    def _sums_of(self, kind: tuple, call: KernelCall, at_once: int) -> list[Tensor]:
        device, (groups, _, width) = call.query_BHND.device, call.key_BGND.shape[1:]
        if kind not in self._pieces:
            placed, bound = self._place(call), (call.query_BHND.shape[1], groups, width, self._max_bytes, device)
            self._pieces[kind] = whole(placed, groups, device) if at_once else cut(placed, *bound)
        if kind not in self._sums:
            self._sums[kind] = [new_sums(call, piece, at_once) for piece in self._pieces[kind]]
        return self._sums[kind]


def _kind(call: KernelCall) -> tuple:
    """What decides a call's pieces."""
    shapes = call.query_BHND.shape, call.key_BGND.shape
    return *shapes, call.causal, call.cu_seqlens is None, call.padding_mask_BT is None, call.weights_BHNN is None


def _bytes(call: KernelCall) -> int:
    """What a waiting call keeps and, three times its keys, what they are turned into."""
    return (
        call.query_BHND.numel() * call.query_BHND.element_size()
        + 4 * call.key_BGND.numel() * call.key_BGND.element_size()
    )


def _in_one(sum_psrC: Tensor) -> Tensor:
    """[1, s, r, C]"""
    return sum_psrC.sum(0, keepdim=True) if len(sum_psrC) > 1 else sum_psrC
