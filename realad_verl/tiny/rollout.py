"""Fast batched sampling and scoring with the tiny backbone: every image has the same prompt length and grid.

Used to report on a build and by benchmarks/learning.py. For anything else use `realad_verl.localize` or vLLM.
Letters: B images, n samples an image, S = B * n sequences (the n of an image side by side), R response tokens, V words.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from realad_verl.attention.readout import AttentionReadout
from realad_verl.evidence import EvidenceBuilder, EvidencePlan
from realad_verl.method.config import MethodConfig
from realad_verl.tiny.arch import GRID
from realad_verl.tiny.lessons import prompt_ids, to_patches


class TinyRollout:
    """The tiny model behind its fixed prompt. Images are uint8 [B, 168, 168, 3] tensors."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor):
        self.model, self.tokenizer, self.processor = model, processor.tokenizer, processor
        self.prompt = torch.tensor(prompt_ids(processor))
        self.grid = torch.tensor([[1, GRID, GRID]])
        row: Any = self.prompt[None]
        self.kinds = (row == model.config.image_token_id).long()
        of_prompt: Any = {"mm_token_type_ids": self.kinds, "image_grid_thw": self.grid}
        self.positions, _ = model.model.get_rope_index(row, attention_mask=torch.ones_like(row), **of_prompt)
        self.next_position = int(self.positions.max()) + 1

    def _batch(self, images: Tensor, tokens: Tensor) -> dict[str, Any]:
        """Model inputs for prompt + response ids [B, L]; right padding needs no mask, nothing looks back on it."""
        size, extra = len(images), tokens.shape[1] - len(self.prompt)
        after = (self.next_position + torch.arange(extra)).expand(3, 1, -1)
        return {
            "input_ids": tokens,
            "pixel_values": to_patches(images, self.processor),
            "image_grid_thw": self.grid.expand(size, -1),
            "mm_token_type_ids": torch.nn.functional.pad(self.kinds, (0, extra)).expand(size, -1),
            "position_ids": torch.cat([self.positions, after], -1).expand(-1, size, -1),
        }

    @torch.no_grad()
    def sample(
        self, images: Tensor, n: int = 1, temperature: float = 1.0, max_tokens: int = 40, seed: int | None = None
    ) -> list[list[int]]:
        """``n`` responses an image (S lists of ids, the end token included); ``temperature`` 0 takes the likeliest."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        text_config: Any = self.model.config.text_config
        cache = DynamicCache(config=text_config)
        prompt = self.prompt.expand(len(images), -1)
        hidden = self.model.model(**self._batch(images, prompt), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(n)
        logits = self.model.lm_head(hidden.last_hidden_state[:, -1]).repeat_interleave(n, 0)
        ids, running = [], torch.ones(len(logits), dtype=torch.bool)
        for step in range(max_tokens):
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            ids.append(torch.where(running, token, self.tokenizer.pad_token_id))
            running &= token != self.tokenizer.eos_token_id
            if not running.any() or step + 1 == max_tokens:
                break
            embedded: Any = self.model.model.language_model.embed_tokens(token)[:, None]
            position: Any = torch.full((3, len(token), 1), self.next_position + step)
            output = self.model.model.language_model(
                inputs_embeds=embedded, position_ids=position, past_key_values=cache, use_cache=True
            )
            logits = self.model.lm_head(output.last_hidden_state[:, -1])
        return [self._cut(row) for row in torch.stack(ids, 1).tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def logits(self, images: Tensor, responses: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Logits [S, R, V] that predict the responses, and their ids [S, R], padded with -100. One image a response."""
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(r) for r in responses], batch_first=True, padding_value=-100
        )
        tokens = torch.cat([self.prompt.expand(len(ids), -1), ids.clamp(min=0)], 1)
        hidden = self.model.model(**self._batch(images, tokens), use_cache=False).last_hidden_state
        return self.model.lm_head(hidden[:, len(self.prompt) - 1 : -1]), ids

    @torch.no_grad()
    def read(
        self, images: Tensor, responses: Sequence[Sequence[int]], cfg: MethodConfig
    ) -> tuple[list[EvidencePlan], list[Tensor], Tensor, Tensor]:
        """One forward with the read-out on: plans and rows for `EvidenceBuilder.reduce`, logits and ids as `logits`."""
        builder = EvidenceBuilder(self.model.config, self.tokenizer, cfg)
        outputs = {"image_grid_thw": self.grid}
        plans = [
            builder.plan(torch.cat([self.prompt, torch.tensor(r)]), len(self.prompt), outputs, batch_row=row)
            for row, r in enumerate(responses)
        ]
        readout = AttentionReadout(self.model, cfg.readout.layers, heads=cfg.readout.heads)
        with readout.reading([plan.request for plan in plans if plan.request is not None]) as reading:
            logits, ids = self.logits(images, responses)
        return plans, reading.rows(), logits, ids
