"""Attention of sampled responses: reduced head by head as it comes, and that of chosen heads token by token.

Letters: I images, n responses an image, B = I * n responses of a batch, R reasoning tokens, P cells, H heads of all
layers in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from realad_verl.attention.readout import AttentionReadout
from realad_verl.backbones.base import placeholder_ids
from realad_verl.backbones.inputs import prepare
from realad_verl.evidence import EvidenceBuilder, EvidencePlan
from realad_verl.localize import Localizer
from realad_verl.method.baseline import resize_rows
from realad_verl.method.config import MethodConfig
from realad_verl.method.spans import parse_response


@dataclass(frozen=True)
class Response:
    """What the read-out of some heads says of one response, before any baseline.

    rows_RP: attention of each reasoning token to each cell of ``grid``; None where there is none (``problem``).
    s_t_R: to the anomaly words. token_ids_R: which tokens they are. answer: 1 yes, 0 no, None neither.
    """

    rows_RP: Tensor | None
    s_t_R: Tensor | None
    token_ids_R: Tensor | None
    grid: tuple[int, int]
    problem: str | None
    answer: int | None
    well_formed: bool


class Reading:
    """Reads responses of one model by teacher-forced forwards, with the read-out of one setting of the method."""

    def __init__(self, localizer: Localizer, method: MethodConfig) -> None:
        self.localizer = localizer
        self.builder = EvidenceBuilder(localizer.model.config, localizer.tokenizer, method)
        of = method.readout
        self.readout = AttentionReadout(localizer.model, of.layers, of.max_bytes, heads=of.heads)
        self._reserved = torch.tensor(sorted(placeholder_ids(localizer.model.config)))

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], responses: Sequence[Sequence[Sequence[int]]], by_head: bool = False
    ) -> tuple[list[list[Response]], list["HeadMaps"]]:
        """Responses of each image (n may differ), and with ``by_head`` each image's maps of every head."""
        localizer = self.localizer
        prompts, tails, owner = [], [], []
        for i, (image, ids) in enumerate(zip(images, responses, strict=True)):
            inputs = prepare(localizer.processor, localizer.text, image)
            prompts += [inputs] * len(ids)
            tails += [torch.tensor(list(some), dtype=torch.long) for some in ids]
            owner += [i] * len(ids)
        plans = [
            self.builder.plan(torch.cat([p.input_ids, tail]), len(p.input_ids), p.image, batch_row=row)
            for row, (p, tail) in enumerate(zip(prompts, tails, strict=True))
        ]
        # A sampled image placeholder would want pixels; it is fed as padding, as in Localizer.explain.
        fed = [tail.masked_fill(torch.isin(tail, self._reserved), localizer._pad_id) for tail in tails]
        maps = [HeadMaps() for _ in images]
        asked = [(plan, maps[owner[row]]) for row, plan in enumerate(plans) if plan.request is not None]
        batch = localizer._batch(prompts, fed, "right")

        def each_head(head: tuple[int, int], rows: list[Tensor]) -> None:
            for (plan, found), rows_RC in zip(asked, rows, strict=True):
                found.add(head, _to_cells(plan, rows_RC), plan)

        requests = [plan.request for plan, _ in asked if plan.request is not None]
        with self.readout.reading(requests, each_head=each_head if by_head else None) as reading:
            localizer.model(**batch, logits_to_keep=1, use_cache=False)
        rows = iter(reading.rows())
        found = [self._response(plan, tail, rows) for plan, tail in zip(plans, tails, strict=True)]
        grouped: list[list[Response]] = [[] for _ in images]
        for i, response in zip(owner, found, strict=True):
            grouped[i].append(response)
        return grouped, maps

    def _response(self, plan: EvidencePlan, tail: Tensor, rows: Any) -> Response:
        text = self.localizer.tokenizer.decode(tail.tolist(), skip_special_tokens=True)
        parsed = parse_response(text, self.builder.cfg.spans)
        answer = {"yes": 1, "no": 0}.get(parsed.answer or "")
        if plan.request is None or plan.layout is None:
            return Response(None, None, None, (0, 0), plan.problem, answer, parsed.well_formed)
        rows_RC = next(rows).cpu()
        s_t_R = rows_RC[:, len(plan.layout.columns) :].sum(1)
        grid = plan.layout.grid
        return Response(_to_cells(plan, rows_RC), s_t_R, plan.token_ids, grid, None, answer, parsed.well_formed)


class HeadMaps:
    """An image's mean map of every head: the mean over its responses of the mean row. [H, P], and nothing bigger."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.grid: tuple[int, int] | None = None

    def add(self, head: tuple[int, int], rows_RP: Tensor, plan: EvidencePlan) -> None:
        """Take one response's rows of one head."""
        assert plan.layout is not None
        row_P = rows_RP.mean(0).float().cpu()
        self.grid = plan.layout.grid
        self.sums[head] = self.sums[head] + row_P if head in self.sums else row_P
        self.counts[head] = self.counts.get(head, 0) + 1

    def stacked(self, grid: tuple[int, int]) -> tuple[list[tuple[int, int]], Tensor] | None:
        """(heads in order, [H, P] on ``grid``), None where no response had evidence."""
        if not self.sums or self.grid is None:
            return None
        heads = sorted(self.sums)
        maps_HP = torch.stack([self.sums[head] / self.counts[head] for head in heads])
        return heads, maps_HP if self.grid == grid else resize_rows(maps_HP, self.grid, grid)


def _to_cells(plan: EvidencePlan, rows_RC: Tensor) -> Tensor:
    assert plan.layout is not None
    return plan.layout.project(rows_RC[:, : len(plan.layout.columns)])
