"""MiniCPM-V 4.6: the whole image, then, of a large one, its slices row by row; each any aspect ratio.

The processor's ``target_sizes`` [1 + slices, 2] counts the patches of each piece in rows and columns; 4 x 4 of them
become one token (2 x 2 in the mode "4x"). How the slices lie is in the prompt alone: those of a row follow each other
directly, ``</slice><slice>``, and a line break stands between rows.
"""

import math

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError, tiled_layout
from realad_verl.errors import UserError

BETWEEN_SLICES = 2  # tokens between the slices of a row: </slice><slice>


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    start_id = prompt.tokenizer.convert_tokens_to_ids(prompt.tokenizer.image_start_token)
    images = int((prompt.input_ids == start_id).sum())
    if images > 1:
        raise MultipleImagesError(f"the prompt holds {images} images; an anomaly map is of one.")
    sizes = prompt.output("target_sizes")
    patches = int(sizes.prod(-1).sum())
    per_token = math.isqrt(patches // len(columns))  # patches along a token's side, by the mode of the processor
    if per_token not in (2, 4) or patches != per_token**2 * len(columns):
        raise UserError(
            f"minicpmv4_6: {len(columns)} image tokens do not fit the {patches} patches of target_sizes, of which 4 or "
            "16 are one token. Was the prompt truncated, or made by another processor?"
        )
    whole = tuple((sizes[0] // per_token).tolist())
    if len(sizes) == 1:
        return ImageLayout(columns, whole)
    tile = tuple((sizes[1] // per_token).tolist())
    first = whole[0] * whole[1]
    down = _slice_rows(columns[first:], tile[0] * tile[1])
    return tiled_layout(columns, (down, (len(sizes) - 1) // down), tile, overview=(*whole, 0))


def _slice_rows(columns: Tensor, per_slice: int) -> int:
    """How many rows the slices form, from what stands between them in the prompt."""
    starts, ends = columns[::per_slice], columns[per_slice - 1 :: per_slice]
    return 1 + int((starts[1:] - ends[:-1] - 1 > BETWEEN_SLICES).sum())


MINICPM = Backbone(
    "MiniCPM-V 4.6",
    layout,
    beside=("vision_tower", "merger"),
    packed=("pixel_values",),
    not_run="vLLM's kernel of its linear attention needs a GPU",
)
