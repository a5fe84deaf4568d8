"""Smooth random fields, made once a seed and cut at random afterwards: most of a texture's cost is its noise."""

from functools import lru_cache

import cv2
import numpy as np

BANK_SIZE = 256
SCALES = (2, 4, 8, 16, 32, 64, 128)  # cells across the field: from broad clouds to fine grain
FIELDS = 6  # fields a scale


@lru_cache(maxsize=4)
def _bank(seed: int) -> dict[int, np.ndarray]:
    """Scale -> float32 [FIELDS, 256, 256] with zero mean and unit deviation."""
    rng = np.random.default_rng([seed, 0xB0A2D])
    fields = {}
    for scale in SCALES:
        coarse = rng.standard_normal((FIELDS, scale + 3, scale + 3)).astype(np.float32)
        smooth = np.stack([cv2.resize(c, (BANK_SIZE, BANK_SIZE), interpolation=cv2.INTER_CUBIC) for c in coarse])
        smooth -= smooth.mean((1, 2), keepdims=True)
        fields[scale] = smooth / smooth.std((1, 2), keepdims=True)
    return fields


class Noise:
    """Draws smooth fields for one image.

    Args:
        rng: the image's own generator, so the same image index gives the same image.
        size: side of the image in pixels.
        seed: of the bank, shared by a data set.
    """

    def __init__(self, rng: np.random.Generator, size: int, seed: int):
        self.rng, self.size, self.bank = rng, size, _bank(seed)

    def field(self, scale: int, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
        """A float32 [size, size] field of about zero mean and unit deviation.

        Args:
            scale: one of ``SCALES``, about how many bumps fit across the image.
            stretch: how much longer the bumps are along rows and along columns.
        """
        rng = self.rng
        source = self.bank[scale][rng.integers(FIELDS)]
        height, width = (max(int(BANK_SIZE * rng.uniform(0.75, 0.95) / s), 4) for s in stretch)
        top, left = rng.integers(BANK_SIZE - height + 1), rng.integers(BANK_SIZE - width + 1)
        cut = source[top : top + height, left : left + width]
        if rng.random() < 0.5:
            cut = cut[::-1]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        return cv2.resize(cut, (self.size, self.size), interpolation=cv2.INTER_LINEAR)

    def grain(self) -> np.ndarray:
        """White noise of unit deviation, [size, size] float32."""
        return self.rng.standard_normal((self.size, self.size), dtype=np.float32)
