"""SmolVLM, Idefics3: square tiles of the stretched image, row-major, then the whole image once more.

Each tile's tokens follow a marker in the prompt, ``<row_2_col_3>`` or ``<global-img>``, so the prompt itself tells how
the tiles lie. A small image, or a processor with ``do_image_splitting=False``, has the global view alone.
"""

import re

from torch import Tensor

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError, square, tiled_layout
from realad_verl.errors import UserError

MARKER = re.compile(r"<row_(\d+)_col_(\d+)>|<global-img>")
WHOLE = (0, 0)  # <global-img>
MARKER_TOKENS = 24  # a marker spelled out in characters fits


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    vision, name = prompt.config.vision_config, prompt.config.model_type
    side = vision.image_size // vision.patch_size // prompt.config.scale_factor
    tile_grid = square(side * side, name)
    if len(columns) % (side * side):
        raise UserError(
            f"{name}: {len(columns)} image tokens are no whole tiles of {side * side}. Was the prompt truncated?"
        )
    starts = columns[:: side * side].tolist()
    markers = [_marker(prompt, start, name) for start in starts]
    if markers.count(WHOLE) > 1:
        raise MultipleImagesError(f"the prompt holds {markers.count(WHOLE)} images; an anomaly map is of one.")
    if markers == [WHOLE]:
        return ImageLayout(columns, tile_grid)
    down, across = markers[-2] if len(markers) > 1 else WHOLE
    expected = [(row, col) for row in range(1, down + 1) for col in range(1, across + 1)]
    if markers != [*expected, WHOLE]:
        raise UserError(f"{name}: image tiles are not in row-major order with the whole image last: {markers}.")
    return tiled_layout(columns, (down, across), tile_grid)


def _marker(prompt: Prompt, start: int, name: str) -> tuple[int, int]:
    """The last marker before the tile that begins at ``start``: (row, col), from 1, or WHOLE."""
    before = prompt.input_ids[max(0, start - MARKER_TOKENS) : start].tolist()
    matches = list(MARKER.finditer(prompt.tokenizer.decode(before, skip_special_tokens=False)))
    if not matches:
        raise UserError(f"{name}: no <row_R_col_C> or <global-img> before the image tokens at position {start}.")
    row, col = matches[-1].groups()
    return WHOLE if row is None else (int(row), int(col))


IDEFICS = Backbone("Idefics3", layout, beside=("vision_model", "connector"))
SMOLVLM = Backbone("SmolVLM", layout, beside=("vision_model", "connector"), packages=("num2words",))
