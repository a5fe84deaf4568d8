"""Pixel metrics over any number of full-size maps in bounded memory.

Scores are counted in a sparse histogram. Its bins are at first the float32 numbers themselves, so figures are exact;
each time that more than ``MAX_BINS`` of them are occupied, bins are cut by one more mantissa bit; an image of more
pixels than that starts with as many bits cut as they could fill (``start_bits``), and is counted without sorting.
Scores keep their order, no score range has to be known beforehand, and what is counted in which order makes no
difference. Three counts a bin are all that AUROC, AUPR, F1-max, accuracy and AUPRO need: normal pixels, anomalous
pixels, and anomalous pixels weighted by one over the size of their defect region. Scores inside one bin are treated as
ties, so AUROC is off by at most ``auroc_error_bound`` (half the share of normal-anomalous pairs that share a bin; of
real ties too).
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from realad_verl.errors import bad_value
from realad_verl.evaluate import ranking

FPR_LIMIT = 0.3  # AUPRO's usual integration limit (Bergmann et al., MVTec AD)
MAX_BINS = 1 << 20  # 28 bytes each
# Rows of the counts: normal pixels; anomalous pixels and their share of their region; all three.
_NORMAL, _ANOMALOUS, _ALL = slice(0, 1), slice(1, 3), slice(0, 3)


def score_keys(scores: np.ndarray, dropped: int = 0) -> np.ndarray:
    """Bin number (int32) of each finite float32 score, ``dropped`` mantissa bits cut; a larger score never gets a
    smaller number."""
    bits = (np.asarray(scores, np.float32) + np.float32(0.0)).view(np.int32)  # + 0.0 turns -0.0 into 0.0
    if bits.size and bits.min() < 0:  # negative floats order backwards as integers
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits >> dropped


def bin_edges(keys: np.ndarray, dropped: int = 0) -> np.ndarray:
    """Smallest float32 score of each bin."""
    bits = np.asarray(keys, np.int64) << dropped
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32)
    return bits.view(np.float32)


def quantise(scores: np.ndarray, dropped: int) -> np.ndarray:
    """Scores cut to the lower edge of their bin."""
    return bin_edges(score_keys(scores, dropped), dropped)


def start_bits(pixels: int) -> int:
    """Mantissa bits to cut from the start for an image of so many pixels, which may all differ: 0 up to MAX_BINS."""
    return max(0, (pixels - 1) // MAX_BINS).bit_length()


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct keys, ascending, how often each occurs): np.unique, without sorting where the keys lie close."""
    if keys.size and int(keys.max()) - (low := int(keys.min())) <= 2 * keys.size:
        # torch's lets the other threads run meanwhile; numpy's holds the interpreter lock.
        counts = torch.bincount(torch.from_numpy(keys - low)).numpy()
        bins = np.flatnonzero(counts)
        return (bins + low).astype(keys.dtype), counts[bins]
    # By sorting, which counts ask for: numpy's hash table for the values alone takes ten times as long.
    return np.unique(keys, return_counts=True)


@dataclass
class PixelHistogram:
    """Counts by score bin.

    ``keys`` [B] ascending numbers of the occupied bins, ``counts`` [3, B] normal pixels, anomalous pixels, anomalous
    pixels weighted by 1 / region size; ``dropped`` mantissa bits are cut so that B <= ``max_bins``.
    """

    max_bins: int = MAX_BINS
    dropped: int = 0
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((3, 0)))
    n_regions: int = 0

    def add(self, anomaly_map: np.ndarray, gt_mask: np.ndarray) -> float | None:
        """Count one image. ``anomaly_map`` [H, W] finite float, ``gt_mask`` [H, W] bool; ValueError otherwise.

        Returns the AUROC of this image alone, None where it has only one kind of pixel.
        """
        if anomaly_map.shape != gt_mask.shape or anomaly_map.ndim != 2:
            raise ValueError(f"anomaly_map {anomaly_map.shape} and gt_mask {gt_mask.shape} must be one H x W")
        if not np.isfinite(anomaly_map.sum(dtype=np.float64)):
            raise ValueError("anomaly_map holds values that are not finite")
        dropped, hit = self.dropped, np.asarray(gt_mask, bool)
        keys = score_keys(anomaly_map, dropped)
        normal, n_normal = distinct(keys[~hit])
        self._absorb(normal, n_normal, _NORMAL, dropped)
        if not hit.any():
            return None
        anomalous, n_anomalous = distinct(keys[hit])
        place = np.searchsorted(anomalous, keys[hit])
        count, labels, stats, _ = cv2.connectedComponentsWithStats(hit.astype(np.uint8), connectivity=8)
        share = 1.0 / stats[:, cv2.CC_STAT_AREA][np.asarray(labels, np.int64)[hit]]
        self._absorb(anomalous, [n_anomalous, np.bincount(place, share)], _ANOMALOUS, dropped)
        self.n_regions += count - 1
        if not normal.size:
            return None
        below = np.r_[0, np.cumsum(n_normal)]
        ends = [below[np.searchsorted(normal, anomalous, side)] for side in ("left", "right")]
        return float(n_anomalous @ (ends[0] + ends[1]) / (2 * below[-1] * n_anomalous.sum()))  # a tie counts half

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of ``other``, as if its images had been added here."""
        self._coarsen(other.dropped)
        self._absorb(other.keys, other.counts, _ALL, other.dropped)
        self.n_regions += other.n_regions

    def _absorb(self, keys: np.ndarray, counts: Any, rows: slice, dropped: int) -> None:
        """Add ``counts`` [.., K] of the distinct bins ``keys`` [K], which are cut by ``dropped`` bits, to ``rows``."""
        keys, counts = _cut(keys, np.atleast_2d(counts), self.dropped - dropped)
        if not self.keys.size:
            self.keys, self.counts = keys, np.zeros((3, keys.size))
        at = np.searchsorted(self.keys, keys)
        if not (at < self.keys.size).all() or not np.array_equal(self.keys[at], keys):
            merged, _ = distinct(np.concatenate([self.keys, keys]))
            grown = np.zeros((3, merged.size))
            grown[:, np.searchsorted(merged, self.keys)] = self.counts
            self.keys, self.counts, at = merged, grown, np.searchsorted(merged, keys)
        self.counts[rows, at] += counts
        while self.keys.size > self.max_bins:
            self._coarsen(self.dropped + 1)

    def _coarsen(self, dropped: int) -> None:
        """Cut the bins to ``dropped`` mantissa bits, if they are not yet."""
        if dropped > self.dropped:
            self.keys, self.counts = _cut(self.keys, self.counts, dropped - self.dropped)
            self.dropped = dropped

    def zeroed(self) -> "PixelHistogram":
        """The histogram that the same images would give had every map been 0 everywhere."""
        flat = PixelHistogram(self.max_bins, self.dropped, n_regions=self.n_regions)
        if self.keys.size:
            flat._absorb(np.zeros(1, np.int32), self.counts.sum(1, keepdims=True), _ALL, self.dropped)
        return flat

    def curve(self) -> "PixelCurve":
        """Cumulated counts from the highest score down, occupied bins only."""
        normal, anomalous, overlap = np.cumsum(self.counts[:, ::-1], 1)
        return PixelCurve(
            thresholds=bin_edges(self.keys[::-1], self.dropped),
            dropped=self.dropped,
            tp=anomalous.astype(np.int64),
            fp=normal.astype(np.int64),
            overlap=overlap,
            n_regions=self.n_regions,
        )


def _cut(keys: np.ndarray, counts: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Bins with ``bits`` more mantissa bits cut, their counts added up."""
    if not bits or not keys.size:
        return keys, counts
    keys = keys >> bits
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[starts], np.add.reduceat(counts, starts, axis=1)


@dataclass(frozen=True)
class PixelCurve:
    """At each threshold (descending; predicted anomalous = score >= threshold): pixels hit, false alarms, overlap."""

    thresholds: np.ndarray
    dropped: int
    tp: np.ndarray
    fp: np.ndarray
    overlap: np.ndarray
    n_regions: int

    @property
    def n_anomalous(self) -> int:
        return int(self.tp[-1]) if self.tp.size else 0

    @property
    def n_normal(self) -> int:
        return int(self.fp[-1]) if self.fp.size else 0

    @property
    def defined(self) -> bool:
        """Both kinds of pixel are there; otherwise no ranking metric exists."""
        return self.n_anomalous > 0 and self.n_normal > 0

    def auroc(self) -> float:
        """Area under the ROC curve, trapezoidal."""
        return float(ranking.auroc(self.tp, self.fp))

    def auroc_error_bound(self) -> float:
        """How far ``auroc`` can be from that of the unbinned scores: half of the pairs that share a bin."""
        pos, neg = np.diff(self.tp, prepend=0).astype(float), np.diff(self.fp, prepend=0).astype(float)
        return float(0.5 * (pos @ neg) / (self.n_anomalous * self.n_normal))

    def aupr(self) -> float:
        """Area under precision-recall as average precision: sum of precision x step in recall, not interpolated."""
        return float(ranking.average_precision(self.tp, self.fp))

    def f1_max(self) -> tuple[float, float]:
        """Largest F1 over all thresholds and the threshold that gives it."""
        f1 = ranking.f1(self.tp, self.fp)
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])

    def accuracy(self, threshold: float) -> float:
        """Share of pixels decided rightly at ``score >= threshold`` (the threshold is cut to its bin's lower edge)."""
        bins = int(np.count_nonzero(self.thresholds >= quantise(np.array([threshold]), self.dropped)[0]))
        return float(ranking.accuracy(self.tp, self.fp, bins))

    def aupro(self, fpr_limit: float = FPR_LIMIT) -> float:
        """Area under the per-region-overlap curve up to ``fpr_limit``, divided by it; never above 1.

        Regions are the masks' 8-connected components; the false positive rate is over all normal pixels; the curve is
        cut at the limit by linear interpolation (Bergmann et al., MVTec AD).
        """
        x, y = self._pro_curve(fpr_limit)
        return float(np.trapezoid(y, x) / fpr_limit)

    def _pro_curve(self, fpr_limit: float) -> tuple[np.ndarray, np.ndarray]:
        """False positive rate and mean region overlap, from (0, 0) to exactly ``fpr_limit``."""
        if not 0 < fpr_limit <= 1:
            raise bad_value("fpr_limit", fpr_limit, "0 < fpr_limit <= 1")
        fpr, pro = np.r_[0, self.fp] / self.n_normal, np.r_[0, self.overlap] / self.n_regions
        inside = int(np.searchsorted(fpr, fpr_limit, side="right"))
        x, y = fpr[:inside], pro[:inside]
        if x[-1] < fpr_limit:  # then a point beyond the limit exists, since the curve ends at 1
            share = (fpr_limit - x[-1]) / (fpr[inside] - x[-1])
            x, y = np.r_[x, fpr_limit], np.r_[y, y[-1] + share * (pro[inside] - y[-1])]
        return x, y

    def points(self, fpr_limit: float = FPR_LIMIT, n: int = 200) -> dict[str, list[list[float]]]:
        """ROC, PR and PRO curves thinned to about ``n`` points each, as lists of [x, y], for figures."""
        tpr, fpr = np.r_[0, self.tp] / self.n_anomalous, np.r_[0, self.fp] / self.n_normal
        precision = self.tp / (self.tp + self.fp)
        return {
            "roc": thin(fpr, tpr, n),
            "pr": thin(self.tp / self.n_anomalous, precision, n),
            "pro": thin(*self._pro_curve(fpr_limit), n),
        }


def thin(x: np.ndarray, y: np.ndarray, n: int) -> list[list[float]]:
    """At most about ``n`` of the points of a curve, evenly spread along its length; both ends are kept."""
    if len(x) > n:
        along = np.cumsum(np.hypot(np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])))
        keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], n)).clip(max=len(x) - 1))
        keep = np.unique(np.r_[0, keep, len(x) - 1])
        x, y = x[keep], y[keep]
    return [[round(float(a), 5), round(float(b), 5)] for a, b in zip(x, y, strict=True)]


def pixel_summary(
    histogram: PixelHistogram, *, threshold: float | None = None, fpr_limit: float = FPR_LIMIT
) -> dict[str, Any]:
    """Every pixel figure of ``histogram``. ``threshold`` is where accuracy is taken; None takes the oracle's F1-max.

    A figure is None where it does not exist (no anomalous or no normal pixel).
    """
    curve = histogram.curve()
    names = ("pixel_auroc", "pixel_aupr", "pixel_aupro", "pixel_f1_max", "pixel_f1_max_threshold", "pixel_acc")
    summary: dict[str, Any] = dict.fromkeys((*names, "pixel_auroc_error_bound"))
    summary["pixel_acc_threshold"] = threshold
    summary |= {"n_regions": histogram.n_regions, "n_anomalous_pixels": curve.n_anomalous}
    summary["n_normal_pixels"] = curve.n_normal
    if curve.defined:
        f1, best = curve.f1_max()
        threshold = best if threshold is None else threshold
        summary |= {
            "pixel_auroc": curve.auroc(),
            "pixel_auroc_error_bound": curve.auroc_error_bound(),
            "pixel_aupr": curve.aupr(),
            "pixel_aupro": curve.aupro(fpr_limit),
            "pixel_f1_max": f1,
            "pixel_f1_max_threshold": best,
            "pixel_acc_threshold": threshold,
        }
    if threshold is not None and curve.thresholds.size:
        summary["pixel_acc"] = curve.accuracy(threshold)
    return summary
