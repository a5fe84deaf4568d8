"""P(yes) where a response's answer begins, out of the forward that reads the evidence: validation's ranking of images.

The same share as `realad evaluate`'s ``pred_score``. A response without an answer has none here; `realad evaluate` asks
on with the tags that lead to one.
"""

# TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

from realad_verl.backbones.answers import answer_ids, yes_share
from realad_verl.backbones.pieces import response_pieces
from realad_verl.errors import UserError
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import SpanConfig
from realad_verl.method.spans import answer_token, parse_response
from realad_verl.verl_ext.train import wire

Place = tuple[int, int]  # row of the forward's batch, token of its token axis


def answer_at(tokenizer: Any, response: Sequence[int], spans: SpanConfig) -> int | None:
    """The response's token that begins its answer; None without one."""
    return answer_token(response_pieces(tokenizer, list(response)), spans)


class AnswerReading:
    """The logits of "yes" and "no" at chosen tokens, as the language head makes them.

    ``places``: of each sample, the token before its answer (None: no answer), in the coordinates of the forward's token
    axis; under sequence parallelism, of the whole axis, of which each rank of ``group`` computes one slice in turn.
    """

    def __init__(self, tokenizer: Any, places: Sequence[Place | None], group: dist.ProcessGroup | None) -> None:
        self._yes, self._no = answer_ids(tokenizer)
        self._places, self._group = list(places), group
        self._found: Tensor | None = None

    @contextmanager
    def reading(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, one forward of ``model`` is read."""
        handle = model.get_output_embeddings().register_forward_hook(self._saw)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _saw(self, module: torch.nn.Module, inputs: Any, logits_BNV: Tensor) -> None:
        tokens = logits_BNV.shape[1]
        first = 0 if self._group is None else tokens * dist.get_rank(self._group)
        ids = torch.tensor([*self._yes, *self._no], device=logits_BNV.device)
        found = torch.zeros(len(self._places), len(ids), dtype=torch.float32, device=logits_BNV.device)
        here = [(i, *at) for i, at in enumerate(self._places) if at is not None and first <= at[1] < first + tokens]
        if here:
            i, row, token = torch.tensor(here, device=logits_BNV.device).T
            found[i] = logits_BNV[row, token - first][:, ids].float()
        if self._group is not None:
            dist.all_reduce(found, group=self._group)
        self._found = found

    def shares(self) -> list[float | None]:
        """P(yes) / (P(yes) + P(no)) of each sample, None without an answer.

        Raises:
            UserError: the forward did not call the language head (a fused loss), so there are no logits to read.
        """
        if self._found is None:
            raise UserError(
                "the forward made no logits, which P(yes) of validation is read from: "
                "actor_rollout_ref.model.use_fused_kernels = True. Set it to False, or realad.val.evidence=False."
            )
        yes = len(self._yes)
        ids, logits = (list(range(yes)), list(range(yes, yes + len(self._no)))), self._found.cpu()
        return [
            None if at is None else yes_share(logits_V, ids) for at, logits_V in zip(self._places, logits, strict=True)
        ]


def answers(micro_batch: TensorDict, shares: Sequence[float | None], builder: EvidenceBuilder) -> dict[str, Tensor]:
    """The answer of each sample of a micro-batch, as a field of the worker's output."""
    texts = (builder.tokenizer.decode(ids, skip_special_tokens=True) for ids in micro_batch["responses"].unbind())
    formed = (parse_response(text, builder.cfg.spans).well_formed for text in texts)
    vectors = [wire.pack_answer(wire.Answer(*each)) for each in zip(shares, formed, strict=True)]
    return {wire.ANSWER: wire.jagged(vectors)}
