"""Procedural images of surfaces with and without defects, with masks and captions.

Two domains: *source*, on which the tiny backbone is warm-started, and *shifted*, with other surfaces, fainter defects
and some kinds of defect that the source lacks.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from realad_verl.data.procedural.captions import (
    SHIFTED_DEFECTS,
    SHIFTED_SURFACES,
    SOURCE_DEFECTS,
    SOURCE_SURFACES,
    Facts,
    place_name,
    reasoning,
)
from realad_verl.data.procedural.defects import DEFECTS, Scene
from realad_verl.data.procedural.noise import Noise
from realad_verl.data.procedural.objects import OBJECTS
from realad_verl.data.procedural.surfaces import TEXTURES, Surface
from realad_verl.data.procedural.variety import varied
from realad_verl.errors import bad_value

SURFACES = TEXTURES | OBJECTS


@dataclass(frozen=True)
class Domain:
    """What a domain's images show.

    ``strength`` is the range of a defect's opacity; ``visible`` the smallest mean change over the mask (of a colour
    channel in [0, 1]) that still counts as a defect: fainter draws are drawn again. ``vary``: surfaces in a greater
    variety than their own, see `varied`.
    """

    surfaces: tuple[str, ...]
    defects: tuple[str, ...]
    strength: tuple[float, float]
    visible: float
    vary: bool


DOMAINS = {
    "source": Domain(SOURCE_SURFACES, SOURCE_DEFECTS, (0.35, 0.95), 0.05, True),
    "shifted": Domain(SHIFTED_SURFACES, SHIFTED_DEFECTS, (0.3, 0.85), 0.05, False),
}


@dataclass(frozen=True)
class ProceduralSample:
    """One image. ``mask`` is all False and ``defect_type`` and ``place`` are None on a normal image (label 0).

    ``image`` is uint8 [H, W, 3] RGB, ``mask`` bool [H, W]; ``caption`` is one wording of ``facts``, without tags.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    defect_type: str | None
    surface: str
    place: str | None
    caption: str
    facts: Facts


class ProceduralDefects:
    """An endless, seeded sequence of samples: item ``i`` depends on (size, domain, seed, i) only.

    Even items are normal and odd ones anomalous, so any even-length run is balanced.

    Args:
        size: side of the images in pixels, at least 32.
        domain: ``source`` or ``shifted``.
        seed: of the whole sequence; different seeds give different images.
    """

    def __init__(self, size: int = 168, domain: str = "source", seed: int = 0):
        if domain not in DOMAINS:
            raise bad_value("domain", domain, ", ".join(DOMAINS))
        if size < 32:
            raise bad_value("size", size, "an image side of 32 pixels or more")
        self.size, self.name, self.domain, self.seed = size, domain, DOMAINS[domain], seed

    def __getitem__(self, index: int) -> ProceduralSample:
        surface_name, surface, noise = self._clean(index)
        rng = noise.rng
        image, mask, facts = surface.image, np.zeros((self.size, self.size), bool), Facts(surface_name)
        if index % 2:
            image, mask, facts = self._damage(surface, noise, surface_name)
        return ProceduralSample(
            image=_finish(image, rng),
            mask=mask,
            label=index % 2,
            defect_type=facts.defect_type,
            surface=surface_name,
            place=facts.place or None,
            caption=reasoning(facts, rng),
            facts=facts,
        )

    def crowded(self, index: int, defects: int) -> tuple[np.ndarray, str, list[tuple[str, np.ndarray]]]:
        """Another image ``index``, with several defects: uint8 [H, W, 3], its surface, and (kind, mask) of each defect.

        A later defect lies over an earlier one.
        """
        name, surface, noise = self._clean(index)
        found = []
        for _ in range(defects):
            image, mask, facts = self._damage(surface, noise, name)
            surface = replace(surface, image=image)
            found.append((str(facts.defect_type), mask))
        return _finish(surface.image, noise.rng), name, found

    def _clean(self, index: int) -> tuple[str, Surface, Noise]:
        """The surface of image ``index``, its name, and the noise to go on with."""
        if index < 0:
            raise IndexError(f"index {index} is negative; the sequence has no end to count from")
        rng = np.random.default_rng([self.seed, list(DOMAINS).index(self.name), index])
        noise = Noise(rng, self.size, self.seed)
        name = str(rng.choice(self.domain.surfaces))
        surface = SURFACES[name](noise)
        if self.domain.vary:
            other = str(rng.choice([each for each in self.domain.surfaces if each in TEXTURES]))
            surface = varied(surface, TEXTURES[other](noise), noise)
        return name, surface, noise

    def _damage(self, surface: Surface, noise: Noise, name: str) -> tuple[np.ndarray, np.ndarray, Facts]:
        """Draw defects until one is visible; the last attempt is at full strength."""
        rng, domain = noise.rng, self.domain
        best = None
        for _ in range(12):
            kind = str(rng.choice(domain.defects))
            scene = Scene(surface, noise, _place(surface, rng), rng.uniform(*domain.strength))
            image, alpha, tone = DEFECTS[kind](scene)
            mask = (alpha > 0.4) & surface.inside
            if mask.sum() < 4e-4 * mask.size:
                continue
            image = np.where(surface.inside[..., None], image, surface.image)
            change = float(np.abs(image - surface.image)[mask].mean())
            if best is None or change > best[0]:
                best = change, image, mask, kind, tone
            if change >= domain.visible:
                break
        assert best is not None, f"no defect fits on surface {name}"
        _, image, mask, kind, tone = best
        rows, columns = np.nonzero(mask)
        place = place_name(rows.mean() / self.size, columns.mean() / self.size)
        extent = max(np.ptp(rows), np.ptp(columns)) / self.size
        return image, mask, Facts(name, kind, tone, _size_word(kind, extent), place)


def _place(surface: Surface, rng: np.random.Generator) -> tuple[float, float]:
    """A random point on the surface, (row, column) in [0, 1), not at the image's very edge."""
    size = surface.inside.shape[0]
    for _ in range(50):
        row, column = rng.uniform(0.07, 0.93, 2)
        if surface.inside[int(row * size), int(column * size)]:
            break
    return float(row), float(column)


def _size_word(kind: str, extent: float) -> str:
    """The word for a defect's extent, the longer side of its box as a fraction of the image side."""
    if kind in ("scratch", "crack", "thread", "fold"):
        return "long" if extent > 0.3 else ""
    return "small" if extent < 0.14 else "large" if extent > 0.25 else ""


def _finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, sensor noise and 8 bits."""
    size = image.shape[0]
    image = image * np.float32(rng.uniform(0.85, 1.15) * 255)
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1.0, 4.0))
    return cv2.convertScaleAbs((image + grain).clip(0, 255))
