"""What every read-out must give: a float64 softmax of the very q and k of a kernel call, the plain way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.readout import Reading, RowRequest


def exact_rows(call: KernelCall, request: RowRequest) -> Tensor:
    """[R, C] float64 on the CPU, mean over the heads of the call, with whole N x N matrices of one batch row."""
    tensors = {f.name: getattr(call, f.name) for f in fields(call)}
    call = replace(call, **{name: value.cpu() for name, value in tensors.items() if isinstance(value, Tensor)})
    batch, first, visible_NN = _sight(call, request)
    heads, groups = call.query_BHND.shape[1], call.key_BGND.shape[1]
    query, key = call.query_BHND[batch].double(), call.key_BGND[batch].double().repeat_interleave(heads // groups, 0)
    logits = query @ key.transpose(1, 2) * call.scale
    if call.softcap:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.mask is not None:
        mask = call.mask[min(batch, len(call.mask) - 1)]
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    logits = logits.masked_fill(~visible_NN, -torch.inf)
    if call.sink_H is not None:
        sink = call.sink_H.double()[:, None, None].expand(heads, logits.shape[1], 1)
        logits = torch.cat([logits, sink], -1)
    rows, columns = first + request.queries, first + request.columns
    return logits[:, rows].softmax(-1)[:, :, columns].mean(0)


def _sight(call: KernelCall, request: RowRequest) -> tuple[int, int, Tensor]:
    """(batch row, the request's first token, which keys each query can see) in the kernel's own token axis."""
    tokens = call.query_BHND.shape[2]
    at = torch.arange(tokens)
    back = at[:, None] - at
    visible = torch.ones(tokens, tokens, dtype=torch.bool)
    left, right = call.window
    if call.causal or right >= 0:
        visible &= back >= (0 if call.causal else -right)
    if left >= 0:
        visible &= back <= left
    if call.cu_seqlens is None:
        return request.batch_row, request.offset, visible
    first = request.offset
    if call.padding_mask_BT is not None:
        flat = call.padding_mask_BT.flatten().long()
        first = int(flat[: request.batch_row * call.padding_mask_BT.shape[1] + request.offset].sum())
    sequence = torch.bucketize(at, call.cu_seqlens.long(), right=True)
    return 0, first, visible & (sequence[:, None] == sequence)


@contextmanager
def exact_beside() -> Iterator[dict[Reading, list[list[Tensor]]]]:
    """While it runs, every kernel call that is read gives its exact rows too: by reading, layer and request.

    A layer is seen where the read-out sees it, so nested sites and recomputed layers count once here as well.
    """
    found: dict[Reading, list[list[Tensor]]] = {}
    saw = Reading.saw

    def also_exact(reading: Reading, call: KernelCall) -> None:
        if reading.wants_call():
            with torch.no_grad(), torch.autocast(call.query_BHND.device.type, enabled=False):
                rows = [exact_rows(call, request) for request in reading._requests]
            found.setdefault(reading, []).append(rows)
        saw(reading, call)

    Reading.saw = also_exact
    try:
        yield found
    finally:
        Reading.saw = saw


def means_over_layers(found: dict[Reading, list[list[Tensor]]]) -> list[Tensor]:
    """[R, C] float64 of each request of each reading."""
    return [torch.stack(rows).mean(0) for layers in found.values() for rows in zip(*layers, strict=True)]
