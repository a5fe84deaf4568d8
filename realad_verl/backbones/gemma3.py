"""Gemma 3, Gemma 3n, PaliGemma: the image stretched to a square, and a square grid of a fixed number of tokens."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError, expect_tokens, square

TOKENS: dict[str, Callable[[Any], int]] = {
    "gemma3": lambda config: config.mm_tokens_per_image,
    "gemma3n": lambda config: config.vision_soft_tokens_per_image,
    "paligemma": lambda config: (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
}


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    family = prompt.config.model_type
    expected = TOKENS[family](prompt.config)
    if len(columns) > expected and len(columns) % expected == 0:
        raise MultipleImagesError(
            f"the prompt holds {len(columns) // expected} images; an anomaly map is of one. Crops made by the "
            "processor count too: set its do_pan_and_scan=False."
        )
    grid = square(expected, family)
    expect_tokens(columns, grid, family)
    return ImageLayout(columns, grid)


GEMMA3 = Backbone("Gemma 3", layout, both_ways=True)
GEMMA3N = Backbone(
    "Gemma 3n",
    layout,
    beside=("vision_tower", "embed_vision", "audio_tower", "embed_audio"),
    packages=("timm",),
    not_run="its training in verl and vLLM was not run",
)
PALIGEMMA = Backbone(
    "PaliGemma",
    layout,
    response_type=1,  # 0 is the prompt, whose tokens all see each other
    untrainable="vLLM puts its image tokens in front of the prompt by itself, so that it would sample from another "
    "prompt, and its prompt tokens see each other both ways, which vLLM's CPU attention and packed batches do not",
)
