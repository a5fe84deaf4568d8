"""Flat textures without defects. Objects are in `objects`; the two domains' surfaces are listed in `dataset`.

Every function takes a `Noise` and returns a `Surface`. Lengths are fractions of the image side, so any size works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from realad_verl.data.procedural.noise import Noise


@dataclass(frozen=True)
class Surface:
    """A clean surface.

    Attributes:
        image: float32 [H, W, 3] in about [0, 1].
        beneath: float32 [H, W, 3], what shows where a part is missing.
        inside: bool [H, W], where a defect may lie; True everywhere on a texture.
    """

    image: np.ndarray
    beneath: np.ndarray
    inside: np.ndarray


@lru_cache(maxsize=8)
def coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel centre, float32 [size, size] in (0, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def rotated(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along two axes turned by ``angle`` radians."""
    rows, columns = coordinates(size)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * rows + s * columns, c * columns - s * rows


def color(rng: np.random.Generator, low: float = 0.25, high: float = 0.8, saturation: float = 0.25) -> np.ndarray:
    """A random RGB colour, float32 [3], around a gray between ``low`` and ``high``."""
    return (rng.uniform(low, high) + rng.uniform(-saturation, saturation, 3)).clip(0.05, 0.95).astype(np.float32)


def tinted(tone: np.ndarray, base: np.ndarray, contrast: float) -> np.ndarray:
    """``base`` colour modulated by ``tone`` [H, W] (zero mean, unit deviation)."""
    return base * (1 + np.float32(contrast) * tone)[..., None]


def mixed(weight: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``other`` where the weight [H, W] is 0, ``one`` where it is 1."""
    return other + weight[..., None] * (one - other)


def step(values: np.ndarray, width: float) -> np.ndarray:
    """A soft 0-to-1 step at 0, ``width`` wide."""
    return ((values / np.float32(width)) + np.float32(0.5)).clip(0, 1)


def _texture(noise: Noise, image: np.ndarray, base: np.ndarray) -> Surface:
    """A texture; beneath it lies its own colour, darkened, without the pattern."""
    beneath = tinted(noise.field(16), base * np.float32(noise.rng.uniform(0.45, 0.7)), 0.04)
    return Surface(image, beneath, np.ones(image.shape[:2], bool))


def wood(noise: Noise) -> Surface:
    rng = noise.rng
    base = (np.array([0.62, 0.43, 0.27], np.float32) * rng.uniform(0.7, 1.35)).astype(np.float32)
    u, _ = rotated(noise.size, rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.08))
    rings = np.sin(2 * np.pi * (u * rng.uniform(5, 12) + 0.5 * noise.field(4)))
    grain = noise.field(64, (1, 6)) if rng.random() < 0.5 else noise.field(64, (6, 1))
    return _texture(noise, tinted(0.6 * rings + 0.5 * grain, base, rng.uniform(0.06, 0.14)), base)


def fabric(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng)
    u, v = rotated(noise.size, rng.uniform(0, np.pi / 2))
    threads = 2 * np.pi * rng.uniform(16, 30)
    weave = np.sin(threads * u) * np.sin(threads * v) + 0.3 * noise.field(64)
    return _texture(noise, tinted(weave, base, rng.uniform(0.12, 0.3)), base)


def metal(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng, 0.45, 0.75, 0.05)
    along = (1, 12) if rng.random() < 0.5 else (12, 1)
    shine = noise.field(128, along) + noise.field(32, along) + 0.6 * noise.field(2)
    return _texture(noise, tinted(shine, base, rng.uniform(0.03, 0.08)), base)


def leather(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng, 0.25, 0.6)
    wrinkles = np.abs(noise.field(32)) + 0.6 * np.abs(noise.field(16))
    return _texture(noise, tinted(0.8 - wrinkles, base, rng.uniform(-0.22, -0.1)), base)


def tile(noise: Noise) -> Surface:
    """Square tiles, each of its own brightness, between grout lines: edges everywhere, none of them a defect."""
    rng, base, grout = noise.rng, color(noise.rng, 0.4, 0.8), color(noise.rng, 0.2, 0.8, 0.05)
    rows, columns = coordinates(noise.size)
    count, shift = rng.uniform(3, 6), rng.uniform(0, 1, 2)
    u, v = rows * count + shift[0], columns * count + shift[1]
    brightness = rng.uniform(0.85, 1.15, (8, 8)).astype(np.float32)[u.astype(int), v.astype(int)]
    line = np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)) - 0.5 + rng.uniform(0.04, 0.08)
    face = tinted(noise.field(64), base, 0.04) * brightness[..., None]
    return _texture(noise, mixed(step(line, 0.05), grout, face), base)


def mesh(noise: Noise) -> Surface:
    """A grid of bars over a far tone: the regular contrast hides anything faint from |image - blur|."""
    rng, bars, gap = noise.rng, color(noise.rng, 0.55, 0.85, 0.15), color(noise.rng, 0.1, 0.35, 0.1)
    u, v = rotated(noise.size, rng.choice([0, np.pi / 4]) + rng.normal(0, 0.05))
    count, thickness = rng.uniform(9, 15), rng.uniform(0.18, 0.3)
    reach = np.maximum(np.abs((u * count) % 1 - 0.5), np.abs((v * count) % 1 - 0.5)) - 0.5 + thickness
    image = mixed(step(reach, 0.12), tinted(noise.field(32), bars, 0.05), np.broadcast_to(gap, (*reach.shape, 3)))
    return _texture(noise, image, gap)


def plastic(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng, 0.3, 0.8, 0.3)
    return _texture(noise, tinted(noise.field(2) + 0.25 * noise.field(128), base, rng.uniform(0.02, 0.08)), base)


def concrete(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng, 0.4, 0.7, 0.05)
    speckle = noise.field(128) + noise.field(32) + noise.field(8)
    return _texture(noise, tinted(speckle, base, rng.uniform(0.04, 0.09)), base)


def brick(noise: Noise) -> Surface:
    rng = noise.rng
    base = (np.array([0.6, 0.34, 0.26], np.float32) * rng.uniform(0.75, 1.3)).astype(np.float32)
    rows, columns = coordinates(noise.size)
    count, shift = rng.uniform(5, 8), rng.uniform(0, 1, 2)
    u = rows * count + shift[0]
    v = columns * count / 2 + shift[1] + 0.5 * (u.astype(int) % 2)
    brightness = rng.uniform(0.8, 1.15, (16, 16)).astype(np.float32)[u.astype(int), v.astype(int)]
    line = np.maximum(np.abs(u % 1 - 0.5) - 0.5 + 0.08, (np.abs(v % 1 - 0.5) - 0.5) * 2 + 0.08)
    face = tinted(noise.field(128) + noise.field(32), base, 0.06) * brightness[..., None]
    return _texture(noise, mixed(step(line, 0.08), color(rng, 0.55, 0.8, 0.04), face), base)


def marble(noise: Noise) -> Surface:
    rng, base, vein = noise.rng, color(noise.rng, 0.55, 0.85, 0.08), color(noise.rng, 0.25, 0.6, 0.08)
    u, _ = rotated(noise.size, rng.uniform(0, np.pi))
    veins = 1 - np.abs(np.sin(np.pi * (u * rng.uniform(1.5, 3.5) + 0.35 * noise.field(4) + 0.15 * noise.field(16))))
    return _texture(noise, mixed(veins**4 * rng.uniform(0.3, 0.6), vein, tinted(noise.field(8), base, 0.05)), base)


def perforated_sheet(noise: Noise) -> Surface:
    """A metal sheet with round holes in a regular lattice: a hole is normal here, a missing one is not."""
    rng, sheet, hole = noise.rng, color(noise.rng, 0.5, 0.8, 0.06), color(noise.rng, 0.05, 0.25, 0.04)
    u, v = rotated(noise.size, rng.choice([0, np.pi / 4]))
    count = rng.uniform(8, 13)
    radius = np.hypot((u * count) % 1 - 0.5, (v * count) % 1 - 0.5)
    face = tinted(noise.field(64, (1, 8)), sheet, 0.05)
    return _texture(noise, mixed(step(rng.uniform(0.22, 0.33) - radius, 0.12), hole, face), sheet)


def carpet(noise: Noise) -> Surface:
    rng, base, other = noise.rng, color(noise.rng), color(noise.rng)
    u, v = rotated(noise.size, rng.uniform(0, np.pi))
    stripes = step(np.sin(2 * np.pi * (u * rng.uniform(3, 7) + 0.08 * np.sin(40 * v))), 0.6)
    return _texture(noise, tinted(noise.grain() + noise.field(128), mixed(stripes, base, other), 0.1), base)


def circuit_board(noise: Noise) -> Surface:
    """Traces and pads on a board, laid out anew for every image."""
    rng, board, copper = noise.rng, color(noise.rng, 0.2, 0.45, 0.15), color(noise.rng, 0.6, 0.85, 0.12)
    rows, columns = coordinates(noise.size)
    cells = int(rng.integers(6, 10))
    u, v = rows * cells, columns * cells
    i, j = u.astype(int).clip(0, cells - 1), v.astype(int).clip(0, cells - 1)
    across, down, pads = (rng.random((cells, cells))[i, j] < share for share in (0.55, 0.3, 0.4))
    traces = np.where(across, 0.1 - np.abs(u % 1 - 0.5), -1), np.where(down, 0.1 - np.abs(v % 1 - 0.5), -1)
    pad = np.where(pads, 0.28 - np.hypot(u % 1 - 0.5, v % 1 - 0.5), -1)
    face = tinted(noise.field(64), board, 0.05)
    return _texture(noise, mixed(step(np.maximum.reduce([*traces, pad]), 0.06).astype(np.float32), copper, face), board)


def knit(noise: Noise) -> Surface:
    rng, base = noise.rng, color(noise.rng)
    u, v = rotated(noise.size, rng.choice([0, np.pi / 2]))
    count = rng.uniform(9, 14)
    zigzag = u * count + 0.5 * np.abs((v * count) % 1 - 0.5) * 2
    loops = np.sin(2 * np.pi * zigzag) + 0.5 * np.cos(2 * np.pi * v * count) + 0.3 * noise.field(64)
    return _texture(noise, tinted(loops, base, rng.uniform(0.12, 0.25)), base)


TEXTURES: dict[str, Callable[[Noise], Surface]] = {
    "wood": wood, "fabric": fabric, "metal": metal, "leather": leather, "tile": tile, "mesh": mesh, "plastic": plastic,
    "concrete": concrete, "brick": brick, "marble": marble, "perforated sheet": perforated_sheet, "carpet": carpet,
    "circuit board": circuit_board, "knit": knit,
}  # fmt: skip
