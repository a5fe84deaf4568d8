"""Attention rows from eager attention's own matrices, for tests and benchmarks: what the read-out has to equal.

It keeps every layer's [L, L] matrix of every head: nothing but tests and benchmarks should call it.
Letters: B samples, H heads, L tokens of the padded sequence, R wanted queries, C wanted columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from realad_verl.attention.layers import chosen_layers
from realad_verl.attention.readout import RowRequest


def mean_rows(
    attentions: Sequence[Tensor], requests: Sequence[RowRequest], layers: Sequence[int] | None = None
) -> list[Tensor]:
    """``attentions``: one [B, H, L, L] a layer, as of ``output_attentions=True``, sequences padded on the right.

    Returns one [R, C] a request: the mean over heads and ``layers`` (None: all). Only the wanted entries are averaged,
    which is cheaper than the mean of whole matrices that is often written.
    """
    chosen = chosen_layers(layers, len(attentions))
    rows = []
    for request in requests:
        assert request.offset == 0, "packed sequences: eager attention needs padded ones"
        at = (request.batch_row, slice(None), request.queries[:, None], request.columns)
        rows.append(torch.stack([attentions[layer][at].float().mean(0) for layer in chosen]).mean(0))
    return rows
