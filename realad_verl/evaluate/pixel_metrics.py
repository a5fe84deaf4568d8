"""Pixel metrics over any number of full-size maps in constant memory.

Scores are counted in a histogram whose bins are float32 numbers cut after 13 mantissa bits: scores keep their order,
no score range has to be known beforehand, and a bin is never wider than 2**-13 of its value. Three counts a bin are all
that AUROC, AUPR, F1-max, accuracy and AUPRO need: normal pixels, anomalous pixels, and anomalous pixels weighted by one
over the size of their defect region. Scores inside one bin are treated as ties, so AUROC is off by at most
``auroc_error_bound`` (half the share of normal-anomalous pairs that share a bin); on scores that are already cut to the
bins (``quantise``) every figure is exact.
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from realad_verl.errors import bad_value

FPR_LIMIT = 0.3  # AUPRO's usual integration limit (Bergmann et al., MVTec AD)
_DROPPED_BITS = 10
_HALF = 1 << (31 - _DROPPED_BITS)
N_BINS = 2 * _HALF
_ZERO_BIN = _HALF  # the bin that begins at 0.0


def score_bins(scores: np.ndarray) -> np.ndarray:
    """Bin number (int32, 0 .. N_BINS - 1) of each finite float score; a larger score never gets a smaller bin."""
    bits = (np.asarray(scores, np.float32) + np.float32(0.0)).view(np.int32)  # + 0.0 turns -0.0 into 0.0
    if bits.size and bits.min() < 0:  # negative floats order backwards as integers
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits >> _DROPPED_BITS) + _HALF


def bin_edges(bins: np.ndarray) -> np.ndarray:
    """Smallest float32 score of each bin."""
    bits = (np.asarray(bins, np.int64) - _HALF) << _DROPPED_BITS
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32)
    return bits.view(np.float32)


def quantise(scores: np.ndarray) -> np.ndarray:
    """Scores cut to the lower edge of their bin, the values that the histogram works with."""
    return bin_edges(score_bins(scores))


@dataclass
class PixelHistogram:
    """Counts by score bin of normal pixels, anomalous pixels, and anomalous pixels weighted by 1 / region size."""

    normal: np.ndarray = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    anomalous: np.ndarray = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    overlap: np.ndarray = field(default_factory=lambda: np.zeros(N_BINS, np.float64))
    n_regions: int = 0

    def add(self, anomaly_map: np.ndarray, gt_mask: np.ndarray) -> float | None:
        """Count one image. ``anomaly_map`` [H, W] finite float, ``gt_mask`` [H, W] bool; ValueError otherwise.

        Returns the AUROC of this image alone, None where it has only one kind of pixel.
        """
        if anomaly_map.shape != gt_mask.shape or anomaly_map.ndim != 2:
            raise ValueError(f"anomaly_map {anomaly_map.shape} and gt_mask {gt_mask.shape} must be one H x W")
        if not np.isfinite(anomaly_map.sum(dtype=np.float64)):
            raise ValueError("anomaly_map holds values that are not finite")
        bins = score_bins(anomaly_map).ravel()
        first = int(bins.min())
        bins = bins - first
        width = int(bins.max()) + 1
        span = slice(first, first + width)
        counts = np.bincount(bins, minlength=width)
        where = np.flatnonzero(gt_mask.ravel())
        if not where.size:
            self.normal[span] += counts
            return None
        count, labels, stats, _ = cv2.connectedComponentsWithStats(gt_mask.astype(np.uint8), connectivity=8)
        hit = bins[where]
        hits = np.bincount(hit, minlength=width)
        counts -= hits
        self.normal[span] += counts
        self.anomalous[span] += hits
        regions = np.asarray(labels, np.int64).ravel()[where]
        share = 1.0 / stats[:, cv2.CC_STAT_AREA][regions]
        self.overlap[span] += np.bincount(hit, weights=share, minlength=width)
        self.n_regions += count - 1
        n_normal = bins.size - where.size
        if not n_normal:
            return None
        below = np.cumsum(counts) - 0.5 * counts  # a tie counts half
        return float(hits @ below / (where.size * n_normal))

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of ``other``, as if its images had been added here."""
        used = other.occupied()  # empty bins are left alone: their memory is never touched
        self.normal[used] += other.normal[used]
        self.anomalous[used] += other.anomalous[used]
        self.overlap[used] += other.overlap[used]
        self.n_regions += other.n_regions

    def occupied(self) -> np.ndarray:
        """Ascending numbers of the bins that hold a pixel."""
        return np.union1d(np.flatnonzero(self.normal), np.flatnonzero(self.anomalous))

    def zeroed(self) -> "PixelHistogram":
        """The histogram that the same images would give had every map been 0 everywhere."""
        flat = PixelHistogram(n_regions=self.n_regions)
        for name in ("normal", "anomalous", "overlap"):
            getattr(flat, name)[_ZERO_BIN] = getattr(self, name).sum()
        return flat

    def curve(self) -> "PixelCurve":
        """Cumulated counts from the highest score down, occupied bins only."""
        used = self.occupied()[::-1]
        return PixelCurve(
            thresholds=bin_edges(used),
            tp=np.cumsum(self.anomalous[used]),
            fp=np.cumsum(self.normal[used]),
            overlap=np.cumsum(self.overlap[used]),
            n_regions=self.n_regions,
        )


@dataclass(frozen=True)
class PixelCurve:
    """At each threshold (descending; predicted anomalous = score >= threshold): pixels hit, false alarms, overlap."""

    thresholds: np.ndarray
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
        tpr, fpr = np.r_[0, self.tp] / self.n_anomalous, np.r_[0, self.fp] / self.n_normal
        return float(np.trapezoid(tpr, fpr))

    def auroc_error_bound(self) -> float:
        """How far ``auroc`` can be from that of the unbinned scores: half of the pairs that share a bin."""
        pos, neg = np.diff(self.tp, prepend=0).astype(float), np.diff(self.fp, prepend=0).astype(float)
        return float(0.5 * (pos @ neg) / (self.n_anomalous * self.n_normal))

    def aupr(self) -> float:
        """Area under precision-recall as average precision: sum of precision x step in recall, not interpolated."""
        steps = np.diff(self.tp, prepend=0) / self.n_anomalous
        return float(steps @ (self.tp / (self.tp + self.fp)))

    def f1_max(self) -> tuple[float, float]:
        """Largest F1 over all thresholds and the threshold that gives it."""
        f1 = 2 * self.tp / (self.tp + self.fp + self.n_anomalous)
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])

    def accuracy(self, threshold: float) -> float:
        """Share of pixels decided rightly at ``score >= threshold`` (the threshold is cut to its bin's lower edge)."""
        at = int(np.count_nonzero(self.thresholds >= quantise(np.array([threshold]))[0])) - 1
        tp, fp = (int(self.tp[at]), int(self.fp[at])) if at >= 0 else (0, 0)
        return (tp + self.n_normal - fp) / (self.n_anomalous + self.n_normal)

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
