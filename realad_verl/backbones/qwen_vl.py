"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V: one grid of merged patches, any aspect ratio.

The processor's ``image_grid_thw`` [1, 3] counts patches; ``spatial_merge_size`` x ``spatial_merge_size`` of them become
one token. The processor puts the patches of one token side by side in ``pixel_values`` and the tokens in row-major
order, so the tokens need no reordering.
"""

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, expect_tokens
from realad_verl.errors import UserError


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    frames, rows, cols = (int(n) for n in prompt.one_row("image_grid_thw"))
    if frames != 1:
        raise UserError(f"image_grid_thw = {[frames, rows, cols]}: {frames} frames; only still images are supported.")
    merge = prompt.config.vision_config.spatial_merge_size
    grid = (rows // merge, cols // merge)
    expect_tokens(columns, grid, prompt.config.model_type)
    return ImageLayout(columns, grid)


QWEN_VL = Backbone("Qwen-VL", layout, beside=("visual",))
# verl replaces the model's forward by one for transformers 4, and the attention's by one that cannot be read.
GLM4V = Backbone(
    "GLM-4V",
    layout,
    beside=("visual",),
    keep_forward=("Glm4vModel", "Glm4vForConditionalGeneration", "Glm4vTextAttention"),
)
QWEN3_VL_MOE = Backbone(
    "Qwen3-VL MoE",
    layout,
    beside=("visual",),
    not_run="vLLM's CPU build packs experts once and takes no new ones: it needs a GPU",
)
QWEN3_5 = Backbone("Qwen3.5", layout, beside=("visual",), not_run="vLLM's kernel of its linear attention needs a GPU")
GLM4V_MOE = Backbone(
    "GLM-4.5V",
    layout,
    beside=("visual",),
    not_run="vLLM's CPU build packs experts once and takes no new ones: it needs a GPU",
)
