"""Attention rows that carry a gradient, out of a model's training forward.

The kernel's own q and k are kept while the layers run; the rows are made of them *after* the forward. (Made inside a
layer that gradient checkpointing recomputes, they would be saved once and recomputed never: CheckpointError.) Of q
only the wanted rows and of k only the wanted columns are kept from there on, and what is made of them is itself
recomputed in the backward pass: nothing of size heads x rows x columns outlives a layer.

The value of a row is that of `readout` over its columns, normalised over them. Its gradient goes through *where* each
head looks among the columns; how much of its attention a head spends on them, its mass, is a constant [ours]: the loss
shall move the look, not turn heads on or off.

S requests of equal numbers of columns, H query heads, G key heads, R rows (the longest request's), C columns, D width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from realad_verl.attention.calls import KernelCall, active_observer
from realad_verl.attention.heads import of_heads
from realad_verl.attention.layout import Placement, RowRequest
from realad_verl.attention.pieces import Piece, cut, whole
from realad_verl.attention.precision import full_precision
from realad_verl.attention.readout import AttentionReadout, Reading
from realad_verl.attention.rows import denominators, denominators_fused, fused_on

HIDDEN = -1e30  # in place of -inf, whose gradient is NaN where a row sees no column at all
TINY = 1e-30


@contextmanager
def gradient_reading(
    readout: AttentionReadout,
    requests: Sequence[RowRequest],
    head_group: dist.ProcessGroup | None = None,
    columns: Sequence[int] | None = None,
    also_rows: bool = False,
) -> Iterator["GradientReading"]:
    """As `AttentionReadout.reading`, around one forward with gradients; `GradientReading.log_rows` comes after it.

    ``columns``: how many of each request's columns, from the first, have a gradient (None: all). ``also_rows``: read
    the plain rows of all columns too.
    """
    with readout.observe(GradientReading(readout, requests, head_group, columns, also_rows)) as reading:
        yield reading


class GradientReading(Reading):
    """A reading that keeps q and k until the decoder has run, and then the wanted part of them."""

    def __init__(
        self,
        readout: AttentionReadout,
        requests: Sequence[RowRequest],
        head_group: dist.ProcessGroup | None,
        columns: Sequence[int] | None,
        also_rows: bool,
    ) -> None:
        super().__init__(readout, requests, head_group)
        self._columns = columns
        self._also_rows = also_rows
        self._calls: list[tuple[KernelCall, list[int]]] = []  # of each layer, with its chosen heads
        self._layers: list[dict[int, Tensor]] = []
        self._made_groups: list[_Group] = []
        self._grouped_for: list[Placement] | None = None

    def hooks(self) -> Iterator["torch.utils.hooks.RemovableHandle"]:
        yield from super().hooks()
        yield self._readout.decoder.register_forward_hook(self._forward_ends)

    def saw(self, call: KernelCall) -> None:
        if not self.wants_call():
            return
        assert self._layer is not None
        self._calls.append((call, self._heads_here(call)))
        if self._also_rows:
            super().saw(call)
        else:
            self._seen.add(self._layer)

    def _forward_ends(self, *_: object) -> None:
        """Outside the recomputed layers, before anything as large as the logits is made."""
        if active_observer() is not self or not self._calls:
            return
        started = time.perf_counter()
        with full_precision(self._calls[0][0].query_BHND.device.type):
            while self._calls:
                self._layers.append(self._layer_rows(*self._calls.pop(0)))  # lets go of the layer's q and k
        self.seconds += time.perf_counter() - started

    def log_rows(self) -> list[Tensor]:
        """[R, C] fp32 for each request: log of its attention to its columns; it carries the gradient.

        Normalised over those columns, averaged over heads and layers by their mass on them. Raises UserError where a
        chosen layer was not seen.
        """
        self.require_all_layers()
        if not self._requests:
            return []
        with full_precision(self._layers[0][0].device.type):
            return [self._log_row(i, request) for i, request in enumerate(self._requests)]

    def _log_row(self, i: int, request: RowRequest) -> Tensor:
        """One request's rows over all layers and ranks, normalised."""
        log_RC = torch.stack([layer[i] for layer in self._layers]).logsumexp(0)[: len(request.queries)]
        if self._head_group is not None:
            log_RC = _sum_over_ranks(log_RC, self._head_group)
        return log_RC.log_softmax(-1)

    def _layer_rows(self, call: KernelCall, heads: list[int]) -> dict[int, Tensor]:
        """Log of one layer's rows by request, those of equal numbers of columns done together."""
        groups = self._groups(call)
        rows: dict[int, Tensor] = {}
        if 0 < len(heads) < call.query_BHND.shape[1]:
            call = of_heads(call, heads)
        for group in groups:
            log_SRC = self._rows_of(call, group)
            if not heads:
                log_SRC = torch.full_like(log_SRC, HIDDEN)
            rows |= dict(zip(group.members, log_SRC.unbind(), strict=True))
        for i, request in enumerate(self._requests):
            if i not in rows:  # without a row or a column
                count = len(request.columns) if self._columns is None else self._columns[i]
                rows[i] = torch.zeros(len(request.queries), count, device=call.query_BHND.device)
        return rows

    def _groups(self, call: KernelCall) -> list["_Group"]:
        """The requests by their numbers of columns: made once for all layers of one kind."""
        placements = self._place(call)
        if self._grouped_for is not placements:
            counts = self._columns or [len(placement.columns) for placement in placements]
            groups: dict[int, list[int]] = {}
            for i, count in enumerate(counts):
                if count and len(placements[i].rows):
                    groups.setdefault(count, []).append(i)
            self._made_groups = [_group(placements, some, count, call) for count, some in groups.items()]
            self._grouped_for = placements
        return self._made_groups

    def _rows_of(self, call: KernelCall, group: "_Group") -> Tensor:
        """[S, R, C]: log of the sum over heads of mass x share of each column."""
        piece = group.whole
        batch_S1, rows_SR, columns_SC = piece.batch_s[:, None], piece.rows_sr, piece.columns_sC
        if call.weights_BHNN is not None:  # eager attention gives its own probabilities
            index = (batch_S1[:, :, None], slice(None), rows_SR[:, :, None], columns_SC[:, None])
            weights_SHRC = call.weights_BHNN[index].permute(0, 3, 1, 2)
            return _recomputed(_head_sum, weights_SHRC.float().clamp(min=TINY).log(), None)
        query_SHRD = call.query_BHND[batch_S1, :, rows_SR].transpose(1, 2)
        # Relative to the first wanted key (see `rows`): a logit that all keys share changes no share, no mass and no
        # gradient, but costs fp32 its last digits.
        key_SGCD = call.key_BGND[batch_S1, :, columns_SC].transpose(1, 2)
        key_SGCD = key_SGCD if call.softcap else key_SGCD.float() - key_SGCD[:, :, :1].detach().float()
        with torch.no_grad():
            bias, lse_SHR = piece.wanted_bias(call), self._denominators(call, group)
        fixed: dict[str, Any] = {"bias": bias, "scale": call.scale, "softcap": call.softcap, "lse_SHR": lse_SHR}
        return _recomputed(_layer, query_SHRD, key_SGCD, **fixed)

    def _denominators(self, call: KernelCall, group: "_Group") -> Tensor:
        """Log-sum-exp of the rows over every key in sight [S, H, R]."""
        if fused_on(self._readout.kernel, call.query_BHND.device):
            return denominators_fused(call, group.whole)
        (heads, groups), width = (call.query_BHND.shape[1], call.key_BGND.shape[1]), call.key_BGND.shape[3]
        if (heads, groups) not in group.pieces:
            bound = (heads, groups, width, self._readout.max_bytes, call.query_BHND.device)
            group.pieces[heads, groups] = cut(group.placements, *bound)
        parts: dict[int, list[Tensor]] = {}  # by the first request of a piece: in order, as the group is sorted
        pieces = group.pieces[heads, groups]
        for piece, lse_SHR in zip(pieces, denominators(call, pieces), strict=True):
            parts.setdefault(piece.parts[0][0], []).append(lse_SHR)
        return torch.cat([some[0] if len(some) == 1 else torch.cat(some, 2) for some in parts.values()])


@dataclass(frozen=True)
class _Group:
    """Requests of equal numbers of columns, in a kernel's coordinates: what the layers of a forward share.

    Attributes:
        members: their numbers. placements: with rows repeated to those of the longest.
        whole: all of them in one piece. pieces: by numbers of heads, those that their denominators are made in.
    """

    members: list[int]
    placements: list[Placement]
    whole: Piece
    pieces: dict[tuple[int, int], list[Piece]] = field(default_factory=dict)


def _group(placements: Sequence[Placement], some: list[int], count: int, call: KernelCall) -> _Group:
    """In the order of `pieces.cut`: by the number of keys in sight."""
    some = sorted(some, key=lambda i: placements[i].stop - placements[i].start)
    longest = max(len(placements[i].rows) for i in some)
    padded = []
    for i in some:
        rows = placements[i].rows
        rows = torch.cat([rows, rows[-1:].expand(longest - len(rows))])
        padded.append(replace(placements[i], rows=rows, columns=placements[i].columns[:count]))
    return _Group(some, padded, whole(padded, call.key_BGND.shape[1], call.query_BHND.device)[0])


def _recomputed(function: Callable[..., Tensor], *args: Tensor | None, **kwargs: Any) -> Tensor:
    result: Any = checkpoint(function, *args, use_reentrant=False, **kwargs)
    return result


def _layer(
    query_SHRD: Tensor, key_SGCD: Tensor, bias: Tensor | None, scale: float, softcap: float, lse_SHR: Tensor
) -> Tensor:
    return _head_sum(_logits(query_SHRD, key_SGCD, scale, softcap, bias), lse_SHR)


def _logits(query_SHRD: Tensor, key_SGCD: Tensor, scale: float, softcap: float, bias: Tensor | None) -> Tensor:
    """[S, H, R, C] fp32"""
    groups = key_SGCD.shape[1]
    query = (query_SHRD.float() * scale).unflatten(1, (groups, -1)).flatten(2, 3)
    logits_SHRC = (query @ key_SGCD.float().transpose(-1, -2)).unflatten(2, (-1, query_SHRD.shape[2])).flatten(1, 2)
    if softcap:
        logits_SHRC = softcap * torch.tanh(logits_SHRC / softcap)
    return logits_SHRC if bias is None else (logits_SHRC + bias).clamp(min=HIDDEN)


def _head_sum(logits_SHRC: Tensor, lse_SHR: Tensor | None) -> Tensor:
    """Log of the heads' shares weighted by their mass, which is detached: [S, H, R, C] -> [S, R, C]"""
    mass_SHR = logits_SHRC.detach().logsumexp(-1)
    if lse_SHR is not None:
        mass_SHR = mass_SHR - lse_SHR
    return (logits_SHRC.log_softmax(-1) + mass_SHR[..., None]).logsumexp(1)


def _sum_over_ranks(log_RC: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Log of the ranks' sum, for heads that are divided among ranks. In backward the ranks' gradients are summed."""
    top = log_RC.detach().amax()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return _AllReduce.apply((log_RC - top).exp(), group).clamp(min=TINY).log()  # pyright: ignore[reportOptionalMemberAccess]


class _AllReduce(torch.autograd.Function):
    """Sum over the ranks of a group, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad = grads[0].clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
