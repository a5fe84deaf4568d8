"""Exact attention rows out of a model's normal forward.

The stock kernel (sdpa, eager or flash-attn) makes the output, so logits are bitwise those of a forward without reading.
Beside it, for the wanted queries only, softmax(QK^T * scale) over every key that the kernel lets them see is computed
in fp32 from the kernel's own q and k, and averaged over heads and the chosen layers. Nothing of size heads x tokens x
tokens is made.

Accuracy: within 3e-5 of a float64 softmax of the same q and k, in fp32 and bf16, under autocast, with TF32 on, and
whatever offset large biases give the logits. The kernel's own log-sum-exp is not used: it would save columns, but at an
offset of 1,000 its rounding alone is 6e-5 of each probability. Eager attention is read as the model makes it: in bf16
rounded to 8 bits. Attention of another forward differs by more than this, since its q and k do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from realad_verl.attention.calls import KernelCall, active_observer, observed_by
from realad_verl.attention.heads import Head, heads_by_layer, of_heads
from realad_verl.attention.layers import chosen_layers, language_attention
from realad_verl.attention.layout import Placement, RowRequest, place
from realad_verl.attention.sites import TRANSFORMERS_SITES, Site, wrapped_sites
from realad_verl.attention.sums import HeadSums
from realad_verl.errors import UserError, bad_value

__all__ = ["AttentionReadout", "EachHead", "Reading", "RowRequest"]

# Called during the forward with (layer, head) and the rows [R, C] of that head alone, one tensor a request.
EachHead = Callable[[Head, list[Tensor]], None]

AnyReading = TypeVar("AnyReading", bound="Reading")


class AttentionReadout:
    """Reads attention rows of a Hugging Face model (plain, PEFT, FSDP, DDP) whose attention is sdpa, eager or flash.

        readout = AttentionReadout(model)
        with readout.reading([RowRequest(0, 0, length, queries, columns)]) as reading:
            model(**inputs)
        rows_RC = reading.rows()[0]

    Args:
        layers: which attention layers to average, negatives counting from the end; None = all. In hybrids, layers
            without attention are not counted.
        heads: (layer, head) pairs to average instead, of those layers; only they are computed. Excludes ``layers``.
        max_bytes: bound on the memory that computing the rows takes beside the result; what waits for a launch with
            other layers counts. One layer at a time is done whatever it takes by the fused kernels.
        sites: places beside transformers' own where the model's kernels are called (see `sites`).
        kernel: "torch", or "triton" (fused kernels, nothing of size heads x rows x keys is written; needs a GPU), or
            "auto": triton on CUDA, where it launches 2 kernels for as many layers as ``max_bytes`` holds instead of
            12 or more for each, and moves none of the logits through memory (docs/scaling.md); torch elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None = None,
        max_bytes: int = 64 << 20,
        sites: Sequence[Site] = (),
        kernel: str = "auto",
        heads: Sequence[Head] | None = None,
    ) -> None:
        if max_bytes <= 0:
            raise bad_value("max_bytes", max_bytes, "a positive number of bytes")
        self.decoder, attention = language_attention(model)
        self.heads = None if heads is None else heads_by_layer(heads, len(attention), self.decoder)
        if self.heads is not None:
            if layers is not None:
                raise UserError("readout.heads names its layers itself: leave readout.layers out.")
            layers = list(self.heads)
        self.layers = {index: attention[index] for index in chosen_layers(layers, len(attention))}
        self.max_bytes = max_bytes
        self.sites = (*TRANSFORMERS_SITES, *sites)
        self.kernel = kernel

    @contextmanager
    def reading(
        self,
        requests: Sequence[RowRequest],
        head_group: dist.ProcessGroup | None = None,
        each_head: EachHead | None = None,
    ) -> Iterator["Reading"]:
        """Reads during one forward of the model; call `Reading.rows` on what it yields after the forward.

        Args:
            requests: the rows wanted, in the coordinates of the kernel's token axis.
            head_group: ranks among which the attention heads are divided (sequence parallelism that exchanges sequence
                for heads); every rank then makes the same requests.
            each_head: also gets the rows of every head by itself, as its layer runs; nothing of them is kept here.
        Raises:
            RuntimeError: a reading is already going on in this thread.
            UserError: an attention implementation that cannot be read.
        """
        with self.observe(Reading(self, requests, head_group, each_head)) as reading:
            yield reading

    @contextmanager
    def observe(self, reading: "AnyReading") -> Iterator["AnyReading"]:
        """Lets ``reading`` see the attention of one forward."""
        self._check_implementation()
        with ExitStack() as stack:
            stack.enter_context(observed_by(reading))
            stack.enter_context(wrapped_sites(self.sites))
            for handle in reading.hooks():
                stack.callback(handle.remove)
            yield reading

    def _check_implementation(self) -> None:
        for name, module in self.layers.values():
            chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
            if chosen is not None and chosen not in ("sdpa", "eager") and "flash" not in chosen:
                raise bad_value(f"attn_implementation of {name}", chosen, "sdpa, eager, flash_attention_2")


class Reading:
    """The rows of one forward, as they come in layer by layer.

    ``seconds`` is the wall time spent on reading on the CPU so far; `total_seconds` has that of a GPU too.
    """

    def __init__(
        self,
        readout: AttentionReadout,
        requests: Sequence[RowRequest],
        head_group: dist.ProcessGroup | None,
        each_head: EachHead | None = None,
    ) -> None:
        self.padding_mask_BT: Tensor | None = None
        self._readout = readout
        self._index = {module: index for index, (_, module) in readout.layers.items()}
        self._requests = list(requests)
        self._head_group = head_group
        self._each_head = each_head
        self._placements: list[Placement] | None = None
        self._placed_for: tuple | None = None
        self._sums = HeadSums(readout.kernel, readout.max_bytes, len(readout.layers), self._place, self._timed)
        self._device = torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seen: set[int] = set()
        self._layer: int | None = None
        self._forwards = 0
        self.seconds = 0.0

    def rows(self) -> list[Tensor]:
        """[R, C] fp32 for each request, on the model's device: the mean over heads and chosen layers.

        Raises:
            UserError: a chosen layer's attention was not seen, because no forward ran or it calls a kernel elsewhere.
        """
        self.require_all_layers()
        sums = self._sums.of_requests(self._requests, self._device)
        if self._head_group is not None and sums:
            flat = torch.cat([rows.flatten() for rows in sums])
            dist.all_reduce(flat, group=self._head_group)
            if self._readout.heads is None:
                flat /= dist.get_world_size(self._head_group)
            parts = flat.split([rows.numel() for rows in sums])
            sums = [part.view_as(rows) for part, rows in zip(parts, sums, strict=True)]
        return sums

    def require_all_layers(self) -> None:
        """UserError unless every chosen layer's attention was seen."""
        missing = [name for index, (name, _) in self._readout.layers.items() if index not in self._seen]
        if missing and self._requests:
            raise UserError(
                f"attention was not seen in {len(missing)} of {len(self._readout.layers)} layers "
                f"({', '.join(missing)}). Run one forward inside the reading. If one ran, these layers call a kernel "
                "at a place that is not wrapped: use attn_implementation sdpa or flash_attention_2, or name the place "
                "in `sites`."
            )

    def hooks(self) -> Iterator["torch.utils.hooks.RemovableHandle"]:
        """Registers the hooks that say which forward is running, and which layer."""
        yield self._readout.decoder.register_forward_pre_hook(self._forward_begins)
        yield from self._layer_hooks()

    def _layer_hooks(self) -> Iterator["torch.utils.hooks.RemovableHandle"]:
        """Only where a kernel may not be told whose call it is: a hook takes time at every layer of every forward."""
        own_sites = len(self._readout.sites) > len(TRANSFORMERS_SITES)
        for index, (_, module) in self._readout.layers.items():
            if own_sites or "flash" in str(getattr(getattr(module, "config", None), "_attn_implementation", None)):
                yield module.register_forward_pre_hook(lambda *_, index=index: self._enter(index))
                yield module.register_forward_hook(lambda *_: self._enter(None), always_call=True)

    def wants_call(self, module: nn.Module | None = None) -> bool:
        if module is not None:
            self._layer = self._index.get(module)
        return self._layer is not None and self._layer not in self._seen and bool(self._requests)

    @torch.no_grad()
    def saw(self, call: KernelCall) -> None:
        if not self.wants_call():
            return
        assert self._layer is not None
        if call.query_BHND.shape[2] != call.key_BGND.shape[2]:
            raise UserError("attention can be read in a forward over whole sequences only: pass no past key values")
        self._device = call.query_BHND.device
        self._add(call)
        self._seen.add(self._layer)
        if len(self._seen) == len(self._readout.layers):
            self._sums.finish()  # before anything as large as the logits is made

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Adds to the time that reading took; on a GPU by events, which wait for nothing."""
        if self._device.type != "cuda" or not torch.cuda.is_initialized():
            started = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - started
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        yield
        after.record()
        self._events.append((before, after))

    def total_seconds(self) -> float:
        """Time spent on reading; on a GPU its own time, to be asked for once the rows have been waited for."""
        return self.seconds + sum(before.elapsed_time(after) for before, after in self._events) / 1e3

    def _add(self, call: KernelCall) -> None:
        assert self._layer is not None
        count, readout = call.query_BHND.shape[1], self._readout
        if self._each_head is not None:
            for head in range(count):
                alone = self._sums.alone()
                alone.add(of_heads(call, [head]), 1.0)
                self._each_head((self._layer, head), alone.of_requests(self._requests, self._device))
        if readout.heads is None:
            self._sums.add(call, 1.0 / (count * len(readout.layers)))
        elif here := self._heads_here(call):
            self._sums.add(of_heads(call, here), 1.0 / sum(map(len, readout.heads.values())))

    def _heads_here(self, call: KernelCall) -> list[int]:
        """Which of the running layer's heads are chosen, as the call on this rank numbers them."""
        count = call.query_BHND.shape[1]
        if self._readout.heads is None or self._layer is None:
            return list(range(count))
        # Heads are exchanged in order of rank: this one has those from ``first`` on.
        first = 0 if self._head_group is None else count * dist.get_rank(self._head_group)
        return [head - first for head in self._readout.heads[self._layer] if first <= head < first + count]

    def _forward_begins(self, *_: object) -> None:
        if active_observer() is not self:
            return
        self._forwards += 1
        if self._forwards > 1:
            raise RuntimeError("a reading covers one forward: begin a new reading for the next")

    def _enter(self, layer: int | None) -> None:
        if active_observer() is self:
            self._layer = layer

    def _place(self, call: KernelCall) -> list[Placement]:
        # Every layer of a forward has the same token layout, so this and its syncs happen once per kind of layer.
        key = (call.query_BHND.shape, call.causal, call.cu_seqlens is None, call.padding_mask_BT is None)
        if self._placements is None or self._placed_for != key:
            self._placements = place(self._requests, call)
            self._placed_for = key
        return self._placements
