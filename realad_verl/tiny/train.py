"""Warm start of the tiny backbone: it learns to name and describe what procedural images show.

First the vision tower alone learns a word for each image token (a surface or a kind of defect, from the procedural
masks), as a big model's vision tower is trained before it meets its language model; then the language model learns to
talk about what the frozen tower sees. No step looks at attention. All of it is on the *source* domain.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.data.procedural.captions import SOURCE_SURFACES
from realad_verl.tiny.arch import GRID, IMAGE_SIZE, PATCH
from realad_verl.tiny.config import TrainConfig
from realad_verl.tiny.lessons import NAMES, PLACES_TOLD, PROMPT, Lessons, NamingLessons, lesson_sheet, to_patches

WHITENING_FLOOR = 0.05  # variance below which a component counts as noise (a component sums over many pixels)
NAMING_TEMPERATURE = 0.07
# Letters: B samples, T tokens, L tokens after the image prefix, V words.


class LessonLoss:
    """Forward of packed lessons (see `lessons`) and their loss."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor):
        self.model, self.processor = model, processor
        self.sheet, self.naming = lesson_sheet(processor), Naming(model, processor)
        self.grid = torch.tensor([[1, GRID, GRID]])
        prefix: Any = torch.tensor([self.sheet.prefix])
        self.kinds = (prefix == model.config.image_token_id).long()
        places: Any = {"mm_token_type_ids": self.kinds, "image_grid_thw": self.grid}
        positions, _ = model.model.get_rope_index(prefix, attention_mask=torch.ones_like(prefix), **places)
        after = positions.max() + 1 + self.sheet.position_T[len(self.sheet.prefix) :]
        self.positions = torch.cat([positions, after.expand(3, 1, -1)], -1)

    def __call__(self, images: Tensor, ids: Tensor, weights: Tensor, names: Tensor | None) -> dict[str, Tensor]:
        """Losses on "places" and "captions", and on "naming" if ``names`` are given; shapes as in `Lessons`, batched.

        Without ``names`` no gradient reaches the vision tower.
        """
        size, start = len(images), len(self.sheet.prefix)
        tokens = torch.cat([torch.tensor(self.sheet.prefix).expand(size, -1), ids], 1)
        with torch.set_grad_enabled(names is not None):
            seen = see(self.model, to_patches(images, self.processor), self.grid.expand(size, -1))
        embedded = self.model.model.language_model.embed_tokens(tokens)
        is_image = F.pad(self.kinds, (0, ids.shape[1])).bool().expand(size, -1)
        embedded = embedded.masked_scatter(is_image[..., None], seen)
        hidden = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=self.sheet.attention_mask,
            position_ids=self.positions.expand(-1, size, -1),
            use_cache=False,
        ).last_hidden_state
        source, target = self._targets(ids.shape[1])
        logits = self.model.lm_head(hidden[:, start + source])
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, target].flatten(), reduction="none")
        weighted, weights = losses.view(size, -1) * weights[:, target], weights[:, target]
        told = self.sheet.part_T[start + target] == PLACES_TOLD
        losses = {
            "places": weighted[:, told].sum() / weights[:, told].sum(),
            "captions": weighted[:, ~told].sum() / weights[:, ~told].sum(),
        }
        return losses if names is None else losses | {"naming": self.naming(seen, names)}

    def name(self, images: Tensor, names: Tensor) -> dict[str, Tensor]:
        """The loss on "naming" alone: no language model runs."""
        seen = see(self.model, to_patches(images, self.processor), self.grid.expand(len(images), -1))
        return {"naming": self.naming(seen, names)}

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


def see(model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, grid: Tensor) -> Tensor:
    """The image tokens [B * 144, hidden] that the language model gets."""
    return model.model.visual(patches, grid_thw=grid).pooler_output


class Naming:
    """Loss of the image tokens' names [B, 144]: cross-entropy by cosine to the (first) word of each of ``NAMES``."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor):
        self.embedding = model.lm_head
        self.word_ids = torch.tensor([processor.tokenizer(f" {name}").input_ids[0] for name in NAMES])

    def __call__(self, seen: Tensor, names: Tensor) -> Tensor:
        words = F.normalize(self.embedding.weight[self.word_ids], dim=-1)
        logits = F.normalize(seen, dim=-1) @ words.T / NAMING_TEMPERATURE
        losses = F.cross_entropy(logits, names.flatten(), reduction="none")
        defect = names.flatten() >= len(SOURCE_SURFACES)  # few tokens: they weigh as much as all the others
        return 0.5 * losses[~defect].mean() + 0.5 * losses[defect].sum() / max(int(defect.sum()), 1)


def fast_patch_embedding(model: Qwen2_5_VLForConditionalGeneration) -> Callable[[Tensor], Tensor]:
    """The patch embedding as a matrix product: equal to the stock 3-D convolution, several times faster on a CPU.

    Both frames of a still image are the same, so their kernels can be added first.
    """
    kernel = model.model.visual.patch_embed.proj.weight  # hidden, RGB, frames, y, x

    def embed(hidden_states: Tensor) -> Tensor:
        frames = hidden_states.view(len(hidden_states), 3, 2, -1)
        return F.linear(frames[:, :, 0].flatten(1), kernel.sum(2).flatten(1))

    return embed


@torch.no_grad()
def whiten_patch_embedding(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, seed: int, images: int = 96
) -> None:
    """Start the patch embedding as the principal components of procedural patches, each scaled to unit variance.

    With random kernels the brightness of a patch drowns its details; whitened ones show them from the first step.
    """
    samples = ProceduralDefects(IMAGE_SIZE, "source", seed)
    pixels = torch.stack([torch.from_numpy(samples[i].image) for i in range(images)])
    patches = to_patches(pixels, processor).view(-1, 3, 2, PATCH * PATCH)[:, :, 0].flatten(1).double()
    _, spread, components = torch.linalg.svd(torch.cov(patches.T))
    kernel = model.model.visual.patch_embed.proj.weight  # hidden, RGB, frames, y, x
    filters = components[: len(kernel)] / (spread[: len(kernel), None] + WHITENING_FLOOR).sqrt()
    both_frames = (filters / 2).view(len(kernel), 3, 1, PATCH, PATCH).expand_as(kernel)
    kernel.copy_(both_frames.float())


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    cfg: TrainConfig,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> float:
    """Train ``model`` in place; returns the seconds. ``on_step`` gets the step, over all stages, and the losses."""
    lesson_loss = LessonLoss(model, processor)
    naming = NamingLessons(seed=cfg.seed, length=cfg.naming_steps * cfg.batch, defects=cfg.naming_defects)
    lessons = Lessons(
        processor.tokenizer,
        lesson_loss.sheet,
        seed=cfg.seed,
        length=(cfg.steps + cfg.joint_steps) * cfg.batch,
        informative_weight=cfg.informative_weight,
    )
    started = time.monotonic()
    whiten_patch_embedding(model, processor, cfg.seed)
    model.train()
    patch_embed: Any = model.model.visual.patch_embed
    patch_embed.forward = fast_patch_embedding(model)
    named, told = (iter(DataLoader(each, cfg.batch, num_workers=1, prefetch_factor=4)) for each in (naming, lessons))
    tower, talker = list(model.model.visual.parameters()), list(model.model.language_model.parameters())
    stages = (
        (tower, cfg.naming_steps, cfg.lr, named, lesson_loss.name),
        (talker, cfg.steps, cfg.lr, told, lambda images, ids, weights, names: lesson_loss(images, ids, weights, None)),
        (tower + talker, cfg.joint_steps, cfg.joint_lr, told, lesson_loss),
    )
    done = 0
    for parameters, steps, lr, batches, losses_of in stages:
        optimizer, schedule = _optimizer(parameters, steps, lr, cfg)
        for _ in range(steps):
            losses = losses_of(*next(batches))
            weighted = [value * (cfg.naming_weight if name == "naming" else 1.0) for name, value in losses.items()]
            model.zero_grad(set_to_none=True)
            sum(weighted, torch.zeros(())).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            on_step(done, {name: value.item() for name, value in losses.items()})
    del patch_embed.forward
    model.eval()
    return time.monotonic() - started


def _optimizer(parameters: list[torch.nn.Parameter], steps: int, lr: float, cfg: TrainConfig) -> tuple[Any, Any]:
    """AdamW, with decay on matrices only, and its schedule: a linear warm-up, then a cosine to 0."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        if step < cfg.warmup:
            return (step + 1) / cfg.warmup
        return 0.5 * (1 + float(np.cos(np.pi * (step - cfg.warmup) / max(steps - cfg.warmup, 1))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
