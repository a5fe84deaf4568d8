"""InternVL: square tiles of the stretched image, row-major, then a thumbnail of the whole; one run of tokens.

The processor keeps only how many tiles there are, not how they lie: 4 tiles are 2 x 2, 1 x 4 or 4 x 1. The pixels tell:
put together the right way, the tiles show what the thumbnail shows. Where they tell nothing (a blank image) the
arrangement nearest to a square is taken.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError, square, tiled_layout
from realad_verl.errors import UserError

CELLS_PER_TILE = 8  # the comparison's resolution; a dozen tiles in a row are then 96 cells of a 448-pixel thumbnail
TIE = 1e-6  # mean squared difference of normalised pixels that is rounding only


def layout(columns: Tensor, prompt: Prompt) -> ImageLayout:
    per_tile = prompt.config.image_seq_length
    tile_grid = square(per_tile, "internvl")
    if int(columns[-1] - columns[0]) + 1 != len(columns):
        raise MultipleImagesError("the prompt holds several runs of image tokens; an anomaly map is of one image.")
    pixels = prompt.output("pixel_values")
    if len(pixels) * per_tile != len(columns):
        raise UserError(
            f"internvl: {len(columns)} image tokens do not fit {len(pixels)} tiles of {per_tile}. "
            "Was the prompt truncated?"
        )
    if len(pixels) == 1:
        return ImageLayout(columns, tile_grid)
    return tiled_layout(columns, arrangement(pixels[:-1], pixels[-1]), tile_grid)


def arrangement(tiles_NCHW: Tensor, thumbnail_CHW: Tensor) -> tuple[int, int]:
    """(rows, cols) in which the tiles look most like the thumbnail."""
    n = len(tiles_NCHW)
    k = CELLS_PER_TILE
    small = adaptive_avg_pool2d(tiles_NCHW.float(), k)
    candidates = sorted(
        ((n // cols, cols) for cols in range(1, n + 1) if n % cols == 0), key=lambda rc: abs(rc[0] - rc[1])
    )
    errors = []
    for rows, cols in candidates:
        mosaic = small.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4).reshape(-1, rows * k, cols * k)
        whole = adaptive_avg_pool2d(thumbnail_CHW.float(), (rows * k, cols * k))
        errors.append((mosaic - whole).square().mean())
    best = torch.stack(errors).min()
    return next(shape for shape, error in zip(candidates, errors, strict=True) if error <= best + TIE)


INTERNVL = Backbone("InternVL", layout)
