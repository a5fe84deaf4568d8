"""Attention relative to normal images [ours]: how often more than usual does a token look at a cell?

Every backbone has places that it looks at whatever the image shows: sinks, corners, the place a word is bound to. The
mean row over normal images (image labels only) holds these habits and nothing of a defect; dividing by it takes them
out. The mean is that of the same token ("word") or of all tokens ("normal").

Shape letters: R, T tokens, V words that have a baseline of their own, P image cells (= rows*cols of the grid).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
# A cell that normal images never look at would make any glance infinite: its baseline is at least this share of even.
FLOOR = 0.01


@dataclass(frozen=True)
class Baseline:
    """Mean attention of reasoning tokens to the image, over normal images; every row sums to 1.

    normal_P: of all tokens. words_VP: of the tokens ids_V (ascending), which were seen often enough to have their own.
    """

    grid: Grid
    normal_P: Tensor
    ids_V: Tensor
    words_VP: Tensor

    def __post_init__(self) -> None:
        P, V = self.grid[0] * self.grid[1], len(self.ids_V)
        if tuple(self.normal_P.shape) != (P,) or tuple(self.words_VP.shape) != (V, P):
            shapes = f"normal {tuple(self.normal_P.shape)}, words {tuple(self.words_VP.shape)}, {V} ids"
            raise ValueError(f"shapes do not fit grid {self.grid}: {shapes}; wanted [P], [V, P]")

    def rows(self, token_ids_R: Tensor, kind: Literal["normal", "word"]) -> Tensor:
        """The baseline of each token: [R] -> [R, P]; a word without one of its own gets that of all tokens."""
        if kind == "normal":
            return self.normal_P.expand(len(token_ids_R), -1)
        return baseline_rows(token_ids_R, self.normal_P, self.ids_V, self.words_VP)

    def resized(self, grid: Grid) -> "Baseline":
        """The same baseline for another grid."""
        if tuple(grid) == tuple(self.grid):
            return self
        normal_P = resize_rows(self.normal_P[None], self.grid, grid)[0]
        return Baseline(grid, normal_P, self.ids_V, resize_rows(self.words_VP, self.grid, grid))


def image_share(rows_TP: Tensor) -> Tensor:
    """Each row over its sum, so that it says where and not how much: [..., P] -> [..., P], fp32; zeros stay zeros."""
    rows = rows_TP.float()
    total = rows.sum(dim=-1, keepdim=True)
    return torch.where(total == 0, rows, rows / total)


def baseline_rows(token_ids_R: Tensor, normal_P: Tensor, ids_V: Tensor, words_VP: Tensor) -> Tensor:
    """[R, P]: the row of words_VP whose id (ids_V, ascending) is the token's; ``normal_P`` where there is none."""
    if not len(ids_V):
        return normal_P.expand(len(token_ids_R), -1)
    at_R = torch.searchsorted(ids_V, token_ids_R).clamp(max=len(ids_V) - 1)
    known_R = ids_V[at_R] == token_ids_R
    return torch.where(known_R[:, None], words_VP[at_R], normal_P)


def divide_by_baseline(rows_TP: Tensor, baseline_TP: Tensor) -> Tensor:
    """A_r's share of each cell over the baseline's, both summing to 1 over the image: [..., P], [..., P] -> [..., P].

    1 is "as on normal images". A baseline cell counts at least ``FLOOR`` / P. NaN and inf of a row stay in it; a row of
    zeros stays zeros.
    """
    floor = FLOOR / rows_TP.shape[-1]
    return image_share(rows_TP) / image_share(baseline_TP).clamp(min=floor)


def resize_rows(rows_VP: Tensor, grid: Grid, to: Grid) -> Tensor:
    """Rows on another grid, bilinear with antialiasing, cell centres aligned, sums kept: [V, P] -> [V, P'], fp32."""
    if rows_VP.shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"rows have {rows_VP.shape[-1]} cells, grid {grid} has {grid[0] * grid[1]}")
    image = rows_VP.float().unflatten(-1, grid)[:, None]
    resized = F.interpolate(image, size=tuple(to), mode="bilinear", align_corners=False, antialias=True)
    return image_share(resized.flatten(1)) * rows_VP.float().sum(dim=-1, keepdim=True)


def smooth_maps(maps_P: Tensor, grid: Grid, sigma: float) -> Tensor:
    """Gaussian of ``sigma`` cells, cut at 3 sigma, edges repeated: [..., P] -> [..., P], fp32; 0 changes nothing."""
    if sigma == 0:
        return maps_P
    radius = max(1, round(3 * sigma))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=maps_P.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = maps_P.float().reshape(-1, 1, *grid)
    image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    image = F.conv2d(F.conv2d(image, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return image.reshape(maps_P.shape)


def mean_rows(rows_TP: Tensor, token_ids_T: Tensor, grid: Grid, at_least: int = 1) -> Baseline:
    """The baseline of tokens of normal images: means of ``image_share``; words seen ``at_least`` times get their own.

    Rows that are not finite or all zero are left out. Raises ValueError where none is left.
    """
    good_T = rows_TP.isfinite().all(dim=-1) & (rows_TP.sum(dim=-1) > 0)
    shares, ids = image_share(rows_TP[good_T]).double(), token_ids_T[good_T]
    if not len(ids):
        raise ValueError("no row to make a baseline of")
    ids_V, word_T, count_V = ids.unique(return_inverse=True, return_counts=True)
    sums_VP = shares.new_zeros(len(ids_V), shares.shape[1]).index_add_(0, word_T, shares)
    often = count_V >= at_least
    words_VP = (sums_VP[often] / count_V[often, None]).float()
    return Baseline(grid, shares.mean(dim=0).float(), ids_V[often], words_VP)
