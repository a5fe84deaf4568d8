"""Warm start of the tiny backbone: it learns to describe procedural images, from words alone (no masks)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from realad_verl.data.tiny_arch import GRID
from realad_verl.data.tiny_lessons import PLACES_TOLD, PROMPT, Lessons, lesson_sheet, to_patches

# Letters: B samples, T tokens, L tokens after the image prefix, V words.


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the warm start, all ours. ``informative_weight``: loss weight of the words that the image decides."""

    steps: int = 1200
    batch: int = 16
    lr: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.05
    informative_weight: float = 3.0
    seed: int = 0


class LessonLoss:
    """Forward of packed lessons (see `tiny_lessons`) and their loss."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor):
        self.model, self.processor = model, processor
        self.sheet = lesson_sheet(processor)
        self.grid = torch.tensor([[1, GRID, GRID]])
        prefix: Any = torch.tensor([self.sheet.prefix])
        self.kinds = (prefix == model.config.image_token_id).long()
        places: Any = {"mm_token_type_ids": self.kinds, "image_grid_thw": self.grid}
        positions, _ = model.model.get_rope_index(prefix, attention_mask=torch.ones_like(prefix), **places)
        after = positions.max() + 1 + self.sheet.position_T[len(self.sheet.prefix) :]
        self.positions = torch.cat([positions, after.expand(3, 1, -1)], -1)

    def __call__(self, images: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, float, float]:
        """The loss of a batch, and its two parts as numbers: places, captions. Shapes as in `Lessons`, batched."""
        size, start = len(images), len(self.sheet.prefix)
        tokens = torch.cat([torch.tensor(self.sheet.prefix).expand(size, -1), ids], 1)
        batch: Any = {
            "input_ids": tokens,
            "attention_mask": self.sheet.attention_mask,
            "pixel_values": to_patches(images, self.processor),
            "image_grid_thw": self.grid.expand(size, -1),
            "mm_token_type_ids": F.pad(self.kinds, (0, ids.shape[1])).expand(size, -1),
            "position_ids": self.positions.expand(-1, size, -1),
        }
        hidden = self.model.model(**batch, use_cache=False).last_hidden_state
        source, target = self._targets(ids.shape[1])
        logits = self.model.lm_head(hidden[:, start + source])
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, target].flatten(), reduction="none")
        weighted, weights = losses.view(size, -1) * weights[:, target], weights[:, target]
        told = self.sheet.part_T[start + target] == PLACES_TOLD
        place = weighted[:, told].sum() / weights[:, told].sum()
        caption = weighted[:, ~told].sum() / weights[:, ~told].sum()
        return place + caption, place.item(), caption.item()

    def _targets(self, length: int) -> tuple[Tensor, Tensor]:
        """Which of the L tokens predicts which: the one before, or for an answer's first token the prompt's last."""
        part = self.sheet.part_T[len(self.sheet.prefix) :]
        target = torch.arange(length)[(part == PLACES_TOLD) | (part > PROMPT)]
        source = target - 1
        prompt_end = int((part == PROMPT).nonzero().max())
        first = (part[source] > PROMPT) & (
            part[source] != part[target]
        )  # caption 2 begins after the prompt, not caption 1
        return torch.where(first, prompt_end, source), target


def fast_patch_embedding(model: Qwen2_5_VLForConditionalGeneration) -> Callable[[Tensor], Tensor]:
    """The patch embedding as a matrix product: equal to the stock 3-D convolution, several times faster on a CPU.

    Both frames of a still image are the same, so their kernels can be added first.
    """
    kernel = model.model.visual.patch_embed.proj.weight  # hidden, RGB, frames, y, x

    def embed(hidden_states: Tensor) -> Tensor:
        frames = hidden_states.view(len(hidden_states), 3, 2, -1)
        return F.linear(frames[:, :, 0].flatten(1), kernel.sum(2).flatten(1))

    return embed


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    cfg: TrainConfig,
    on_step: Callable[[int, float, float], None] = lambda step, place, caption: None,
) -> float:
    """Train ``model`` in place; returns the seconds it took. ``on_step`` gets the step and the losses of its parts."""
    lesson_loss = LessonLoss(model, processor)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, cfg))
    lessons = Lessons(
        processor.tokenizer,
        lesson_loss.sheet,
        seed=cfg.seed,
        length=cfg.steps * cfg.batch,
        informative_weight=cfg.informative_weight,
    )
    started = time.monotonic()
    model.train()
    patch_embed = model.model.visual.patch_embed
    patch_embed.forward = fast_patch_embedding(model)
    for step, batch in enumerate(DataLoader(lessons, cfg.batch, num_workers=1, prefetch_factor=4)):
        loss, place, caption = lesson_loss(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, place, caption)
    del patch_embed.forward
    model.eval()
    return time.monotonic() - started


def _rate(step: int, cfg: TrainConfig) -> float:
    """Linear warm-up, then a cosine to 0, as a share of the learning rate."""
    if step < cfg.warmup:
        return (step + 1) / cfg.warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1))))
