"""The maths: wanted rows and columns of softmax(QK^T), summed over heads, within a memory bound.

N tokens, H query heads, G key heads (each shared by H / G query heads), R wanted rows, K keys, C wanted columns, D head
width. Small letters are pieces: h heads, g key heads, r rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from realad_verl.errors import bad_value

# Pieces that stay in a core's cache; larger ones are slower on CPU.
CPU_CHUNK_BYTES = 4 << 20


def head_sum(
    query_HND: Tensor,
    rows_R: Tensor,
    key_GKD: Tensor,
    columns_C: Tensor,
    *,
    scale: float,
    bias: Callable[[Tensor], Tensor | None],
    softcap: float = 0.0,
    sink_H: Tensor | None = None,
    max_bytes: int = 64 << 20,
) -> Tensor:
    """Attention probabilities of the queries at ``rows_R``, summed over heads, in fp32.

    p = softmax over K of ``cap(q k^T * scale) + bias``, of which the wanted columns are kept.

    Args:
        columns_C: positions among the K keys that are kept.
        bias: gives the additive mask [H or 1, r, K] of some of the rows, None if they see every key.
        max_bytes: bound on what is allocated beside inputs and result; the work is cut into rows and key heads.
    Returns:
        [R, C] fp32.
    Raises:
        UserError: ``max_bytes`` does not hold one row of one key head.
    """
    heads, _, width = query_HND.shape
    groups, keys = key_GKD.shape[:2]
    share = heads // groups
    result_RC = torch.zeros(len(rows_R), len(columns_C), dtype=torch.float32, device=query_HND.device)
    if not result_RC.numel():
        return result_RC
    r, g = chunk_sizes(len(rows_R), groups, share, keys, width, max_bytes, query_HND.device.type)
    for row in range(0, len(rows_R), r):
        rows_r = rows_R[row : row + r]
        bias_XrK = bias(rows_r)
        for group in range(0, groups, g):
            some = slice(group * share, (group + g) * share)
            probabilities_hrC = _probabilities(
                query_HND[some, rows_r],
                key_GKD[group : group + g],
                columns_C,
                scale,
                bias_XrK if bias_XrK is None or bias_XrK.shape[0] == 1 else bias_XrK[some],
                softcap,
                None if sink_H is None else sink_H[some].float().view(-1, 1, 1),
            )
            result_RC[row : row + r] += probabilities_hrC.sum(0)
    return result_RC


def _probabilities(query_hrD, key_gKD, columns_C, scale, bias_XrK, softcap, sink_h11) -> Tensor:
    """[h, r, C] probabilities of one piece."""
    heads, count, width = query_hrD.shape
    groups, keys = key_gKD.shape[:2]
    query = (query_hrD.float() * scale).view(groups, heads // groups * count, width)
    key = key_gKD.float()
    if not softcap:
        # The softmax does not see a logit that all keys share, but rounding does: large biases of q and k add hundreds
        # to every logit, of which fp32 keeps 1e-4. So keys are taken relative to one of them.
        origin_g1D = key[:, columns_C[:1]]
        key = key - origin_g1D
        if sink_h11 is not None:
            sink_h11 = sink_h11 - torch.bmm(query, origin_g1D.transpose(1, 2)).view(heads, count, 1)
    logits = torch.bmm(query, key.transpose(1, 2)).view(heads, count, keys)
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    if bias_XrK is not None:
        logits.add_(bias_XrK)
    top = logits.amax(-1, keepdim=True)
    if sink_h11 is not None:
        top = torch.maximum(top, sink_h11)
    logits.sub_(top).exp_()
    total = logits.sum(-1, keepdim=True)
    if sink_h11 is not None:
        total += torch.exp(sink_h11 - top)
    return logits[..., columns_C] / total


def chunk_sizes(
    rows: int, groups: int, share: int, keys: int, width: int, max_bytes: int, device: str = "cpu"
) -> tuple[int, int]:
    """(rows, key heads) done at a time so that their buffers stay within ``max_bytes``.

    For one row: logits and kept columns, two of K fp32 for each query head, the query twice, and 4 K of mask-making.
    For each key head: its keys in fp32, twice.
    """
    per_row_head = share * (2 * keys + 2 * width) * 4
    per_row = 4 * keys * 4
    per_group = 2 * keys * width * 4
    least = per_row + per_row_head + per_group
    if max_bytes < least:
        raise bad_value(
            "max_bytes", max_bytes, f"at least {least} for {keys} keys and {share} query heads to a key head"
        )
    budget = max(min(max_bytes, CPU_CHUNK_BYTES), least) if device == "cpu" else max_bytes
    r = max(1, min(rows, (budget - per_group) // (per_row + per_row_head)))
    g = max(1, min(groups, (budget - r * per_row) // (r * per_row_head + per_group)))
    return r, g
