"""LLaVA-NeXT, LLaVA-OneVision: a base view of the whole image, then its any-resolution grid with newline tokens.

The image is fitted into the best of the ``image_grid_pinpoints`` with its aspect ratio kept; the model cuts the padding
away again, so the grid that is left is the whole image (to half a cell along
the padded side). OneVision scales the grid down where it has more cells than
``anyres_max_N`` tiles. Each row ends with a newline token, which is no image cell.
"""

import math

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout
from realad_verl.errors import UserError


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    size = prompt.one_row("image_sizes").tolist()
    vision = prompt.config.vision_config
    side = vision.image_size // vision.patch_size
    rows, cols = _grid(size, side, prompt.config)
    base = side * side
    if len(columns) != base + rows * (cols + 1):
        raise UserError(
            f"{prompt.config.model_type}: {len(columns)} image tokens, but an image of {size[0]} x {size[1]} gives "
            f"{base} + {rows} x ({cols} + 1). Was the prompt truncated, or made by another processor?"
        )
    grid_columns = columns[base:].view(rows, cols + 1)[:, :-1].flatten()
    cells = torch.arange(base, base + rows * cols)
    return ImageLayout(torch.cat([columns[:base], grid_columns]), (rows, cols), cells, overview=(side, side, 0))


def _grid(size: list[int], side: int, config) -> tuple[int, int]:
    """(rows, cols) of the any-resolution grid after unpadding and scaling; ``size``: (height, width) in pixels."""
    height, width = size
    best_height, best_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows = best_height // config.vision_config.image_size * side
    cols = best_width // config.vision_config.image_size * side
    if width / height > cols / rows:
        rows -= (rows - int(round(height * (cols / width), 7))) // 2 * 2
    else:
        cols -= (cols - int(round(width * (rows / height), 7))) // 2 * 2
    if config.model_type == "llava_onevision":
        max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (max_tiles * side**2))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
    return rows, cols


LLAVA_NEXT = Backbone("LLaVA-NeXT", layout)
