"""ReAL, step 6: the anomaly map as a weighted mean of the kept tokens' attention to the image.

Shape letters: R reasoning tokens, P image cells (= rows*cols of the grid, row-major), H and W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def map_shares(weights_R: Tensor, kept_R: Tensor) -> Tensor:
    """w_r / sum_r w_r over the kept tokens, 0 for the others: [..., R] -> [..., R].

    Weights that sum to 0 (all scores equal) give equal shares. Where no token is kept, all are 0.
    """
    weights = torch.where(kept_R, weights_R, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    shares = torch.where(total > 0, weights / total, kept_R / kept_R.sum(dim=-1, keepdim=True))
    return torch.where(kept_R, shares, 0.0)


def weighted_map(rows_RP: Tensor, shares_R: Tensor) -> Tensor:
    """A_RDAM = sum_r share_r A_{r,I}: [R, P], [R] -> [P], fp32; the plain mean for equal shares."""
    return shares_R.float() @ rows_RP.float()


def resize_map(map_P: Tensor, grid: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """The map at image size, bilinear, cell centres aligned (no corner alignment): [P] -> [H, W], fp32.

    The values stay within the map's range; they are attention, not probabilities of a defect.
    """
    rows, cols = grid
    if map_P.numel() != rows * cols:
        raise ValueError(f"map has {map_P.numel()} cells, grid {grid} has {rows * cols}")
    image = map_P.float().reshape(1, 1, rows, cols)
    return F.interpolate(image, size=tuple(size_hw), mode="bilinear", align_corners=False)[0, 0]


def normalize_map(map_P: Tensor) -> Tensor:
    """For display: the map stretched to [0, 1]; a constant map becomes zeros. Same shape."""
    low, high = map_P.float().aminmax()
    return (map_P.float() - low) / (high - low) if high > low else torch.zeros_like(map_P, dtype=torch.float32)
