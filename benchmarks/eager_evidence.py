"""Evidence the usual way: a second forward of the actor with eager attention and ``output_attentions=True``.

For ``step_overhead.py``, whose "eager" jobs name this module in ``actor_rollout_ref.model.external_lib``: verl then
imports it in its workers, where it takes the place of the engine's read-out. Everything else of the job stays. The
first rows of a job are compared with those that the read-out gives: a variant that computed anything else could not be
compared.

Letters: R wanted queries, C wanted columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from wrapt import register_post_import_hook

from realad_verl.attention.eager_reference import mean_rows
from realad_verl.attention.layers import language_attention, pretrained_model
from realad_verl.attention.readout import AttentionReadout, RowRequest

TOLERANCE = 1e-4  # of a row's largest entry; the two kernels differ by some 1e-6


class EagerReadout:
    """In place of ``AttentionReadout``: the forward inside ``reading`` is left alone and run once more by ``rows``."""

    def __init__(self, module: Any, layers: Sequence[int] | None, readout: AttentionReadout | None = None) -> None:
        """``readout``: also reads the first forward, to compare."""
        self.module, self.layers, self.readout = module, layers, readout

    @contextmanager
    def reading(self, requests: Sequence[RowRequest], head_group: Any = None) -> Iterator["EagerReading"]:
        """As ``AttentionReadout.reading``."""
        assert head_group is None, "sequence parallelism is not part of this benchmark"
        result, readout = EagerReading(self, requests), self.readout if requests else None
        hook = self.module.register_forward_pre_hook(lambda _, args, kwargs: result.saw(kwargs), with_kwargs=True)
        with readout.reading(requests) if readout else nullcontext() as expected:
            try:
                yield result
            finally:
                hook.remove()
        if expected is not None:
            assert_same(result.rows(), expected.rows())
            self.readout = None


class EagerReading:
    """The rows of a second forward."""

    def __init__(self, readout: EagerReadout, requests: Sequence[RowRequest]) -> None:
        self._readout, self._requests = readout, list(requests)
        self._inputs: dict[str, Any] = {}

    def total_seconds(self) -> float:
        """Time spent on reading beside ``rows``: none."""
        return 0.0

    def saw(self, inputs: dict[str, Any]) -> None:
        self._inputs = dict(inputs)

    @torch.no_grad()
    def rows(self) -> list[Tensor]:
        """One [R, C] fp32 a request. The vision tower keeps its kernel: only the decoder's attention is wanted."""
        if not self._requests:
            return []
        module = self._readout.module
        model = pretrained_model(module)
        decoder: Any = language_attention(module)[0]
        seen: list[Sequence[Tensor]] = []
        # At the decoder: verl's forward of the whole model drops the attentions.
        hook = decoder.register_forward_hook(lambda _, args, output: seen.append(output.attentions))
        kernel = decoder.config._attn_implementation
        model.set_attn_implementation({"text_config": "eager"})
        try:
            module(**self._inputs, output_attentions=True)
        finally:
            model.set_attn_implementation({"text_config": kernel})
            hook.remove()
        return mean_rows(seen[0], self._requests, self._readout.layers)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raises RuntimeError where rows differ by more than ``TOLERANCE`` of their largest entry."""
    for ours, theirs in zip(found, expected, strict=True):
        worst = float(((ours - theirs).abs().amax(1) / theirs.amax(1)).max())
        if not worst <= TOLERANCE:
            raise RuntimeError(f"eager attention differs from the read-out by {worst:.1e} of a row's largest entry")


def _replace(engine: Any) -> None:
    """Give verl's engine with the read-out (``realad_verl.verl_ext.train.engine``) the eager one instead."""
    original = engine.EvidenceEngine._readout

    def readout(self: Any, cfg: Any) -> EagerReadout:
        if "eager" not in self._readouts:
            self._readouts["eager"] = EagerReadout(self.module, cfg.readout.layers, original(self, cfg))
        return self._readouts["eager"]

    engine.EvidenceEngine._readout = readout


register_post_import_hook(_replace, "realad_verl.verl_ext.train.engine")
