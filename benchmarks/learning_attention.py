"""The loss on the attention in the small loop, and its controls. The product's own maths, on packed responses.

Variants: "consensus", the loss itself; "shuffled", each anomalous image is taught another one's target (a control: what
is left is not the place); "teacher", targets from the warm start's attention instead of the model's own; "mil", no
target and no group: the contrast of a response's map has to tell the image's label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from learning_loop import Evidences, LoopConfig
from torch import Tensor
from torch.nn import functional as F

from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.evidence import EvidencePlan
from realad_verl.method.attention_loss import RunningBaseline, consensus_target, response_map, token_losses
from realad_verl.tiny.arch import GRID
from realad_verl.tiny.rollout import TinyRollout

VARIANTS = ("consensus", "shuffled", "teacher", "mil")
BETA = 4.0  # of the contrast, the beta-norm of a map of mean 1


@dataclass
class Step:
    """What the running step's forward left: plans of all responses, the rest of those that have a request."""

    plans: list[EvidencePlan]
    ids: list[Tensor]  # the token ids of the rows
    rows: list[Tensor]  # that the maps are made of
    log_a: list[Tensor]


class TaughtEvidences(Evidences):
    """Evidence of packed responses whose forward also gives attention with a gradient."""

    def __init__(self, rollout: TinyRollout, reference: Any, cfg: LoopConfig):
        super().__init__(rollout, cfg.method)
        self.reference = WarmStartRows(reference, rollout, cfg) if cfg.variant == "teacher" else None
        self.cfg, self.loss, self.baseline = cfg, cfg.attention, RunningBaseline((GRID, GRID))
        self.logistic = torch.nn.Parameter(torch.tensor([3.0, float("nan")]))  # slope, centre; of "mil"
        self.logistic_optimizer = torch.optim.Adam([self.logistic], lr=0.02)

    def read(self, images: Tensor, responses: list[list[int]], ids: Tensor):
        plans, requests = self.requests(responses, ids)
        cells = GRID * GRID
        with gradient_reading(self.readout, requests, columns=[cells] * len(requests), also_rows=True) as reading:
            log_p = self.packed(self.rollout.model, images, ids)
        log_a, rows = reading.log_rows(), reading.rows()
        tokens = [
            torch.tensor(response)[plan.reasoning]
            for plan, response in zip(plans, responses, strict=True)
            if plan.request is not None
        ]
        taught = rows if self.reference is None else self.reference.rows(images, requests, ids)
        self.step = Step(plans, tokens, [each[:, :cells] for each in taught], log_a)
        return log_p, plans, rows

    def attention_loss(self, labels: np.ndarray, right: np.ndarray) -> tuple[Tensor | None, dict[str, float]]:
        """The loss of the step that was read last (None while there is no baseline), and what to log of it."""
        step, cfg = self.step, self.loss
        have = [s for s, plan in enumerate(step.plans) if plan.request is not None]
        baseline = self.baseline.baseline(cfg.min_count)
        for s, ids_R, rows_RP in zip(have, step.ids, step.rows, strict=True):
            if labels[s] == 0 or cfg.baseline_images == "all":
                self.baseline.add(ids_R, rows_RP)
        self.baseline.commit(cfg.decay)
        if baseline is None and cfg.baseline != "none":
            return None, {"attention_loss": 0.0}
        if self.cfg.variant == "mil":
            return self._contrast_loss(have, labels, baseline)
        maps = {
            s: response_map(rows_RP, ids_R, baseline, (GRID, GRID), cfg)
            for s, ids_R, rows_RP in zip(have, step.ids, step.rows, strict=True)
        }
        targets = self._targets(maps, labels, right)
        taught = [(targets[s // self.cfg.n], log_a) for s, log_a in zip(have, step.log_a, strict=True)]
        taught = [(target, log_a) for target, log_a in taught if target is not None]
        losses_T = token_losses(
            torch.cat([target.expand(len(log_a), -1) for target, log_a in taught]),
            torch.cat([log_a for _, log_a in taught]),
        )
        value, of_images = losses_T.mean(), zip(targets, labels[:: self.cfg.n], strict=True)
        peaks = [float(target.max()) for target, label in of_images if label and target is not None]
        return value, {"attention_loss": float(value.detach()), "target_peak": float(np.mean(peaks))}

    def _targets(self, maps: dict[int, Tensor], labels: np.ndarray, right: np.ndarray) -> list[Tensor | None]:
        """One an image."""
        n, targets = self.cfg.n, []
        for first in range(0, len(labels), n):
            group = [s for s in range(first, first + n) if s in maps]
            stacked = torch.stack([maps[s] for s in group]) if group else torch.zeros(0, GRID * GRID)
            targets.append(consensus_target(stacked, right[group].tolist(), int(labels[first]), self.loss))
        if self.cfg.variant == "shuffled":
            anomalous = [i for i, label in enumerate(labels[::n]) if label]
            moved = [targets[i] for i in anomalous[-1:] + anomalous[:-1]]
            for i, target in zip(anomalous, moved, strict=True):
                targets[i] = target
        return targets

    def _contrast_loss(self, have: list[int], labels: np.ndarray, baseline: Any) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the label from the log-contrast of each response's map, by a logistic of its own."""
        contrasts = []
        for ids_R, log_a in zip(self.step.ids, self.step.log_a, strict=True):
            map_P = response_map(log_a.exp(), ids_R, baseline, (GRID, GRID), self.loss) * (GRID * GRID)
            contrasts.append((map_P.clamp(min=1e-6) ** BETA).mean().log() / BETA)
        contrast, label = torch.stack(contrasts), torch.tensor(labels[have], dtype=torch.float32)
        fixed = contrast.detach()
        first = bool(self.logistic[1].isnan())
        if first:
            with torch.no_grad():
                self.logistic[1] = (fixed[label == 1].mean() + fixed[label == 0].mean()) / 2
        for _ in range(20 if first else 3):
            self.logistic_optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(self.logistic[0] * (fixed - self.logistic[1]), label).backward()
            self.logistic_optimizer.step()
        slope, centre = self.logistic.detach()
        loss = F.binary_cross_entropy_with_logits(slope * (contrast - centre), label)
        return loss, {"attention_loss": float(loss.detach())}


class WarmStartRows(Evidences):
    """Rows of the warm start for the same packed responses."""

    def __init__(self, model: Any, rollout: TinyRollout, cfg: LoopConfig):
        super().__init__(TinyRollout(model, rollout.processor), cfg.method)

    @torch.no_grad()
    def rows(self, images: Tensor, requests: list, ids: Tensor) -> list[Tensor]:
        with self.readout.reading(requests) as reading:
            self.packed(self.rollout.model, images, ids)
        return reading.rows()
