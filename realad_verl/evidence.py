"""From token ids to evidence: the one path that localization and training share.

``EvidenceBuilder.plan`` says which attention rows and columns a sequence needs, before the forward;
``EvidenceBuilder.reduce`` turns the rows read out of it into ``Evidence``. Columns: image tokens, then word tokens.

A response without full evidence keeps a defined result, named by ``Evidence.problem``:

| problem           | when                                                         | found by | map     | Jaccard |
|-------------------|--------------------------------------------------------------|----------|---------|---------|
| "multiple_images" | the prompt holds more than one image                         | plan     | no      | no      |
| "no_image"        | the prompt holds no image token                              | plan     | no      | no      |
| "no_reasoning"    | no token inside a think block                                | plan     | no      | no      |
| "no_words"        | no anomaly word in the prompt, and ``scoring.select`` is     | plan     | no      | no      |
|                   | "both" or "text"; "image" and "all" do without S_T           |          |         |         |
| "non_finite"      | an attention row holds NaN or infinity                       | reduce   | of the  | no      |
|                   |                                                              |          | others  |         |
| "constant_rows"   | no token's attention to the image varies                     | reduce   | mean    | no      |
| "too_few_tokens"  | fewer usable reasoning tokens than ``consistency.t``         | reduce   | yes     | no      |

Where several hold, the first of the table is named.
Shapes: L sequence, R reasoning tokens, N image tokens, P cells of the map, C = N + word tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from realad_verl.attention.readout import RowRequest
from realad_verl.backbones import ImageLayout, MultipleImagesError, backbone_for
from realad_verl.backbones.pieces import response_pieces, token_pieces
from realad_verl.calibration import baseline_for
from realad_verl.method.baseline import divide_by_baseline
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence, compute_evidence_batch, no_evidence
from realad_verl.method.spans import reasoning_tokens, word_tokens


@dataclass(frozen=True)
class EvidencePlan:
    """What to read for one sequence. ``request`` is None exactly where ``problem`` is set.

    ``pieces``: the text that each response token adds. ``reasoning``: indices of the reasoning tokens within the
    response (R of them, the rows' order); ``token_ids`` [R]: their ids.
    """

    request: RowRequest | None
    layout: ImageLayout | None
    n_words: int
    reasoning: list[int]
    problem: str | None
    token_ids: Tensor | None = None
    pieces: Sequence[str] = ()


class EvidenceBuilder:
    """Plans the read-out and reduces its rows, for one model and one setting of the method."""

    def __init__(self, model_config: Any, tokenizer: Any, cfg: MethodConfig) -> None:
        """Raises UserError for a model type without a backbone entry, and where ``cfg.calibration`` does not fit."""
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.backbone = backbone_for(model_config)
        self.baseline = baseline_for(cfg, model_config)
        self._words = lru_cache(maxsize=64)(self._find_words)  # a group's responses share their prompt

    def plan(
        self,
        input_ids: Tensor,
        prompt_length: int,
        processor_outputs: Mapping[str, Any],
        *,
        batch_row: int = 0,
        offset: int = 0,
    ) -> EvidencePlan:
        """The rows and columns that the evidence of one sequence needs.

        ``input_ids`` [L]: prompt then response, without padding; the first ``prompt_length`` are the prompt, image
        placeholders already expanded. ``processor_outputs``: what the processor made of this sample's image
        (verl: the sample's ``multi_modal_inputs``). ``batch_row`` and ``offset`` place the sequence in the forward's
        token axis. Raises UserError where outputs and prompt do not fit, or the prompt holds a video.
        """
        input_ids = input_ids.detach().cpu()
        prompt, response = input_ids[:prompt_length], input_ids[prompt_length:]
        pieces = response_pieces(self.tokenizer, response.tolist())
        reasoning = reasoning_tokens(pieces, self.cfg.spans)
        words = self._words(tuple(prompt.tolist()))
        try:
            layout = self.backbone.image_layout(prompt, self.model_config, processor_outputs, self.tokenizer)
        except MultipleImagesError:
            return EvidencePlan(None, None, len(words), reasoning, "multiple_images", pieces=pieces)
        problem = self._problem(layout, words, reasoning)
        if problem is not None or layout is None:
            return EvidencePlan(None, layout, len(words), reasoning, problem, pieces=pieces)
        # The query at a token sees the token itself; the query before it is the one that predicted it.
        shift = {"at": 0, "before": -1}[self.cfg.readout.query]
        request = RowRequest(
            batch_row=batch_row,
            offset=offset,
            length=len(input_ids),
            queries=torch.tensor(reasoning) + prompt_length + shift,
            columns=torch.cat([layout.columns, torch.tensor(words, dtype=torch.long)]),
        )
        return EvidencePlan(request, layout, len(words), reasoning, None, response[reasoning], pieces)

    def _find_words(self, prompt_ids: tuple[int, ...]) -> list[int]:
        return word_tokens(token_pieces(self.tokenizer, prompt_ids), self.cfg.readout.words)

    def _problem(self, layout: ImageLayout | None, words: list[int], reasoning: list[int]) -> str | None:
        if layout is None:
            return "no_image"
        if not reasoning:
            return "no_reasoning"
        if not words and self.cfg.scoring.select in ("both", "text"):
            return "no_words"
        return None

    def reduce(self, plans: Sequence[EvidencePlan], rows: Sequence[Tensor]) -> list[Evidence]:
        """The evidence of every plan, on the CPU, where components are labelled: rows on a GPU come in one copy.

        ``rows``: one [R, C] fp32 tensor for each plan that has a request, in the plans' order.
        """
        asked = [plan for plan in plans if plan.request is not None]
        results = iter(compute_evidence_batch(list(self._triples(asked, on_cpu(rows))), self.cfg))
        return [_without(plan) if plan.request is None else next(results) for plan in plans]

    def _triples(
        self, plans: Sequence[EvidencePlan], rows: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        for plan, rows_RC in zip(plans, rows, strict=True):
            assert plan.layout is not None
            n_image, grid = len(plan.layout.columns), plan.layout.grid
            rows_RP = self._relative(plan.layout.project(rows_RC[:, :n_image]), plan)
            yield rows_RP, rows_RC[:, n_image:].sum(1), grid

    def _relative(self, rows_RP: Tensor, plan: EvidencePlan) -> Tensor:
        """The rows over those of normal images (``scoring.baseline``); as they are without one."""
        kind = self.cfg.scoring.baseline
        if kind == "none":
            return rows_RP
        assert self.baseline is not None and plan.layout is not None and plan.token_ids is not None
        baseline_RP = self.baseline.resized(plan.layout.grid).rows(plan.token_ids, kind)
        return divide_by_baseline(rows_RP, baseline_RP.to(rows_RP.device))


def on_cpu(rows: Sequence[Tensor]) -> list[Tensor]:
    """The rows on the CPU, by one copy and one synchronisation for all of them."""
    if not rows or all(rows_RC.device.type == "cpu" for rows_RC in rows):
        return list(rows)
    flat = torch.cat([rows_RC.flatten() for rows_RC in rows]).cpu()
    parts = flat.split([rows_RC.numel() for rows_RC in rows])
    return [part.view(rows_RC.shape) for part, rows_RC in zip(parts, rows, strict=True)]


def _without(plan: EvidencePlan) -> Evidence:
    assert plan.problem is not None
    return no_evidence(plan.problem, len(plan.reasoning), plan.layout.grid if plan.layout is not None else (0, 0))
