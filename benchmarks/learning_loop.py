"""A small GRPO loop on the tiny backbone, over the package's own rewards, read-out and evidence.

It stands in for veRL where a run through veRL would cost hours; what it shares with it is everything under
``realad_verl.method``, ``realad_verl.evidence``, ``realad_verl.attention`` and ``reward_fns``. What is its own: one
update a batch on-policy (so no ratio and no clipping), and all n responses of a prompt in one packed sequence.

Letters: B prompts, n responses a prompt, S = B * n, R response tokens, T tokens of the packed sequence, V words.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from realad_verl.data.procedural import ProceduralDefects, ProceduralSample
from realad_verl.data.prompts import LABEL_TO_ANSWER
from realad_verl.data.tiny_arch import IMAGE_SIZE
from realad_verl.data.tiny_lessons import to_patches
from realad_verl.data.tiny_rollout import TinyRollout
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from reward_fns.compose import compute_score


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run. ``w_cons`` 0 is the R1 baseline; ``kl``: weight of the k3 estimate against the warm start."""

    method: MethodConfig
    w_cons: float
    steps: int = 100
    prompts: int = 8
    n: int = 8
    lr: float = 2e-4
    kl: float = 0.02
    seed: int = 0
    domain: str = "shifted"


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


class Rewards:
    """Format, accuracy and consistency rewards of sampled responses, with the J and problems behind them."""

    def __init__(self, rollout: TinyRollout, cfg: LoopConfig):
        self.rollout, self.cfg = rollout, cfg
        self.builder = EvidenceBuilder(rollout.model.config, rollout.tokenizer, cfg.method)

    def __call__(self, images: Tensor, labels: list[int], responses: list[list[int]]) -> dict[str, np.ndarray]:
        """One image [S, 168, 168, 3] and label a response -> arrays [S] of each reward, their total and J."""
        plans, rows, _, _ = self.rollout.read(images, responses, self.cfg.method)
        evidence = self.builder.reduce(plans, rows)
        out: dict[str, list[float]] = {"format": [], "accuracy": [], "consistency": [], "total": [], "jaccard": []}
        for ids, label, found in zip(responses, labels, evidence, strict=True):
            score = compute_score("realad/procedural", self.rollout.text(ids), LABEL_TO_ANSWER[label])
            well_formed, accurate = bool(score["format_reward"]), bool(score["accuracy_reward"])
            consistent = consistency_score(
                found.jaccard, label, well_formed, self.cfg.method.consistency, accurate=accurate
            )
            out["format"].append(score["format_reward"])
            out["accuracy"].append(score["accuracy_reward"])
            out["consistency"].append(consistent)
            out["total"].append(score["score"] + self.cfg.w_cons * consistent)
            out["jaccard"].append(np.nan if found.jaccard is None else found.jaccard)
        return {name: np.array(values) for name, values in out.items()}


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO: rewards [B, n] less the group's mean, over its deviation."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)


def train(model: Any, reference: Any, rollout: TinyRollout, cfg: LoopConfig, log: Path) -> float:
    """Train ``model`` in place; a JSON line a step goes to ``log``. Returns CPU seconds."""
    torch.manual_seed(cfg.seed)
    rewards, packed = Rewards(rollout, cfg), PackedForward(rollout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.98), weight_decay=0.0)
    source = ProceduralDefects(IMAGE_SIZE, cfg.domain, 10_000 + cfg.seed)
    started = time.process_time()
    with log.open("w") as lines:
        for step in range(cfg.steps):
            samples = [source[step * cfg.prompts + i] for i in range(cfg.prompts)]
            line = train_step(model, reference, rollout, rewards, packed, optimizer, samples, cfg, step)
            lines.write(json.dumps({"step": step, "cpu_s": time.process_time() - started, **line}) + "\n")
            lines.flush()
    return time.process_time() - started


def train_step(
    model: Any,
    reference: Any,
    rollout: TinyRollout,
    rewards: Rewards,
    packed: PackedForward,
    optimizer: torch.optim.Optimizer,
    samples: list[ProceduralSample],
    cfg: LoopConfig,
    step: int,
) -> dict[str, float]:
    """Sample, score, update once."""
    images = torch.stack([torch.from_numpy(sample.image) for sample in samples])
    labels = np.repeat([sample.label for sample in samples], cfg.n)
    responses = rollout.sample(images, n=cfg.n, seed=cfg.seed * 1_000_003 + step)
    scored = rewards(images.repeat_interleave(cfg.n, 0), labels.tolist(), responses)
    total = torch.tensor(scored["total"], dtype=torch.float32).view(-1, cfg.n)
    advantages = group_advantages(total)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in responses], batch_first=True, padding_value=-100)
    ids = ids.view(len(samples), cfg.n, -1)
    chosen = ids >= 0
    log_p = packed(model, images, ids)
    with torch.no_grad():
        reference_p = packed(reference, images, ids)
    ratio = reference_p - log_p
    kl = ((ratio.exp() - 1 - ratio) * chosen).sum() / chosen.sum()
    loss = -((advantages[..., None] * log_p).sum() / chosen.sum()) + cfg.kl * kl
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    jaccard = {f"jaccard_{label}": float(np.nanmean(scored["jaccard"][labels == label])) for label in (0, 1)}
    means = {name: float(scored[name].mean()) for name in ("format", "accuracy", "consistency", "total")}
    return {
        **means,
        **jaccard,
        "kl": kl.item(),
        "with_advantage": float((total.std(1) > 0).float().mean()),
        "tokens": float(chosen.sum() / len(responses)),
    }
