"""Mistral 3, and LLaVA with Pixtral's vision tower: one grid, any aspect ratio; rows end with a break token.

``image_sizes`` is the resized image in pixels; the break tokens have their own id and are no image cells.
"""

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, expect_tokens
from realad_verl.errors import UserError


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    config = prompt.config
    if config.vision_config.model_type != "pixtral":
        # CLIP's processor crops the middle of the image: no map of the whole image can be made of it.
        raise UserError(
            f"'{config.model_type}' with a '{config.vision_config.model_type}' vision tower sees only the middle "
            "square of an image. Use llava_next, llava_onevision or a Pixtral vision tower."
        )
    height, width = prompt.one_row("image_sizes").tolist()
    cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    grid = (height // cell, width // cell)
    expect_tokens(columns, grid, config.model_type)
    return ImageLayout(columns, grid)


PIXTRAL = Backbone("Pixtral", layout)
