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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from realad_verl.attention.calls import KernelCall, active_observer
from realad_verl.attention.heads import of_heads
from realad_verl.attention.layout import Placement, RowRequest, additive_mask
from realad_verl.attention.precision import full_precision
from realad_verl.attention.readout import AttentionReadout, Reading

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
        placements = self._place(call)
        if 0 < len(heads) < call.query_BHND.shape[1]:
            call = of_heads(call, heads)
        counts = self._columns or [len(placement.columns) for placement in placements]
        wanted = [placement.columns[:count] for placement, count in zip(placements, counts, strict=True)]
        groups: dict[int, list[int]] = {}
        for i, columns_C in enumerate(wanted):
            groups.setdefault(len(columns_C), []).append(i)
        rows: dict[int, Tensor] = {}
        for group in groups.values():
            some = [placements[i] for i in group]
            log_SRC = _rows_of(call, some, torch.stack([wanted[i] for i in group]), self._readout.max_bytes)
            if not heads:
                log_SRC = torch.full_like(log_SRC, HIDDEN)
            rows |= dict(zip(group, log_SRC.unbind(), strict=True))
        return rows


def _rows_of(call: KernelCall, placements: list[Placement], columns_SC: Tensor, max_bytes: int) -> Tensor:
    """[S, R, C]: log of the sum over heads of mass x share of each column. Short requests repeat their last row."""
    device = columns_SC.device
    batch_S1 = torch.tensor([placement.batch for placement in placements], device=device)[:, None]
    longest = max(len(placement.rows) for placement in placements)
    rows_SR = torch.stack([torch.cat([p.rows, p.rows[-1:].expand(longest - len(p.rows))]) for p in placements])
    if call.weights_BHNN is not None:  # eager attention gives its own probabilities
        index = (batch_S1[:, :, None], slice(None), rows_SR[:, :, None], columns_SC[:, None])
        weights_SHRC = call.weights_BHNN[index].permute(0, 3, 1, 2)
        return _recomputed(_head_sum, weights_SHRC.float().clamp(min=TINY).log(), None)
    query_SHRD = call.query_BHND[batch_S1, :, rows_SR].transpose(1, 2)
    key_SGCD = _relative(call.key_BGND[batch_S1, :, columns_SC].transpose(1, 2), _origin(call, placements, batch_S1))
    with torch.no_grad():
        bias = _bias(call, placements, rows_SR, columns_SC)
        lse_SHR = _denominators(call, placements, rows_SR, max_bytes)
    fixed: dict[str, Any] = {"bias": bias, "scale": call.scale, "softcap": call.softcap, "lse_SHR": lse_SHR}
    return _recomputed(_layer, query_SHRD, key_SGCD, **fixed)


def _origin(call: KernelCall, placements: list[Placement], batch_S1: Tensor) -> Tensor | None:
    """The first key in sight of each request [S, G, 1, D], what its keys are taken relative to (see `rows`).

    A logit that all keys share changes no share and no mass, and no gradient, but costs fp32 its last digits.
    """
    if call.softcap:
        return None
    first_S1 = torch.tensor([placement.start for placement in placements], device=batch_S1.device)[:, None]
    return call.key_BGND[batch_S1, :, first_S1].transpose(1, 2).detach().float()


def _relative(key: Tensor, origin: Tensor | None) -> Tensor:
    return key if origin is None else key.float() - origin


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


def _bias(call: KernelCall, placements: list[Placement], rows_SR: Tensor, columns_SC: Tensor) -> Tensor | None:
    """What the kernel adds to the wanted logits [S, H or 1, R, C]; None where it hides nothing of them."""
    one_by_one = [
        additive_mask(call, placement.batch, rows_R, columns_C)
        for placement, rows_R, columns_C in zip(placements, rows_SR, columns_SC, strict=True)
    ]
    if all(bias is None for bias in one_by_one):
        return None
    return torch.stack([bias for bias in one_by_one if bias is not None])


def _denominators(call: KernelCall, placements: list[Placement], rows_SR: Tensor, max_bytes: int) -> Tensor:
    """Log-sum-exp of the rows over every key in sight [S, H, R], the requests that share their keys together."""
    shared: dict[tuple[int, int, int], list[int]] = {}
    for i, placement in enumerate(placements):
        shared.setdefault((placement.batch, placement.start, placement.stop), []).append(i)
    heads, longest = call.query_BHND.shape[1], rows_SR.shape[1]
    lse_SHR = torch.empty(len(placements), heads, longest, device=rows_SR.device)
    for (batch, start, stop), some in shared.items():
        keys_K = torch.arange(start, stop, device=rows_SR.device)
        key_GKD = call.key_BGND[batch, :, start:stop]
        at_once = max(1, max_bytes // (3 * 4 * heads * len(keys_K)))
        parts = [
            _denominator(call, batch, rows_r, key_GKD, keys_K) for rows_r in rows_SR[some].flatten().split(at_once)
        ]
        lse_SHR[some] = torch.cat(parts, 1).unflatten(1, (len(some), longest)).transpose(0, 1)
    return lse_SHR


def _denominator(call: KernelCall, batch: int, rows_R: Tensor, key_GKD: Tensor, keys_K: Tensor) -> Tensor:
    """[H, R]"""
    bias = additive_mask(call, batch, rows_R, keys_K)
    query_HRD, origin_G1D = call.query_BHND[batch, :, rows_R], None if call.softcap else key_GKD[:, :1].float()
    key_GKD = _relative(key_GKD, origin_G1D)
    logits_HRK = _logits(query_HRD[None], key_GKD[None], call.scale, call.softcap, bias)[0]
    if call.sink_H is not None:
        sink_HR1 = call.sink_H.float()[:, None, None].expand(-1, len(rows_R), 1)
        if origin_G1D is not None:
            sink_HR1 = sink_HR1 - _logits(query_HRD[None], origin_G1D[None], call.scale, 0.0, None)[0]
        logits_HRK = torch.cat([logits_HRK, sink_HR1], -1)
    return logits_HRK.logsumexp(-1)


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
