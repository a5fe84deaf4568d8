"""How sure a figure is: 95 % intervals by a bootstrap of the images, stratified by category and class (scipy's BCa).

An image is drawn with its pixels, since pixels of one image are no independent witnesses. No map is read again for a
resample: an image's part in every figure is a row of counts by score bin, so a resample is a product of how often each
image was drawn with those rows. Two runs on the same images are compared by *paired* intervals: each resample draws the
images once and takes the figures of both, so what makes an image hard for both falls out of the difference.

Letters: n images, b resamples, B score bins.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import bootstrap

from realad_verl.evaluate import ranking

RESAMPLES = 1000
LEVEL = 0.95
# [b, n] of draws that are held at once.
BATCH_CELLS = 1 << 22
# Parts of a set of images that are no category.
MACRO, POOLED = "macro mean", "pooled"
# Weights [b, n] of the images -> figures by name, each [b]. A name is a text, or a part and a text.
Figures = Callable[[np.ndarray], dict[Any, np.ndarray]]


class Interval(NamedTuple):
    """Ends of an interval, in the figure's own unit."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class ImageCounts:
    """What the image figures of one set of images are made of.

    ``label`` [n] 0 | 1, ``score`` [n], ``answer`` [n] 0 | 1 | -1 (none); ``threshold`` of ``image_acc_at_threshold``,
    None where it has none.
    """

    label: np.ndarray
    score: np.ndarray
    answer: np.ndarray
    threshold: float | None = None

    def figures(self) -> Figures:
        """The figures of any weights of these images; the same numbers as ``metrics.image_summary`` at weight 1."""
        levels, place = np.unique(-self.score, return_inverse=True)
        at = np.arange(len(place)), place
        kinds = [
            sparse.csr_array(((self.label == kind).astype(float), at), shape=(len(place), len(levels)))
            for kind in (0, 1)
        ]
        right = (self.answer == self.label).astype(float)
        bins = None if self.threshold is None else int((levels <= -self.threshold).sum())

        def of(weights_bn: np.ndarray) -> dict[str, np.ndarray]:
            fp, tp = (np.cumsum(weights_bn @ kind, axis=-1) for kind in kinds)
            found = _ranking(tp, fp, "image", ap="image_ap")
            found["image_acc"] = weights_bn @ right / weights_bn.sum(-1)
            if bins is not None:
                found["image_acc_at_threshold"] = ranking.accuracy(tp, fp, bins)
            return found

        return of


@dataclass(frozen=True)
class PixelCounts:
    """What the pixel figures of one set of images are made of.

    ``counts`` [3, n, B]: normal pixels, anomalous pixels, anomalous pixels each over its region's size, by score bin
    from the highest down; ``regions`` [n]; ``bins``: how many bins lie at or above the threshold of ``pixel_acc``.
    """

    counts: np.ndarray
    regions: np.ndarray
    bins: int | None = None
    fpr_limit: float = 0.3

    def figures(self) -> Figures:
        """The figures of any weights of these images."""

        def of(weights_bn: np.ndarray) -> dict[str, np.ndarray]:
            weights = weights_bn.astype(self.counts.dtype)
            fp, tp, overlap = (np.cumsum((weights @ kind).astype(float), axis=-1) for kind in self.counts)
            found = _ranking(tp, fp, "pixel", ap="pixel_aupr")
            regions = (weights_bn @ self.regions)[:, None]
            pro = overlap / np.where(regions > 0, regions, np.nan)
            found["pixel_aupro"] = ranking.partial_area(fp / fp[..., -1:], pro, self.fpr_limit)
            if self.bins is not None:
                found["pixel_acc"] = ranking.accuracy(tp, fp, self.bins)
            return found

        return of


def mean_of(values: np.ndarray, name: str) -> Figures:
    """The weighted mean of ``values`` [n] as the figure ``name``; NaN are images without one (a J, say)."""
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)

    def of(weights_bn: np.ndarray) -> dict[str, np.ndarray]:
        total = weights_bn @ there.astype(float)
        return {name: weights_bn @ filled / np.where(total > 0, total, np.nan)}

    return of


def together(parts: Sequence[Figures]) -> Figures:
    """All figures of ``parts`` in one."""
    return lambda weights_bn: {name: v for part in parts for name, v in part(weights_bn).items()}


def on_images(places: np.ndarray, figures: Figures) -> Figures:
    """``figures`` of the images at ``places`` alone, by weights of all n."""
    return lambda weights_bn: figures(weights_bn[:, places])


def over_categories(parts: Mapping[str, Figures], categories: Sequence[str]) -> Figures:
    """Every part's figures as ``(part, name)``, and as ``(MACRO, name)`` the mean over those of ``categories`` in which
    the figure exists."""

    def of(weights_bn: np.ndarray) -> dict[Any, np.ndarray]:
        found = {part: figures(weights_bn) for part, figures in parts.items()}
        table = {(part, name): values for part, figures in found.items() for name, values in figures.items()}
        names = dict.fromkeys(name for part in categories for name in found[part])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a figure that no category has
            for name in names:
                table[MACRO, name] = np.nanmean([found[c][name] for c in categories if name in found[c]], axis=0)
        return table

    return of


def difference(second: Figures, first: Figures) -> Figures:
    """Figures of ``second`` less those of ``first``, both on the same images."""

    def of(weights_bn: np.ndarray) -> dict[str, np.ndarray]:
        b, a = second(weights_bn), first(weights_bn)
        return {name: b[name] - a[name] for name in b if name in a}

    return of


def intervals(
    figures: Figures, strata: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[Any, Interval | None]:
    """An interval a figure, by name.

    Args:
        strata: [n] which images are drawn among themselves (category and class); one alone in its stratum is in every
            resample once.
        seed: the same seed gives the same intervals, bit by bit.

    Returns:
        None for a figure that does not exist, or that is the same in every resample: then these images cannot say.
    """
    n = len(strata)
    _, stratum, size = np.unique(strata, return_inverse=True, return_counts=True)
    alone = (size[stratum] == 1).astype(float)
    groups = [np.flatnonzero(stratum == k) for k in np.flatnonzero(size > 1)]
    names = list(figures(np.ones((1, n))))
    if not groups:
        return dict.fromkeys(names)

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        leading = np.broadcast_shapes(*(d.shape[:-1] for d in drawn))
        places = np.concatenate([np.broadcast_to(d, (*leading, d.shape[-1])) for d in drawn], axis=-1)
        places = places.reshape(-1, places.shape[-1])
        weights_bn = alone + _counted(places, n)
        return np.stack([values.reshape(leading) for values in figures(weights_bn).values()])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # figures without spread: NaN below, None to the caller
        found: Any = bootstrap(
            groups,
            statistic,
            n_resamples=resamples,
            batch=max(1, BATCH_CELLS // n),
            vectorized=True,
            axis=-1,
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    ends = zip(names, np.ravel(found.low), np.ravel(found.high), strict=True)
    return {
        name: Interval(float(low), float(high)) if np.isfinite([low, high]).all() else None for name, low, high in ends
    }


def _counted(places_bm: np.ndarray, n: int) -> np.ndarray:
    """[b, n] how often each image is among the ``places`` of each resample."""
    b = len(places_bm)
    flat = places_bm + n * np.arange(b)[:, None]
    return np.bincount(flat.ravel(), minlength=b * n).reshape(b, n).astype(float)


def _ranking(tp: np.ndarray, fp: np.ndarray, level: str, ap: str) -> dict[str, np.ndarray]:
    return {
        f"{level}_auroc": ranking.auroc(tp, fp),
        ap: ranking.average_precision(tp, fp),
        f"{level}_f1_max": ranking.f1(tp, fp).max(-1),
    }
