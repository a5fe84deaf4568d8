"""Some of the attention heads of a model: which they are, and a kernel call narrowed to them."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from realad_verl.attention.calls import KernelCall
from realad_verl.errors import UserError

Head = tuple[int, int]


def heads_by_layer(heads: Sequence[Head], layers: int, decoder: nn.Module) -> dict[int, list[int]]:
    """Layer 0..layers-1 -> its chosen heads, ascending. ``heads``: (layer, head); negative layers count from the end.

    Raises:
        UserError: a layer or head that the model does not have, a head named twice, an empty choice.
    """
    count = getattr(getattr(decoder, "config", None), "num_attention_heads", None)
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        if not -layers <= layer < layers or head < 0 or (count is not None and head >= count):
            allowed = f"layers {-layers} to {layers - 1}" + ("" if count is None else f", heads 0 to {count - 1}")
            raise UserError(f"readout.heads: head [{layer}, {head}] does not exist in this model. Allowed: {allowed}.")
        chosen.setdefault(layer % layers, []).append(head)
    if not chosen or any(len(set(some)) < len(some) for some in chosen.values()):
        raise UserError(f"readout.heads = {list(heads)}: name at least one head and each only once.")
    return {layer: sorted(chosen[layer]) for layer in sorted(chosen)}


def of_heads(call: KernelCall, heads: Sequence[int]) -> KernelCall:
    """The call as if the kernel had been given these query heads alone, each with a key head of its own."""
    count = call.query_BHND.shape[1]
    if max(heads) >= count:
        raise UserError(f"readout.heads: head {max(heads)} does not exist in a layer of {count} heads.")
    some = torch.tensor(list(heads), device=call.query_BHND.device)
    keys = some // (count // call.key_BGND.shape[1])
    mask = call.mask[:, some] if call.mask is not None and call.mask.shape[1] == count > 1 else call.mask
    return dataclasses.replace(
        call,
        query_BHND=call.query_BHND[:, some],
        key_BGND=call.key_BGND[:, keys],
        mask=mask,
        sink_H=None if call.sink_H is None else call.sink_H[some],
        weights_BHNN=None if call.weights_BHNN is None else call.weights_BHNN[:, some],
    )
