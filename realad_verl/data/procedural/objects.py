"""Objects on a plain table, without defects: the image's background is not part of the product."""

from collections.abc import Callable

import numpy as np

from realad_verl.data.procedural.noise import Noise
from realad_verl.data.procedural.surfaces import Surface, color, coordinates, mixed, step, tinted


def _polar(noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the object's centre and angle, for an object placed near the middle."""
    rows, columns = coordinates(noise.size)
    u, v = rows - np.float32(0.5 + noise.rng.normal(0, 0.02)), columns - np.float32(0.5 + noise.rng.normal(0, 0.02))
    return np.hypot(u, v), np.arctan2(u, v) + np.float32(noise.rng.uniform(0, 2 * np.pi))


def _colors(noise: Noise, saturation: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Table [H, W, 3] and object colour [3], always well apart."""
    rng = noise.rng
    dark, bright = color(rng, 0.08, 0.3, 0.05), color(rng, 0.55, 0.8, saturation)
    table, part = (dark, bright) if rng.random() < 0.6 else (bright, dark + np.float32(0.12))
    return tinted(noise.field(64) + noise.field(4), table, 0.04), part


def _object(noise: Noise, depth: np.ndarray, table: np.ndarray, face: np.ndarray, holes: np.ndarray | None = None):
    """The face where ``depth`` (distance to the rim, positive inside) says so, the table elsewhere and in the holes."""
    solid = step(depth, 0.012)
    if holes is not None:
        solid = solid * (1 - step(holes, 0.012))
    rim = 1 - np.float32(0.25) * step(0.025 - depth, 0.03)
    return Surface(mixed(solid, face * rim[..., None], table), table, solid > 0.9)


def washer(noise: Noise) -> Surface:
    table, part = _colors(noise, 0.05)
    radius, _ = _polar(noise)
    face = tinted(noise.field(64) + np.sin(radius * noise.rng.uniform(150, 250)), part, 0.05)
    return _object(noise, noise.rng.uniform(0.4, 0.47) - radius, table, face, noise.rng.uniform(0.13, 0.2) - radius)


def button(noise: Noise) -> Surface:
    table, part = _colors(noise, 0.3)
    radius, angle = _polar(noise)
    size, ring = noise.rng.uniform(0.38, 0.46), np.float32(noise.rng.uniform(0.1, 0.14))
    quarter = (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4
    holes = 0.045 - np.hypot(radius * np.cos(quarter) - ring, radius * np.sin(quarter))
    groove = np.exp(-(((radius - size * 0.75) / 0.02) ** 2))
    return _object(noise, size - radius, table, tinted(0.25 * noise.field(64) - 2 * groove, part, 0.1), holes)


def capsule(noise: Noise) -> Surface:
    """Two coloured halves; the seam between them is normal."""
    rng = noise.rng
    table, part = _colors(noise, 0.25)
    rows, columns = coordinates(noise.size)
    u, v = (rows, columns) if rng.random() < 0.5 else (columns, rows)
    u, v = u - np.float32(0.5), v - np.float32(0.5)
    half, width = rng.uniform(0.2, 0.24), rng.uniform(0.2, 0.25)
    distance = np.hypot(np.maximum(np.abs(v) - half, 0), u)
    shade = 1 - (u / width) ** 2 * np.float32(0.5)
    face = mixed(step(v - rng.normal(0, 0.03), 0.01), color(rng, 0.4, 0.85, 0.3), part) * shade[..., None]
    return _object(noise, width - distance, table, face)


def plate(noise: Noise) -> Surface:
    """A square plate with four screw holes in its corners."""
    rng = noise.rng
    table, part = _colors(noise, 0.08)
    rows, columns = coordinates(noise.size)
    u, v = np.abs(rows - np.float32(0.5)), np.abs(columns - np.float32(0.5))
    size, hole = rng.uniform(0.38, 0.45), rng.uniform(0.26, 0.31)
    face = tinted(noise.field(128, (1, 8)), part, 0.05)
    return _object(noise, size - np.maximum(u, v), table, face, rng.uniform(0.03, 0.05) - np.hypot(u - hole, v - hole))


def gear(noise: Noise) -> Surface:
    rng = noise.rng
    table, part = _colors(noise, 0.05)
    radius, angle = _polar(noise)
    teeth = np.float32(0.04) * np.sin(angle * int(rng.integers(10, 18))).clip(-0.6, 0.6)
    depth = rng.uniform(0.38, 0.42) + teeth - radius
    face = tinted(noise.field(64) + noise.field(128), part, 0.04)
    return _object(noise, depth, table, face, rng.uniform(0.08, 0.14) - radius)


def nut(noise: Noise) -> Surface:
    """A hexagonal nut with a bright thread."""
    rng = noise.rng
    table, part = _colors(noise, 0.05)
    radius, angle = _polar(noise)
    sector = angle % (np.pi / 3) - np.pi / 6
    hole = rng.uniform(0.16, 0.22)
    thread = np.exp(-(((radius - hole - 0.02) / 0.012) ** 2))
    face = tinted(noise.field(32) + 3 * thread, part, 0.05)
    return _object(noise, rng.uniform(0.36, 0.42) - radius * np.cos(sector), table, face, hole - radius)


OBJECTS: dict[str, Callable[[Noise], Surface]] = {
    "washer": washer, "button": button, "capsule": capsule, "plate": plate, "gear": gear, "nut": nut,
}  # fmt: skip
