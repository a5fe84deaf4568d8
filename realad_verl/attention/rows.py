"""The maths: wanted rows and columns of softmax(QK^T), summed over heads, for all requests of a piece at once.

H query heads, G key heads (each shared by H / G query heads), D head width; s requests, r rows, K keys, C wanted
columns of a piece (`pieces`); g key heads and h query heads done at a time.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.pieces import Mask, Piece
from realad_verl.errors import bad_value


def add_head_sum(sums: Sequence[Tensor], call: KernelCall, pieces: Sequence[Piece], weight: float) -> None:
    """Adds ``weight`` x the attention probabilities of the pieces' rows, summed over the call's heads, in fp32.

    p = softmax over K of ``cap(q k^T * scale) + mask``, of which the wanted columns are kept. ``sums``: of `new_sums`,
    one a piece. About a dozen kernels for a piece, whatever its number of requests (counted in
    tests/unit/attention/test_device.py).
    """
    for i, logits_shrK in _logits(call, pieces):
        total_srK = logits_shrK.softmax(-1)[..., : pieces[i].sight.longest].sum(1)
        at_srC = pieces[i].wanted_sC[:, None].expand(-1, total_srK.shape[1], -1)
        sums[i][0].add_(total_srK.gather(2, at_srC), alpha=weight)


def denominators(call: KernelCall, pieces: Sequence[Piece]) -> list[Tensor]:
    """[s, H, r] of each piece: log-sum-exp of the rows' logits over every key in sight.

    Relative to the key of the first wanted column, as all logits here are (not under a soft cap).
    """
    by_heads: list[list[Tensor]] = [[] for _ in pieces]
    for i, logits_shrK in _logits(call, pieces):
        by_heads[i].append(logits_shrK.logsumexp(-1))
    return [torch.cat(parts, 1) for parts in by_heads]


def _logits(call: KernelCall, pieces: Sequence[Piece]) -> Iterator[tuple[int, Tensor]]:
    """(number of a piece, its [s, h, r, K] logits of a few heads), until all heads of all pieces came.

    With attention sinks, theirs stands behind the keys'. Keys are copied once for the pieces of one request.
    """
    groups, share = call.key_BGND.shape[1], call.query_BHND.shape[1] // call.key_BGND.shape[1]
    for _, some in groupby(range(len(pieces)), lambda i: id(pieces[i].sight)):
        numbers = list(some)
        at_once = pieces[numbers[0]].key_heads
        for group in range(0, groups, at_once):
            h = slice(group * share, (group + at_once) * share)
            part = call if at_once >= groups else _of_key_heads(call, slice(group, group + at_once), h)
            keys = _Keys.of(part, pieces[numbers[0]])
            for i in numbers:
                yield i, _logits_of(part, keys, pieces[i], pieces[i].mask(call).of_heads(h))


def _of_key_heads(call: KernelCall, g: slice, h: slice) -> KernelCall:
    sink_h = None if call.sink_H is None else call.sink_H[h]
    return replace(call, query_BHND=call.query_BHND[:, h], key_BGND=call.key_BGND[:, g], sink_H=sink_h)


@dataclass(frozen=True)
class _Keys:
    """A piece's keys [s, g, K, D] in fp32, relative to ``origin_sgD1`` (None under a soft cap: as they are).

    The softmax does not see a logit that all keys share, but rounding does: large biases of q and k add hundreds to
    every logit, of which fp32 keeps 1e-4. So keys are taken relative to one of them.
    """

    key_sgKD: Tensor
    origin_sgD1: Tensor | None

    @classmethod
    def of(cls, call: KernelCall, piece: Piece) -> "_Keys":
        key_BNGD = call.key_BGND.transpose(1, 2)
        key_sgKD = _copied(key_BNGD[piece.batch_s[:, None], piece.sight.keys_sK].transpose(1, 2))
        if call.softcap:
            return cls(key_sgKD, None)
        origin_sgD1 = key_BNGD[piece.batch_s, piece.columns_sC[:, 0]][..., None]
        return cls(key_sgKD.sub_(origin_sgD1.transpose(2, 3)), origin_sgD1)


def _logits_of(call: KernelCall, keys: _Keys, piece: Piece, mask: Mask) -> Tensor:
    """[s, h, r, K] of the call's heads."""
    (s, r), n_keys = piece.rows_sr.shape, piece.sight.longest
    heads, groups, width = call.query_BHND.shape[1], *call.key_BGND.shape[1::2]
    query_srhD = call.query_BHND.transpose(1, 2)[piece.batch_s[:, None], piece.rows_sr]
    query = _copied(query_srhD.transpose(1, 2)).view(s * groups, heads // groups * r, width)
    logits = query.new_empty(s * groups, heads // groups * r, n_keys)
    logits.baddbmm_(query, keys.key_sgKD.flatten(0, 1).transpose(1, 2), beta=0, alpha=call.scale)
    logits = logits.view(s, heads, r, n_keys)
    if call.softcap:
        logits.div_(call.softcap).tanh_().mul_(call.softcap)
    mask.hide(logits)
    if call.sink_H is None:
        return logits
    sink_shr1 = call.sink_H.float().view(1, heads, 1, 1)
    if keys.origin_sgD1 is not None:
        shift = torch.bmm(query, keys.origin_sgD1.float().flatten(0, 1)).view(s, heads, r, 1)
        sink_shr1 = sink_shr1 - shift * call.scale
    return torch.cat([logits, sink_shr1.expand(s, heads, r, 1)], -1)


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous fp32 copy, by one kernel."""
    return torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device).copy_(tensor)


def add_own_weights(sums: Sequence[Tensor], call: KernelCall, pieces: Sequence[Piece], weight: float) -> None:
    """`add_head_sum` where the kernel itself makes the probabilities (eager attention)."""
    assert call.weights_BHNN is not None
    for (sum_srC,), piece in zip(sums, pieces, strict=True):
        at = (piece.batch_s[:, None, None], slice(None), piece.rows_sr[:, :, None], piece.columns_sC[:, None])
        sum_srC.add_(call.weights_BHNN[at].float().sum(-1), alpha=weight)


def add_fused(sums: Sequence[Tensor], calls: Sequence[KernelCall], pieces: Sequence[Piece], weight: float) -> None:
    """`add_head_sum` by the Triton kernels, for all calls of one kind at once."""
    from realad_verl.attention.fused.launch import add_head_sum_triton

    for sum_psrC, piece in zip(sums, pieces, strict=True):
        add_head_sum_triton(sum_psrC, calls, piece, weight)


def new_sums(call: KernelCall, piece: Piece, layers: int = 0) -> Tensor:
    """Zeros [P, s, r, C]: the sums of P parts of the heads, to be summed in the end.

    ``layers``: how many the fused kernels do at once, which use several parts; 0 means the others.
    """
    parts = 1
    if layers:
        from realad_verl.attention.fused.launch import head_parts

        parts = head_parts(call, piece, layers)
    return torch.zeros(parts, *piece.rows_sr.shape, piece.columns_sC.shape[1], device=piece.rows_sr.device)


def denominators_fused(call: KernelCall, piece: Piece) -> Tensor:
    """`denominators` by the Triton kernels."""
    from realad_verl.attention.fused.launch import denominators_triton

    return denominators_triton(call, piece)


@lru_cache(maxsize=16)  # asked for at every layer
def fused_on(kernel: str, device: torch.device) -> bool:
    """Whether ``kernel`` means the Triton kernels on this device. Raises UserError where they cannot run."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernel == "triton" and ((device.type != "cuda" and not interpreted) or find_spec("triton") is None):
        raise bad_value("readout.kernel", kernel, f"torch or auto (on {device.type} with what is installed here)")
    return kernel == "triton" or (kernel == "auto" and device.type == "cuda" and find_spec("triton") is not None)
