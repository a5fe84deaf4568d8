"""Gemma 4: patches pooled into soft tokens, any aspect ratio.

The processor's ``image_position_ids`` [1, patches, 2] are (column, row) of every patch, -1 where they are filled up;
``pooling_kernel_size`` x ``pooling_kernel_size`` of them become one token, in row-major order.
"""

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, expect_tokens


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    cols, rows = (prompt.one_row("image_position_ids").amax(0) + 1).tolist()
    pool = prompt.config.vision_config.pooling_kernel_size
    grid = (rows // pool, cols // pool)
    expect_tokens(columns, grid, prompt.config.model_type)
    return ImageLayout(columns, grid)


GEMMA4 = Backbone(
    "Gemma 4", layout, beside=("vision_tower", "embed_vision"), not_run="its training in verl and vLLM was not run"
)
