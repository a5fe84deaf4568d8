"""Where a requested sequence lies on the token axis that a kernel saw, and which keys each of its rows can see."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.errors import UserError


@dataclass(frozen=True)
class RowRequest:
    """The attention rows wanted of one sequence of a forward.

    Attributes:
        batch_row: batch row that holds the sequence; 0 in a pack.
        offset: its first token on the token axis: the number of pads on the left, or its ``cu_seqlens`` entry in a
            pack.
        length: its number of tokens.
        queries: [R] positions in the sequence (from 0) whose attention is wanted.
        columns: [C] positions in the sequence that it is wanted to.
    """

    batch_row: int
    offset: int
    length: int
    queries: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        for name, positions in (("queries", self.queries), ("columns", self.columns)):
            if positions.ndim != 1 or positions.is_floating_point():
                raise UserError(
                    f"{name} must be a 1-D tensor of positions, not {positions.dtype} {tuple(positions.shape)}"
                )
            if len(positions) and (int(positions.min()) < 0 or int(positions.max()) >= self.length):
                raise UserError(
                    f"{name} reach from {int(positions.min())} to {int(positions.max())} in a sequence of "
                    f"{self.length} tokens. Allowed: 0 to {self.length - 1}."
                )


@dataclass(frozen=True)
class Placement:
    """A request in a kernel's coordinates: batch entry, rows [R], columns [C], and the keys [start, stop) in sight.

    Positions lie on the CPU.
    """

    batch: int
    rows: Tensor
    columns: Tensor
    start: int
    stop: int


def place(requests: Sequence[RowRequest], call: KernelCall) -> list[Placement]:
    """Finds the requests in the token axis of ``call``; of a GPU, only the boundaries of a pack are waited for.

    Raises:
        UserError: a request lies outside the forward's tokens, covers padding, or crosses a sequence boundary.
    """
    bounds = None if call.cu_seqlens is None else call.cu_seqlens.tolist()
    mask_BT = None if bounds is None or call.padding_mask_BT is None else call.padding_mask_BT.cpu().bool()
    return [_place(request, call, bounds, mask_BT) for request in requests]


def _place(request: RowRequest, call: KernelCall, bounds: list[int] | None, mask_BT: Tensor | None) -> Placement:
    batch, _, tokens, _ = call.query_BHND.shape
    if bounds is None:
        if request.batch_row >= batch or request.offset + request.length > tokens:
            raise UserError(f"{_describe(request)} is outside the forward's {batch} x {tokens} tokens")
        return _placement(request, call, request.batch_row, request.offset, 0, tokens)
    base = request.offset if mask_BT is None else _unpadded_base(request, mask_BT)
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if start <= base < stop:
            if base + request.length > stop:
                raise UserError(f"{_describe(request)} crosses a boundary of the packed sequences ({start} to {stop})")
            return _placement(request, call, 0, base, start, stop)
    raise UserError(f"{_describe(request)} is outside the {tokens} packed tokens")


def _unpadded_base(request: RowRequest, mask_BT: Tensor) -> int:
    """Index of the request's first token after the padding was removed."""
    row = request.batch_row
    if row >= mask_BT.shape[0] or request.offset + request.length > mask_BT.shape[1]:
        raise UserError(f"{_describe(request)} is outside the forward's {tuple(mask_BT.shape)} tokens")
    if not bool(mask_BT[row, request.offset : request.offset + request.length].all()):
        raise UserError(f"{_describe(request)} covers tokens that the attention mask marks as padding")
    return int(mask_BT[:row].sum()) + int(mask_BT[row, : request.offset].sum())


def _placement(request: RowRequest, call: KernelCall, batch: int, base: int, start: int, stop: int) -> Placement:
    rows, columns = request.queries.cpu() + base, request.columns.cpu() + base
    if call.causal and len(rows):
        stop = min(stop, int(torch.cat([rows, columns]).max()) + 1)
    return Placement(batch, rows, columns, start, stop)


def _describe(request: RowRequest) -> str:
    return (
        f"the sequence at batch row {request.batch_row}, tokens {request.offset} to {request.offset + request.length},"
    )
