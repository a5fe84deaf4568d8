"""The maths: wanted rows and columns of softmax(QK^T), summed over heads, for all requests of a piece at once.

H query heads, G key heads (each shared by H / G query heads), D head width; s requests, r rows, K keys, C wanted
columns of a piece (`pieces`); g key heads and h query heads done at a time.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.pieces import Piece
from realad_verl.errors import bad_value


def add_head_sum(sum_srC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """Adds ``weight`` x the attention probabilities of the piece's rows, summed over the call's heads, in fp32.

    p = softmax over K of ``cap(q k^T * scale) + mask``, of which the wanted columns are kept. About a dozen kernels for
    a piece, whatever its number of requests (counted in tests/unit/attention/test_device.py).
    """
    keys, at_sC = piece.keys_sK.shape[1], piece.wanted_sC
    for logits_shrK in _logits(call, piece):
        total_srK = logits_shrK.softmax(-1)[..., :keys].sum(1)
        at_srC = at_sC[:, None].expand(-1, total_srK.shape[1], -1)
        sum_srC.add_(total_srK.gather(2, at_srC), alpha=weight)


def denominators(call: KernelCall, piece: Piece) -> Tensor:
    """[s, H, r] log-sum-exp of the rows' logits over every key in sight.

    Relative to the key of the first wanted column, as all logits here are (not under a soft cap).
    """
    return torch.cat([logits_shrK.logsumexp(-1) for logits_shrK in _logits(call, piece)], 1)


def _logits(call: KernelCall, piece: Piece) -> Iterator[Tensor]:
    """[s, h, r, K] logits of a few heads at a time; with attention sinks, theirs stands behind the keys'."""
    groups, share = call.key_BGND.shape[1], call.query_BHND.shape[1] // call.key_BGND.shape[1]
    mask_sXrK = piece.mask(call)
    for group in range(0, groups, piece.key_heads):
        g = slice(group, group + piece.key_heads)
        h = slice(group * share, (group + piece.key_heads) * share)
        mask, sink_h = mask_sXrK if mask_sXrK.shape[1] == 1 else mask_sXrK[:, h], call.sink_H
        some = replace(call, query_BHND=call.query_BHND[:, h], key_BGND=call.key_BGND[:, g])
        yield _logits_of(some, piece, mask, None if sink_h is None else sink_h[h])


def _logits_of(call: KernelCall, piece: Piece, mask_sXrK: Tensor, sink_h: Tensor | None) -> Tensor:
    """[s, h, r, K] of the call's heads."""
    (s, r), keys = piece.rows_sr.shape, piece.keys_sK.shape[1]
    heads, groups, width = call.query_BHND.shape[1], *call.key_BGND.shape[1::2]
    key_BNGD, batch_s1 = call.key_BGND.transpose(1, 2), piece.batch_s[:, None]
    query_srhD = call.query_BHND.transpose(1, 2)[batch_s1, piece.rows_sr]
    query = _copied(query_srhD.transpose(1, 2)).view(s * groups, heads // groups * r, width)
    key_sgKD = _copied(key_BNGD[batch_s1, piece.keys_sK].transpose(1, 2))
    if not call.softcap:
        # The softmax does not see a logit that all keys share, but rounding does: large biases of q and k add hundreds
        # to every logit, of which fp32 keeps 1e-4. So keys are taken relative to one of them.
        origin_sgD1 = key_BNGD[piece.batch_s, piece.columns_sC[:, 0]][..., None]
        key_sgKD.sub_(origin_sgD1.transpose(2, 3))
    logits = query.new_empty(s * groups, heads // groups * r, keys)
    logits.baddbmm_(query, key_sgKD.flatten(0, 1).transpose(1, 2), beta=0, alpha=call.scale)
    logits = logits.view(s, heads, r, keys)
    if call.softcap:
        logits.div_(call.softcap).tanh_().mul_(call.softcap)
    if mask_sXrK.dtype == torch.bool:
        logits.masked_fill_(mask_sXrK, float("-inf"))
    else:
        logits.add_(mask_sXrK)
    if sink_h is None:
        return logits
    sink_shr1 = sink_h.float().view(1, heads, 1, 1)
    if not call.softcap:
        shift = torch.bmm(query, origin_sgD1.float().flatten(0, 1)).view(s, heads, r, 1)
        sink_shr1 = sink_shr1 - shift * call.scale
    return torch.cat([logits, sink_shr1.expand(s, heads, r, 1)], -1)


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous fp32 copy, by one kernel."""
    return torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device).copy_(tensor)


def add_own_weights(sum_srC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """`add_head_sum` where the kernel itself makes the probabilities (eager attention)."""
    assert call.weights_BHNN is not None
    at = (piece.batch_s[:, None, None], slice(None), piece.rows_sr[:, :, None], piece.columns_sC[:, None])
    sum_srC.add_(call.weights_BHNN[at].float().sum(-1), alpha=weight)


def add_fused(sum_srC: Tensor, call: KernelCall, piece: Piece, weight: float) -> None:
    """`add_head_sum` by the Triton kernels."""
    from realad_verl.attention.triton_kernel import add_head_sum_triton

    add_head_sum_triton(sum_srC, call, piece, weight)


def denominators_fused(call: KernelCall, piece: Piece) -> Tensor:
    """`denominators` by the first of the Triton kernels."""
    from realad_verl.attention.triton_kernel import denominators_triton

    return denominators_triton(call, piece)


def fused_on(kernel: str, device: torch.device) -> bool:
    """Whether ``kernel`` means the Triton kernels on this device. Raises UserError where they cannot run."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernel == "triton" and ((device.type != "cuda" and not interpreted) or find_spec("triton") is None):
        raise bad_value("readout.kernel", kernel, f"torch or auto (on {device.type} with what is installed here)")
    return kernel == "triton" or (kernel == "auto" and device.type == "cuda" and find_spec("triton") is not None)
