"""Defects: each draws itself on a clean surface and says where it is.

A defect function takes a `Scene` and returns ``(image, alpha, tone)``: the changed image float32 [H, W, 3], how much
each pixel belongs to the defect (float32 [H, W] in [0, 1]) and the word for its tone ("" where it has none).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from realad_verl.data.procedural.noise import Noise
from realad_verl.data.procedural.surfaces import Surface, coordinates, mixed, step

Drawn = tuple[np.ndarray, np.ndarray, str]
COLORS = {
    "red": (0.75, 0.15, 0.12), "green": (0.2, 0.6, 0.2), "blue": (0.15, 0.25, 0.75), "brown": (0.4, 0.24, 0.1),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Where a defect goes: the surface, its centre (row, column in [0, 1)), and its opacity ``strength`` in (0, 1]."""

    surface: Surface
    noise: Noise
    center: tuple[float, float]
    strength: float

    @property
    def rng(self) -> np.random.Generator:
        return self.noise.rng


def _blob(scene: Scene, radius: float, roughness: float, edge: float) -> np.ndarray:
    """A blob with a wavy outline around the centre; ``radius`` and ``edge`` are fractions of the image side."""
    rows, columns = coordinates(scene.noise.size)
    angle, ratio = scene.rng.uniform(0, np.pi), scene.rng.uniform(0.65, 1.0)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = rows - np.float32(scene.center[0]), columns - np.float32(scene.center[1])
    distance = np.hypot(c * u + s * v, (c * v - s * u) / np.float32(ratio))
    if roughness:
        distance = distance * (1 + np.float32(roughness) * scene.noise.field(16))
    return step(np.float32(radius) - distance, edge)


def _path(scene: Scene, length: float, steps: int, wobble: float) -> np.ndarray:
    """Points [steps + 1, 2] (row, column) of a line through the centre; ``wobble``: radians of turn a step."""
    turns = scene.rng.uniform(0, 2 * np.pi) + np.cumsum(scene.rng.normal(0, wobble, steps))
    moves = np.stack([np.sin(turns), np.cos(turns)], 1) * (length / steps)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
    return points - points[len(points) // 2] + np.array(scene.center)


def _stroke(size: int, paths: list[np.ndarray], width: float) -> np.ndarray:
    """The lines, antialiased, as alpha [size, size]; ``width`` is a fraction of the image side."""
    canvas = np.zeros((size, size), np.uint8)
    shift = 4  # OpenCV's fixed-point bits: sub-pixel ends
    pixels = [np.rint((path[:, ::-1] * size - 0.5) * 2**shift).astype(np.int32) for path in paths]
    cv2.polylines(canvas, pixels, False, 255, max(int(round(width * size)), 1), cv2.LINE_AA, shift)
    return canvas.astype(np.float32) / 255


def _tone(scene: Scene, alpha: np.ndarray) -> tuple[np.ndarray, str]:
    """A dark or bright paint [3], whichever stands out more from what lies under the defect (mostly)."""
    under = float((scene.surface.image.mean(2) * alpha).sum() / max(float(alpha.sum()), 1e-6))
    dark = under > scene.rng.uniform(0.3, 0.6)
    level = scene.rng.uniform(0.02, 0.15) if dark else scene.rng.uniform(0.85, 1.0)
    return np.full(3, level, np.float32), "dark" if dark else "bright"


def _painted(scene: Scene, alpha: np.ndarray, paint: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    return mixed(alpha * np.float32(scene.strength * opacity), paint, scene.surface.image)


def scratch(scene: Scene) -> Drawn:
    rng = scene.rng
    alpha = _stroke(scene.noise.size, [_path(scene, rng.uniform(0.2, 0.55), 12, 0.06)], rng.uniform(0.008, 0.022))
    paint, tone = _tone(scene, alpha)
    return _painted(scene, alpha, paint), alpha, tone


def spot(scene: Scene) -> Drawn:
    alpha = _blob(scene, scene.rng.uniform(0.03, 0.065), 0.0, 0.02)
    name = scene.rng.choice(["", "", *COLORS])
    paint, tone = (np.array(COLORS[name], np.float32), str(name)) if name else _tone(scene, alpha)
    return _painted(scene, alpha, paint), alpha, tone


def hole(scene: Scene) -> Drawn:
    """A round, nearly black opening with a bright rim below."""
    rng = scene.rng
    radius = rng.uniform(0.04, 0.09)
    alpha = _blob(scene, radius, 0.04, 0.015)
    lower = np.roll(alpha, max(int(0.012 * scene.noise.size), 1), axis=0)
    image = mixed(
        (lower - alpha).clip(0, 1) * np.float32(0.5 * scene.strength), np.ones(3, np.float32), scene.surface.image
    )
    dark = np.full(3, rng.uniform(0.0, 0.06), np.float32)
    return mixed(alpha * np.float32(0.4 + 0.6 * scene.strength), dark, image), np.maximum(alpha, lower), ""


def stain(scene: Scene) -> Drawn:
    """A wide soft discolouration: the texture shows through it."""
    alpha = _blob(scene, scene.rng.uniform(0.1, 0.2), 0.18, 0.06)
    name = scene.rng.choice(["", *COLORS])
    paint, tone = (np.array(COLORS[name], np.float32), str(name)) if name else _tone(scene, alpha)
    return _painted(scene, alpha, paint, 0.65), alpha, tone


def crack(scene: Scene) -> Drawn:
    """A jagged dark line with branches."""
    rng = scene.rng
    trunk = _path(scene, rng.uniform(0.25, 0.5), 14, 0.55)
    branches = []
    for start in rng.choice(len(trunk), int(rng.integers(1, 4)), replace=False):
        branch = _path(scene, rng.uniform(0.06, 0.15), 5, 0.5)
        branches.append(branch - branch[0] + trunk[start])
    alpha = _stroke(scene.noise.size, [trunk, *branches], rng.uniform(0.007, 0.016))
    return _painted(scene, alpha, np.full(3, rng.uniform(0, 0.1), np.float32)), alpha, "dark"


def missing_part(scene: Scene) -> Drawn:
    """A piece is gone: what lies beneath the surface shows."""
    alpha = _blob(scene, scene.rng.uniform(0.07, 0.14), 0.1, 0.02)
    beneath = scene.surface.beneath
    return mixed(alpha * np.float32(0.3 + 0.7 * scene.strength), beneath, scene.surface.image), alpha, ""


def dent(scene: Scene) -> Drawn:
    """A shallow dip: bright on one side, dark on the other."""
    rng = scene.rng
    rows, columns = coordinates(scene.noise.size)
    radius, angle = np.float32(rng.uniform(0.06, 0.12)), rng.uniform(0, 2 * np.pi)
    u, v = (rows - np.float32(scene.center[0])) / radius, (columns - np.float32(scene.center[1])) / radius
    bump = np.exp(-(u**2 + v**2))
    shade = np.float32(1.1 * scene.strength) * bump * (np.float32(np.cos(angle)) * u + np.float32(np.sin(angle)) * v)
    return scene.surface.image * (1 + shade)[..., None], step(bump - 0.35, 0.3), ""


def thread(scene: Scene) -> Drawn:
    """A coloured fibre lies on the surface."""
    rng = scene.rng
    alpha = _stroke(scene.noise.size, [_path(scene, rng.uniform(0.3, 0.6), 24, 0.28)], rng.uniform(0.006, 0.014))
    name = str(rng.choice(list(COLORS)))
    return _painted(scene, alpha, np.array(COLORS[name], np.float32)), alpha, name


def smear(scene: Scene) -> Drawn:
    """The texture is wiped: blurred along one direction and slightly brighter."""
    alpha = _blob(scene, scene.rng.uniform(0.09, 0.17), 0.12, 0.05)
    length = max(int(0.2 * scene.noise.size), 3)
    kernel = (length, max(length // 6, 1)) if scene.rng.random() < 0.5 else (max(length // 6, 1), length)
    wiped = cv2.blur(scene.surface.image, kernel) * np.float32(1.04)
    return mixed(alpha * np.float32(0.4 + 0.6 * scene.strength), wiped, scene.surface.image), alpha, ""


def fold(scene: Scene) -> Drawn:
    """A straight crease: a bright line beside a dark one."""
    rng = scene.rng
    path, width = _path(scene, rng.uniform(0.35, 0.7), 4, 0.03), rng.uniform(0.012, 0.025)
    across = path[-1] - path[0]
    offset = np.array([-across[1], across[0]]) / np.linalg.norm(across) * width
    light = _stroke(scene.noise.size, [path], width)
    shadow = _stroke(scene.noise.size, [path + offset], width)
    change = np.float32(0.45 * scene.strength) * (light - shadow)
    return scene.surface.image * (1 + change)[..., None], np.maximum(light, shadow), ""


def shift(scene: Scene) -> Drawn:
    """The pattern inside a patch is displaced; no colour changes, so only the broken regularity tells."""
    alpha = step(_blob(scene, scene.rng.uniform(0.1, 0.17), 0.05, 0.02) - 0.5, 0.5)
    moves = scene.rng.choice([-1, 1], 2) * scene.rng.uniform(0.02, 0.05, 2) * scene.noise.size
    moved = np.roll(scene.surface.image, tuple(np.rint(moves).astype(int)), axis=(0, 1))
    return mixed(alpha, moved, scene.surface.image), alpha, ""


DEFECTS: dict[str, Callable[[Scene], Drawn]] = {
    "scratch": scratch, "spot": spot, "hole": hole, "stain": stain, "crack": crack, "missing part": missing_part,
    "dent": dent, "thread": thread, "smear": smear, "fold": fold, "shift": shift,
}  # fmt: skip
