"""ReAL, step 6: the anomaly map as a weighted mean of the kept tokens' attention to the image.

Shape letters: R reasoning tokens, P image cells (= rows*cols of the grid, row-major), H and W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_map(rows_RP: Tensor, weights_R: Tensor, kept_R: Tensor) -> Tensor:
    """A_RDAM = sum_r w_r A_{r,I} / sum_r w_r over the kept tokens: [R, P] -> [P], fp32.

    Weights that sum to 0 (all scores equal) make it the plain mean of the kept tokens. At least one must be kept.
    """
    if not bool(kept_R.any()):
        raise ValueError("no token is kept: there is nothing to average")
    rows, weights = rows_RP[kept_R].float(), weights_R[kept_R].float()
    total = weights.sum()
    if total <= 0:
        return rows.mean(dim=0)
    return (weights / total) @ rows


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
