"""Gemma 3, PaliGemma: the image stretched to a square, pooled or not to a square grid of a fixed number of tokens."""

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError, expect_tokens, square


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    config = prompt.config
    if config.model_type == "gemma3":
        expected = config.mm_tokens_per_image
    else:
        expected = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    if len(columns) > expected and len(columns) % expected == 0:
        raise MultipleImagesError(
            f"the prompt holds {len(columns) // expected} images; an anomaly map is of one. Crops made by the "
            "processor count too: set its do_pan_and_scan=False."
        )
    grid = square(expected, config.model_type)
    expect_tokens(columns, grid, config.model_type)
    return ImageLayout(columns, grid)


GEMMA3 = Backbone("Gemma 3", layout, both_ways=True)
PALIGEMMA = Backbone(
    "PaliGemma",
    layout,
    response_type=1,  # 0 is the prompt, whose tokens all see each other
    untrainable="vLLM puts its image tokens in front of the prompt by itself, so that it would sample from another "
    "prompt, and its prompt tokens see each other both ways, which vLLM's CPU attention and packed batches do not",
)
