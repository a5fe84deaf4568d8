"""Where a prompt's image tokens are, and how attention to them becomes one map of the whole image.

Shapes: R response tokens, N image tokens used, H x W the grid, P = H*W cells in row-major order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realad_verl.errors import UserError


class MultipleImagesError(UserError):
    """The prompt holds more than one image; an anomaly map is of one."""


@dataclass(frozen=True)
class ImageLayout:
    """The image tokens of one prompt.

    ``columns`` [N]: positions in the unpadded sequence. ``grid``: (rows, cols) of the map. ``cells`` [P]: which of the
    N columns is cell p (row-major); None where the columns already are the cells in order. ``overview``: (rows, cols,
    first) of a second, coarser view of the same whole image (a thumbnail or base tile), at
    ``columns[first : first + rows * cols]``; None where there is no such view.
    """

    columns: Tensor
    grid: tuple[int, int]
    cells: Tensor | None = None
    overview: tuple[int, int, int] | None = None

    def project(self, rows_RN: Tensor) -> Tensor:
        """Attention to the N image tokens as attention to the P cells: [R, N] -> [R, P].

        Each tile token is one cell. The overview's mass is shared among the cells that it covers, by area, and added
        (our choice): the sum over the map stays the attention paid to the image tokens.
        """
        map_RP = rows_RN if self.cells is None else rows_RN[:, self.cells.to(rows_RN.device)]
        if self.overview is None:
            return map_RP
        rows, cols, first = self.overview
        overview_Rhw = rows_RN[:, first : first + rows * cols].unflatten(1, (rows, cols))
        down_hH = _share(rows, self.grid[0]).to(rows_RN)
        across_wW = _share(cols, self.grid[1]).to(rows_RN)
        return map_RP + torch.einsum("rhw,hH,wW->rHW", overview_Rhw, down_hH, across_wW).flatten(1)


def _share(source: int, target: int) -> Tensor:
    """[source, target]: the share of each of ``source`` equal intervals that lies in each of ``target`` ones."""
    edges_s = torch.arange(source + 1, dtype=torch.float64) / source
    edges_t = torch.arange(target + 1, dtype=torch.float64) / target
    ends = torch.minimum(edges_s[1:, None], edges_t[None, 1:])
    starts = torch.maximum(edges_s[:-1, None], edges_t[None, :-1])
    return (ends - starts).clamp(min=0) * source


def tiled_layout(
    columns: Tensor, tiles: tuple[int, int], tile_grid: tuple[int, int], overview: tuple[int, int, int] | None = None
) -> ImageLayout:
    """The layout of ``tiles`` (rows, cols) row-major tiles of ``tile_grid`` tokens each, and an overview.

    ``columns``: all of them in sequence order. ``overview``: as in ``ImageLayout``; where it comes first, tiles begin
    behind it. None: one more tile, behind the others.
    """
    (down, across), (h, w) = tiles, tile_grid
    count = down * across * h * w
    rows, cols, first = overview or (h, w, count)
    begin = 0 if first else rows * cols
    order = torch.arange(begin, begin + count).view(down, across, h, w)
    cells = order.permute(0, 2, 1, 3).reshape(-1)  # tile row, row in tile, tile col, col in tile
    return ImageLayout(columns, (down * h, across * w), cells, overview=(rows, cols, first))


def square(n_tokens: int, what: str) -> tuple[int, int]:
    """(side, side) of a square grid of ``n_tokens``."""
    side = round(n_tokens**0.5)
    if side * side != n_tokens:
        raise UserError(f"{what}: {n_tokens} image tokens are no square grid.")
    return side, side


def expect_tokens(columns: Tensor, grid: Sequence[int], what: str) -> None:
    """Raises where the prompt's image tokens are not as many as the grid's cells."""
    expected = grid[0] * grid[1]
    if len(columns) != expected:
        raise UserError(
            f"{what}: the prompt holds {len(columns)} image tokens, the processor's outputs say {grid[0]} x {grid[1]} "
            f"= {expected}. Was the prompt truncated, or made by another processor?"
        )
