"""What the attention loss moves between trainer and workers: one float vector a sample and field, as in `wire`.

| field            | direction         | floats | content                                                              |
|------------------|-------------------|--------|----------------------------------------------------------------------|
| attention_map    | worker -> trainer | 2 + P  | grid rows, grid columns, M of the response (P = 0: none)             |
| attention_target | trainer -> worker | 4 + P  | grid rows, grid columns, reasoning tokens, label, T (P = 0: no loss) |

At 420 x 420 pixels P = 225: 908 and 916 bytes. 4 KiB hold 1,020 cells.
"""

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from realad_verl.method.attention_loss_config import AttentionLossConfig

MAP, TARGET = "attention_map", "attention_target"
# In the batch of an update: the loss's settings and the method's, as JSON, as `engine.REQUEST_KEY`.
LOSS_KEY = "realad_attention_loss"


@dataclass(frozen=True)
class Target:
    """What one response is taught: T of its image [P], how many reasoning tokens it has, the image's label."""

    values_P: Tensor
    grid: tuple[int, int]
    tokens: int
    label: int


def make_loss_request(cfg: AttentionLossConfig, method: dict) -> str:
    """The value of ``LOSS_KEY`` that turns the loss on in an update."""
    return json.dumps({"attention_loss": asdict(cfg), "method": method}, sort_keys=True)


def pack_map(map_P: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """[2 + P] of one sample."""
    values = torch.zeros(0) if map_P is None else map_P.detach().float().cpu()
    return torch.cat([torch.tensor([float(side) for side in grid]), values])


def unpack_map(vector: Tensor) -> tuple[Tensor | None, tuple[int, int]]:
    """The inverse of :func:`pack_map`."""
    grid = int(vector[0]), int(vector[1])
    return (vector[2:].clone() if vector.numel() > 2 else None), grid


def pack_target(target: Target | None) -> Tensor:
    """[4 + P] of one sample; None teaches nothing."""
    if target is None:
        return torch.zeros(4)
    return torch.cat([torch.tensor([*target.grid, target.tokens, target.label]).float(), target.values_P.float()])


def unpack_target(vector: Tensor) -> Target | None:
    """The inverse of :func:`pack_target`."""
    if vector.numel() <= 4:
        return None
    rows, columns, tokens, label = (int(value) for value in vector[:4].tolist())
    return Target(vector[4:], (rows, columns), tokens, label)
