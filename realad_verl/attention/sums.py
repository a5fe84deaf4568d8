"""Rows of some requests, summed over the heads of the kernel calls of many layers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

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
    fused_on,
    new_sums,
)


class HeadSums:
    """What `Reading` adds up, by kinds of layers that share their pieces.

    Fused kernels take several layers by one launch: at sequences so short that the CPU launches slower than the GPU
    computes, each launch counts. Their queries and keys are kept until then, within ``max_bytes``, and must not be
    written to by what comes after the kernel; no attention of transformers does.

    Args:
        kernel, max_bytes: see `AttentionReadout`.
        layers: how many will come.
        place: the requests in a kernel's coordinates.
        timed: around what is computed here.
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
        self._pieces: dict[tuple, list[Piece]] = {}  # by layouts
        self._sums: dict[tuple, list[Tensor]] = {}  # `rows.new_sums` of each piece
        self._kinds: dict[tuple, _Kind] = {}

    def alone(self) -> "HeadSums":
        """Another, of the same pieces, for one layer."""
        other = HeadSums(self._kernel, self._max_bytes, 1, self._place, self._timed)
        other._pieces = self._pieces
        return other

    def add(self, call: KernelCall, weight: float) -> None:
        """Adds ``weight`` x the sum over the call's heads, for all requests at once where they fit into one piece."""
        name = weight, call.kind()
        kind = self._kinds.get(name)
        if kind is None:
            with self._timed():
                kind = self._kinds[name] = self._new_kind(call, weight)
        kind.waiting.append(call)
        if len(kind.waiting) >= kind.at_once:
            self._add_waiting(kind)

    def finish(self) -> None:
        """Nothing but a sum for each request is kept from here on."""
        for kind in self._kinds.values():
            if kind.waiting:
                self._add_waiting(kind)
        self._kinds = {}
        self._sums = {layout: [_in_one(sum_psrC) for sum_psrC in sums] for layout, sums in self._sums.items()}

    def of_requests(self, requests: Sequence[RowRequest], device: torch.device) -> list[Tensor]:
        """[R, C] of each request, out of the pieces' sums."""
        self.finish()
        found = [torch.zeros(len(r.queries), len(r.columns), device=device) for r in requests]
        for layout, sums in self._sums.items():
            for piece, (sum_srC,) in zip(self._pieces[layout], sums, strict=True):
                for (request, first, rows, columns), sum_rC in zip(piece.parts, sum_srC, strict=True):
                    found[request][first : first + rows] += sum_rC[:rows, :columns]
        return found

    def _add_waiting(self, kind: "_Kind") -> None:
        calls, kind.waiting = kind.waiting, []
        sums, pieces = self._sums[kind.layout], self._pieces[kind.layout]
        with self._timed():
            if kind.fused:
                add_fused(sums, calls, pieces, kind.weight)
                return
            add = add_head_sum if calls[0].weights_BHNN is None else add_own_weights
            with full_precision(calls[0].query_BHND.device.type):
                add(sums, calls[0], pieces, kind.weight)

    def _new_kind(self, call: KernelCall, weight: float) -> "_Kind":
        layout, device, (groups, _, width) = call.layout(), call.query_BHND.device, call.key_BGND.shape[1:]
        fused = call.weights_BHNN is None and fused_on(self._kernel, device)
        at_once = max(1, min(self._layers, self._max_bytes // _bytes(call))) if fused else 1
        if layout not in self._pieces:
            placed, bound = self._place(call), (call.query_BHND.shape[1], groups, width, self._max_bytes, device)
            self._pieces[layout] = whole(placed, groups, device) if fused else cut(placed, *bound)
        if layout not in self._sums:
            self._sums[layout] = [new_sums(call, piece, at_once if fused else 0) for piece in self._pieces[layout]]
        return _Kind(layout, weight, fused, at_once)


@dataclass
class _Kind:
    """Layers that differ in their numbers only, and those of them that have not been added."""

    layout: tuple
    weight: float
    fused: bool
    at_once: int
    waiting: list[KernelCall] = field(default_factory=list)


def _bytes(call: KernelCall) -> int:
    """What a waiting call keeps and, three times its keys, what they are turned into."""
    return (
        call.query_BHND.numel() * call.query_BHND.element_size()
        + 4 * call.key_BGND.numel() * call.key_BGND.element_size()
    )


def _in_one(sum_psrC: Tensor) -> Tensor:
    """[1, s, r, C]"""
    return sum_psrC.sum(0, keepdim=True) if len(sum_psrC) > 1 else sum_psrC
