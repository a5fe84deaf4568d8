"""A small GRPO loop on the tiny backbone, over the package's own rewards, read-out and evidence.

It stands in for veRL where a run through veRL would cost hours; what it shares with it is everything under
``realad_verl.method``, ``realad_verl.evidence``, ``realad_verl.attention`` and ``reward_fns``. What is its own: one
update a batch on-policy (so no ratio and no clipping), and all n responses of a prompt in one packed sequence, whose
one forward gives both the log-probabilities and the attention rows.

Letters: B prompts, n responses a prompt, S = B * n, R response tokens, T tokens of the packed sequence, V words.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.data.procedural import ProceduralDefects, ProceduralSample
from realad_verl.evidence import EvidenceBuilder, EvidencePlan
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from realad_verl.method.evidence import Evidence
from realad_verl.method.labels import LABEL_TO_ANSWER
from realad_verl.tiny.arch import IMAGE_SIZE
from realad_verl.tiny.lessons import to_patches
from realad_verl.tiny.rollout import TinyRollout
from realad_verl.tiny.train import fast_patch_embedding
from reward_fns.compose import compute_score

WARMUP = 10  # steps; without it Adam's first ones move the wording far before any of it is a signal


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run. ``w_cons`` 0 is the R1 baseline; ``kl``: weight of the k3 estimate against the warm start.
    ``attention``: the loss on the attention beside the reward's; ``variant``: its controls (`learning_attention`).

    ``lr`` rises over the first ``WARMUP`` steps and then falls linearly to 0 at ``steps``.
    """

    method: MethodConfig
    w_cons: float
    steps: int = 100
    prompts: int = 48
    n: int = 8
    lr: float = 4e-4
    kl: float = 0.005
    seed: int = 0
    domain: str = "shifted"
    attention: AttentionLossConfig = AttentionLossConfig()
    variant: str = "consensus"


class PackedForward:
    """Log-probabilities of n responses a prompt, the prompt and its image computed once."""

    def __init__(self, rollout: TinyRollout):
        self.rollout = rollout

    def __call__(self, model: Any, images: Tensor, ids: Tensor) -> Tensor:
        """Images [B, 168, 168, 3], ids [B, n, R] (padding -100) -> log-probabilities [B, n, R], 0 at padding"""
        rollout, (size, n, length) = self.rollout, ids.shape
        prompt = len(rollout.prompt)
        tokens = torch.cat([rollout.prompt.expand(size, -1), ids.clamp(min=0).flatten(1)], 1)
        embedded = model.model.language_model.embed_tokens(tokens)
        seen = model.model.visual(to_patches(images, rollout.processor), grid_thw=rollout.grid.expand(size, -1))
        is_image = F.pad(rollout.kinds, (0, n * length)).bool().expand(size, -1)
        hidden = model.model.language_model(
            inputs_embeds=embedded.masked_scatter(is_image[..., None], seen.pooler_output),
            attention_mask=self._mask(prompt, n, length),
            position_ids=self._positions(n, length).expand(-1, size, -1),
            use_cache=False,
        ).last_hidden_state
        # A response's first token is predicted by the prompt's last, the others by the token before.
        first = torch.full((n, 1), prompt - 1)
        rest = prompt + torch.arange(n * length).view(n, length)[:, :-1]
        logits = model.lm_head(hidden[:, torch.cat([first, rest], 1)])
        chosen = logits.log_softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0]
        return chosen * (ids >= 0)

    def _mask(self, prompt: int, n: int, length: int) -> Tensor:
        part = torch.cat([torch.full((prompt,), -1), torch.arange(n).repeat_interleave(length)])
        sees = (part[:, None] == part) | (part == -1)
        return (sees & torch.ones_like(sees).tril())[None, None]

    def _positions(self, n: int, length: int) -> Tensor:
        after = (self.rollout.next_position + torch.arange(length)).repeat(n)
        return torch.cat([self.rollout.positions, after.expand(3, 1, -1)], -1)


class Evidences:
    """Evidence of packed responses, read in the forward that gives their log-probabilities, as the trainer does it."""

    def __init__(self, rollout: TinyRollout, cfg: MethodConfig):
        self.rollout, self.packed = rollout, PackedForward(rollout)
        self.builder = EvidenceBuilder(rollout.model.config, rollout.tokenizer, cfg)
        self.readout = AttentionReadout(rollout.model, cfg.readout.layers, heads=cfg.readout.heads)

    def __call__(self, images: Tensor, responses: list[list[int]], ids: Tensor) -> tuple[Tensor, list[Evidence]]:
        """Images [B, ...], S responses and the same padded [B, n, R] -> log-probabilities [B, n, R], S evidences."""
        log_p, plans, rows = self.read(images, responses, ids)
        return log_p, self.builder.reduce(plans, rows)

    def read(
        self, images: Tensor, responses: list[list[int]], ids: Tensor
    ) -> tuple[Tensor, list[EvidencePlan], list[Tensor]]:
        """As ``__call__``, before the reduction."""
        plans, requests = self.requests(responses, ids)
        with self.readout.reading(requests) as reading:
            log_p = self.packed(self.rollout.model, images, ids)
        return log_p, plans, reading.rows()

    def attention_loss(self, labels: np.ndarray, right: np.ndarray) -> tuple[Tensor | None, dict[str, float]]:
        """No loss on the attention; `learning_attention.TaughtEvidences` has one."""
        return None, {}

    def requests(self, responses: list[list[int]], ids: Tensor) -> tuple[list[EvidencePlan], list[RowRequest]]:
        """A plan a response, and where the rows of those that have any lie in the packed sequences."""
        prompt, outputs = self.rollout.prompt, {"image_grid_thw": self.rollout.grid}
        plans = [
            self.builder.plan(torch.cat([prompt, torch.tensor(r)]), len(prompt), outputs, batch_row=s // ids.shape[1])
            for s, r in enumerate(responses)
        ]
        _, n, length = ids.shape
        requests = [
            replace(
                plan.request,
                queries=plan.request.queries + s % n * length,
                length=len(prompt) + n * length,
            )
            for s, plan in enumerate(plans)
            if plan.request is not None
        ]
        return plans, requests


def reward(texts: list[str], labels: list[int], evidence: list[Evidence], cfg: LoopConfig) -> dict[str, np.ndarray]:
    """One text, label and evidence a response -> arrays [S] of each reward, their total and J."""
    out: dict[str, list[float]] = {"format": [], "accuracy": [], "consistency": [], "total": [], "jaccard": []}
    for text, label, found in zip(texts, labels, evidence, strict=True):
        score = compute_score("realad/procedural", text, LABEL_TO_ANSWER[label])
        well_formed, accurate = bool(score["format_reward"]), bool(score["accuracy_reward"])
        consistent = consistency_score(found.jaccard, label, well_formed, cfg.method.consistency, accurate=accurate)
        out["format"].append(score["format_reward"])
        out["accuracy"].append(score["accuracy_reward"])
        out["consistency"].append(consistent)
        out["total"].append(score["score"] + cfg.w_cons * consistent)
        out["jaccard"].append(np.nan if found.jaccard is None else found.jaccard)
    return {name: np.array(values) for name, values in out.items()}


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO: rewards [B, n] less the group's mean, over its deviation."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)


def pad(responses: list[list[int]], n: int) -> Tensor:
    """S responses, n a prompt -> ids [B, n, R], padded with -100."""
    rows = [torch.tensor(response) for response in responses]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    return ids.view(-1, n, ids.shape[1])


def train(
    model: Any, reference: Any, rollout: TinyRollout, cfg: LoopConfig, log: Path, evidences: Evidences | None = None
) -> float:
    """Train ``model``, the rollout's own, in place; a JSON line a step goes to ``log``. Returns CPU seconds."""
    torch.manual_seed(cfg.seed)
    for each in (model, reference):
        each.model.visual.patch_embed.forward = fast_patch_embedding(each)
    evidences = Evidences(rollout, cfg.method) if evidences is None else evidences
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / cfg.steps))
    source = ProceduralDefects(IMAGE_SIZE, cfg.domain, 10_000 + cfg.seed)
    started = time.process_time()
    with log.open("w") as lines:
        for step in range(cfg.steps):
            samples = [source[step * cfg.prompts + i] for i in range(cfg.prompts)]
            line = train_step(reference, rollout, evidences, optimizer, samples, cfg, step)
            schedule.step()
            lines.write(json.dumps({"step": step, "cpu_s": time.process_time() - started, **line}) + "\n")
            lines.flush()
    return time.process_time() - started


def train_step(
    reference: Any,
    rollout: TinyRollout,
    evidences: Evidences,
    optimizer: torch.optim.Optimizer,
    samples: list[ProceduralSample],
    cfg: LoopConfig,
    step: int,
) -> dict[str, float]:
    """Sample, score, update once."""
    images = torch.stack([torch.from_numpy(sample.image) for sample in samples])
    labels = np.repeat([sample.label for sample in samples], cfg.n)
    responses = rollout.sample(images, n=cfg.n, seed=cfg.seed * 1_000_003 + step)
    ids = pad(responses, cfg.n)
    log_p, evidence = evidences(images, responses, ids)
    with torch.no_grad():
        reference_p = evidences.packed(reference, images, ids)
    scored = reward([rollout.text(response) for response in responses], labels.tolist(), evidence, cfg)
    total = torch.tensor(scored["total"], dtype=torch.float32).view(-1, cfg.n)
    advantages = group_advantages(total)
    chosen = ids >= 0
    ratio = reference_p - log_p
    kl = ((ratio.exp() - 1 - ratio) * chosen).sum() / chosen.sum()
    loss = -((advantages[..., None] * log_p).sum() / chosen.sum()) + cfg.kl * kl
    attention, taught = evidences.attention_loss(labels, scored["accuracy"] > 0)
    if attention is not None:
        loss = loss + cfg.attention.weight * attention
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(rollout.model.parameters(), 1.0)
    optimizer.step()
    jaccard = {f"jaccard_{label}": float(np.nanmean(scored["jaccard"][labels == label])) for label in (0, 1)}
    means = {name: float(scored[name].mean()) for name in ("format", "accuracy", "consistency", "total")}
    return {
        **means,
        **jaccard,
        **taught,
        "kl": kl.item(),
        "with_advantage": float((total.std(1) > 0).float().mean()),
        "tokens": float(chosen.sum() / len(responses)),
    }
