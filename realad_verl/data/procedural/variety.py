"""Variety of appearance: one kind of surface in many colours, contrasts, sizes and directions."""

import cv2
import numpy as np

from realad_verl.data.procedural.noise import Noise
from realad_verl.data.procedural.surfaces import Surface, mixed


def varied(surface: Surface, texture: Surface, noise: Noise) -> Surface:
    """Another look for ``surface``, so that a defect is not told by colours or a texture seen before.

    ``texture`` shines through; the two are turned or mirrored, zoomed in on unless the surface is an object, and get
    other colours, brightness and contrast; mostly the light on them is uneven.
    """
    rng = noise.rng
    inside = surface.inside.astype(np.float32)
    images = [mixed(inside * np.float32(rng.uniform(0.15, 0.6)), texture.image, surface.image), surface.beneath, inside]
    if surface.inside.all():
        images[:2] = _zoomed(images[:2], rng)
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    image, beneath, inside = (_turned(each, turns, mirrored) for each in images)
    image, beneath = _recolored(image, beneath, rng)
    return Surface(_lit(image, noise) if rng.random() < 0.7 else image, beneath, inside > 0.5)


def _lit(image: np.ndarray, noise: Noise) -> np.ndarray:
    """The image under a light that varies smoothly, by 5 to 30 % at most."""
    field = noise.field(int(noise.rng.choice([2, 4])))
    field -= field.mean()
    change = field * np.float32(noise.rng.uniform(0.05, 0.3) / np.abs(field).max())
    return (image * (1 + change)[..., None]).clip(0, 1)


def _turned(image: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))


def _zoomed(images: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The same random cut of each, at least half as wide as the image, brought to its size."""
    size = images[0].shape[0]
    side = int(size * rng.uniform(0.55, 1.0))
    top, left = rng.integers(size - side + 1, size=2)
    return [
        cv2.resize(each[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_LINEAR)
        for each in images
    ]


def _recolored(image: np.ndarray, beneath: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Channels swapped, sometimes a negative, then another brightness and contrast; alike for both images."""
    order, mean = rng.permutation(3), np.float32(image.mean())
    contrast = np.float32(rng.uniform(0.7, 1.3) * (-1 if rng.random() < 0.3 else 1))
    brightness = np.float32(rng.uniform(0.3, 0.7))
    recolored = (((each - mean) * contrast + brightness).clip(0.02, 0.98) for each in (image, beneath))
    first, second = (each[..., order] for each in recolored)
    return first, second
