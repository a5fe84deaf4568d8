"""The rows of a response from its own generation: no second forward over what was just computed.

While a model generates, only the query of each new token is kept: its keys are in the cache. When it has ended, the
rows of all tokens are computed at once, by the same code that reads a whole forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall, observed_by
from realad_verl.attention.layout import Placement, RowRequest
from realad_verl.attention.readout import AttentionReadout, Reading
from realad_verl.attention.sites import wrapped_sites


@contextmanager
def reading_generation(readout: AttentionReadout, lengths: Sequence[int]) -> Iterator["GenerationReading"]:
    """Reads while ``generate`` runs inside, over prompts of ``lengths`` tokens padded on the left."""
    reading = GenerationReading(readout, lengths)
    with ExitStack() as stack:
        stack.enter_context(observed_by(reading))
        stack.enter_context(wrapped_sites(readout.sites))
        for handle in reading.hooks():
            stack.callback(handle.remove)
        yield reading


class GenerationReading(Reading):
    """The queries of one token at a time, and the keys of all."""

    def __init__(self, readout: AttentionReadout, lengths: Sequence[int]) -> None:
        super().__init__(readout, [], None)
        self._lengths = list(lengths)
        self._width = max(lengths)
        self._queries: dict[int, list[Tensor]] = {}
        self._last: dict[int, KernelCall] = {}

    def hooks(self) -> Iterator["torch.utils.hooks.RemovableHandle"]:
        """Without that which counts forwards: each step is one."""
        yield from self._layer_hooks()

    def wants_call(self, module: Any = None) -> bool:
        if module is not None:
            self._layer = self._index.get(module)
        return self._layer is not None

    def saw(self, call: KernelCall) -> None:
        if self._layer is None:
            return
        if call.query_BHND.shape[2] == 1:  # the prompt's own rows are not wanted
            self._queries.setdefault(self._layer, []).append(call.query_BHND)
            self._last[self._layer] = call
        self._layer = None  # where sites are nested, the inner one has reported

    def has(self, request: RowRequest) -> bool:
        """Whether each of the rows was the query of a step: those of the prompt and of the last token were not."""
        first = self._lengths[request.batch_row]
        steps = min((len(queries) for queries in self._queries.values()), default=0)
        return bool(((request.queries >= first) & (request.queries < first + steps)).all())

    @torch.no_grad()
    def read(self, requests: Sequence[RowRequest]) -> list[Tensor] | None:
        """[R, C] fp32 of each request, in positions of its sequence without padding; ``has`` must hold of each.

        None where the steps do not tell the rows: the kernel makes its own probabilities or gets packs, or a layer's
        cache does not hold every key (sliding windows).
        """
        self._requests = list(requests)
        if not self._requests:
            return []
        for layer in self._readout.layers:
            call = self._whole(layer)
            if call is None:
                return None
            self._layer, self._device = layer, call.query_BHND.device
            self._add(call)
            self._seen.add(layer)
        return self.rows()

    def _whole(self, layer: int) -> KernelCall | None:
        """The steps of a layer as one call over whole sequences."""
        if layer not in self._last:
            return None
        call, queries = self._last.pop(layer), self._queries.pop(layer)
        batch, heads, _, width = call.query_BHND.shape
        keys = call.key_BGND.shape[2]
        if call.weights_BHNN is not None or call.cu_seqlens is not None or keys != self._width + len(queries):
            return None
        if not self._hides_padding_only(call, keys):
            return None
        query = call.query_BHND.new_zeros(batch, heads, keys, width)
        query[:, :, self._width :] = torch.cat(queries, 2)
        return replace(call, query_BHND=query, mask=None, causal=True)

    def _hides_padding_only(self, call: KernelCall, keys: int) -> bool:
        """Whether the last step saw every key but the padding, so that causality is all there is to know."""
        if call.mask is None:
            return all(length == self._width for length in self._lengths)
        pads = torch.tensor([self._width - length for length in self._lengths], device=call.query_BHND.device)
        if call.mask.shape[1:] != (1, 1, keys):
            return False
        visible_BK = call.mask[:, 0, 0] if call.mask.dtype == torch.bool else call.mask[:, 0, 0] > -1e4
        return bool((visible_BK == (torch.arange(keys, device=pads.device) >= pads[:, None])).all())

    def _place(self, call: KernelCall) -> list[Placement]:
        placed = []
        for request in self._requests:
            pad = self._width - self._lengths[request.batch_row]
            rows, columns = request.queries.cpu() + pad, request.columns.cpu() + pad
            placed.append(Placement(request.batch_row, rows, columns, pad, int(rows.max()) + 1))
        return placed
