"""Warm start of the tiny backbone: it learns to describe procedural images, from words alone (no masks)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.data.procedural.captions import (
    PLACE_QUESTION,
    PLACES,
    SIZES,
    SOURCE_DEFECTS,
    TONES,
    place_answers,
    response,
)
from realad_verl.data.prompts import hf_messages
from realad_verl.data.tiny_arch import GRID, IMAGE_SIZE, PATCH

# Letters below: B samples, P image tokens (144), T tokens of prompt and response, R response tokens.
INFORMATIVE = {word for phrase in (*SOURCE_DEFECTS, *TONES, *SIZES, *sum(PLACES, ())) for word in phrase.split()}
INFORMATIVE |= {
    "yes",
    "no",
    "There",
    "A",
    "At",
    "I",
    "The",
    "No",
}  # the words at which a normal and an anomalous text part


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the warm start, all ours.

    ``informative_weight`` is the loss weight of the words that the image decides; ``place_share`` see `Lessons`.
    """

    steps: int = 1200
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.05
    informative_weight: float = 3.0
    place_share: float = 0.7
    seed: int = 0


def to_patches(images: Tensor, processor: Qwen2_5_VLProcessor) -> Tensor:
    """uint8 [B, 168, 168, 3] -> float32 [B * P, 1176], as the image processor lays them out."""
    mean, std = (
        torch.tensor(values) for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    x = ((images / 255) - mean) / std
    x = x.view(-1, GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4)  # B, row, column, RGB, y, x
    return x.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * PATCH * PATCH)


def prompt_ids(processor: Qwen2_5_VLProcessor, question: str | None = None) -> list[int]:
    """Token ids of the prompt (the fixed one, or another question) with its 144 image tokens."""
    text = processor.apply_chat_template(hf_messages(question), add_generation_prompt=True, tokenize=False)
    pad = "<|image_pad|>"
    return processor.tokenizer(text.replace(pad, pad * GRID**2)).input_ids


class Lessons(Dataset):
    """Item i: image uint8 [168, 168, 3], response ids, loss weights.

    A batch is of one kind: in a share ``place_share`` of the batches the response answers `captions.PLACE_QUESTION`,
    in the others it is a caption in the answer format.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, cfg: TrainConfig):
        self.samples = ProceduralDefects(IMAGE_SIZE, "source", cfg.seed)
        self.tokenizer, self.cfg = tokenizer, cfg

    def __len__(self) -> int:
        return self.cfg.steps * self.cfg.batch

    def __getitem__(self, index: int) -> tuple[Tensor, list[int], list[float]]:
        sample = self.samples[index]
        if asks_places(index // self.cfg.batch, self.cfg):
            text = place_answers(touched_places(sample.mask), np.random.default_rng([self.cfg.seed, index]))
            words = {"yes": self.cfg.informative_weight, "no": 1.0}
        else:
            text = response(sample.caption, sample.label)
            words = dict.fromkeys(INFORMATIVE, self.cfg.informative_weight)
        ids = self.tokenizer(text).input_ids + [self.tokenizer.eos_token_id]
        other = 0.0 if asks_places(index // self.cfg.batch, self.cfg) else 1.0
        return (
            torch.from_numpy(sample.image),
            ids,
            [words.get(str(self.tokenizer.decode([i])).strip(), other) for i in ids],
        )


def asks_places(step: int, cfg: TrainConfig) -> bool:
    """Whether the batch of this step is about places: first often, in the last third of the training never."""
    share = cfg.place_share * (1 - step / (cfg.steps * 2 / 3))
    return np.random.default_rng([cfg.seed, step, 1]).random() < share


def touched_places(mask: np.ndarray) -> set[str]:
    """The places (3 x 3) that hold at least an eighth of the defect."""
    rows, columns = (np.linspace(0, side, 4).astype(int) for side in mask.shape)
    total = max(int(mask.sum()), 1)
    return {
        PLACES[r][c]
        for r in range(3)
        for c in range(3)
        if mask[rows[r] : rows[r + 1], columns[c] : columns[c + 1]].sum() >= total / 8
    }


def collate(items: list[tuple[Tensor, list[int], list[float]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, 168, 168, 3]; response ids [B, R] and loss weights [B, R], padded right with 0."""
    longest = max(len(ids) for _, ids, _ in items)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids, _ in items])
    weights = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, _, weights in items])
    return torch.stack([image for image, _, _ in items]), ids, weights


class PromptedForward:
    """Forward of B responses after one prompt; what does not depend on the sample is computed once."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, question: str | None = None
    ):
        self.model, self.processor = model, processor
        self.prompt = torch.tensor(prompt_ids(processor, question))
        self.grid = torch.tensor([[1, GRID, GRID]])

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, R, V] that predict the response ids [B, R]; right padding needs no mask, nothing follows it."""
        size = len(images)
        tokens = torch.cat([self.prompt.expand(size, -1), ids], 1)
        kinds = (tokens == self.model.config.image_token_id).long()
        first: Any = {"input_ids": tokens[:1], "mm_token_type_ids": kinds[:1], "image_grid_thw": self.grid}
        positions, _ = self.model.model.get_rope_index(**first, attention_mask=torch.ones_like(tokens[:1]))
        hidden = self.model.model(
            input_ids=tokens,
            pixel_values=to_patches(images, self.processor),
            image_grid_thw=self.grid.expand(size, -1),
            mm_token_type_ids=kinds,
            position_ids=positions.expand(-1, size, -1),
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden[:, len(self.prompt) - 1 : -1])


def weighted_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy over response tokens, weighted."""
    losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    cfg: TrainConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train ``model`` in place; returns the seconds it took. ``on_step`` gets the step and its loss."""
    describe = PromptedForward(model, processor)
    locate = PromptedForward(model, processor, PLACE_QUESTION)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, cfg))
    started = time.monotonic()
    model.train()
    for step, (images, ids, weights) in enumerate(_batches(processor.tokenizer, cfg)):
        forward = locate if asks_places(step, cfg) else describe
        loss = weighted_loss(forward(images, ids), ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, loss.item())
    model.eval()
    return time.monotonic() - started


def _rate(step: int, cfg: TrainConfig) -> float:
    """Linear warm-up, then a cosine to 0, as a share of the learning rate."""
    if step < cfg.warmup:
        return (step + 1) / cfg.warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1))))


def _batches(tokenizer: PreTrainedTokenizerFast, cfg: TrainConfig) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches in index order, drawn ahead by one worker process."""
    return iter(DataLoader(Lessons(tokenizer, cfg), cfg.batch, collate_fn=collate, num_workers=1, prefetch_factor=4))
