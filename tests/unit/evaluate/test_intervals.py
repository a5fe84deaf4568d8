"""Intervals against scikit-learn's weighted figures, images that are really repeated; and their coverage."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from realad_verl.evaluate.intervals import (
    MACRO,
    ImageCounts,
    PixelCounts,
    difference,
    intervals,
    mean_of,
    on_images,
    over_categories,
)
from realad_verl.evaluate.pixel_metrics import PixelHistogram, pixel_summary, score_keys

DROPPED = 17


def images(n: int, seed: int, shift: float = 1.0) -> ImageCounts:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    score = norm.cdf(rng.normal(size=n) + shift * label).round(2)  # with ties
    return ImageCounts(label, score, (score > 0.6).astype(int), threshold=0.5)


def test_weighted_figures_are_scikit_learns():
    counts, rng = images(60, 0), np.random.default_rng(1)
    weights = rng.integers(0, 4, (3, 60)).astype(float)
    found = counts.figures()(weights)
    for b, w in enumerate(weights):
        assert found["image_auroc"][b] == pytest.approx(roc_auc_score(counts.label, counts.score, sample_weight=w))
        ap = average_precision_score(counts.label, counts.score, sample_weight=w)
        assert found["image_ap"][b] == pytest.approx(ap)
        right = (counts.score >= 0.5) == counts.label
        assert found["image_acc_at_threshold"][b] == pytest.approx(np.average(right, weights=w))
        assert found["image_acc"][b] == pytest.approx(np.average(counts.answer == counts.label, weights=w))


def maps_and_masks(n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(n):
        mask = np.zeros((16, 16), bool)
        if i % 2:
            mask[2:6, 3 : 5 + i % 5], mask[9:12, 9:14] = True, True
        pairs.append(((rng.random((16, 16)) + 0.4 * mask).astype(np.float32), mask))
    return pairs


def pixel_counts(pairs, threshold: float) -> PixelCounts:
    """One histogram an image, laid out on common bins."""
    single = [PixelHistogram(dropped=DROPPED) for _ in pairs]
    for histogram, (anomaly_map, mask) in zip(single, pairs, strict=True):
        histogram.add(anomaly_map, mask)
    keys = np.unique(np.concatenate([h.keys for h in single]))[::-1]
    counts = np.zeros((3, len(pairs), len(keys)))
    for i, histogram in enumerate(single):
        counts[:, i, np.searchsorted(-keys, -histogram.keys)] = histogram.counts
    bins = int((keys >= score_keys(np.array([threshold]), DROPPED)[0]).sum())
    return PixelCounts(counts, np.array([h.n_regions for h in single]), bins)


def test_a_weight_is_that_many_copies_of_the_image():
    pairs, weights = maps_and_masks(8, 2), np.array([2, 1, 0, 3, 1, 1, 2, 0])
    found = pixel_counts(pairs, 0.9).figures()(weights[None].astype(float))
    repeated = PixelHistogram(dropped=DROPPED)
    for (anomaly_map, mask), count in zip(pairs, weights, strict=True):
        for _ in range(count):
            repeated.add(anomaly_map, mask)
    wanted = pixel_summary(repeated, threshold=0.9)
    assert set(found) == {"pixel_auroc", "pixel_aupr", "pixel_aupro", "pixel_f1_max", "pixel_acc"}
    for name, values in found.items():
        assert values[0] == pytest.approx(wanted[name], abs=1e-12), name


def test_the_interval_of_a_mean_is_scipys():
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).exponential(size=80)
    found = intervals(mean_of(values, "m"), np.zeros(80), seed=5)["m"]
    plain = bootstrap((values,), np.mean, n_resamples=1000, rng=np.random.default_rng(5)).confidence_interval
    assert found == pytest.approx((plain.low, plain.high))


def test_a_gain_on_the_same_images_shows_only_in_the_paired_interval():
    first = images(120, 4)
    better = ImageCounts(first.label, first.score + 0.04 * first.label, first.answer, 0.5)
    apart = [intervals(c.figures(), first.label)["image_auroc"] for c in (first, better)]
    assert apart[0].high > apart[1].low, "alone, the two overlap"
    paired = intervals(difference(better.figures(), first.figures()), first.label)
    assert not paired["image_auroc"].holds(0.0)
    assert paired["image_acc"] is None, "the same answers: no resample differs"
    same = intervals(difference(first.figures(), first.figures()), first.label)
    assert same["image_auroc"] is None


def test_macro_mean_is_taken_over_the_categories_of_each_resample():
    a, b = images(40, 6), images(40, 7)
    normal_only = ImageCounts(np.zeros(10, int), np.linspace(0, 1, 10), np.zeros(10, int))
    parts = {
        "a": on_images(np.arange(40), a.figures()),
        "b": on_images(np.arange(40, 80), b.figures()),
        "normal only": on_images(np.arange(80, 90), normal_only.figures()),
    }
    figures = over_categories(parts, list(parts))
    wanted = np.mean([c.figures()(np.ones((1, 40)))["image_auroc"][0] for c in (a, b)])
    assert figures(np.ones((1, 90)))[MACRO, "image_auroc"][0] == pytest.approx(wanted)
    strata = np.r_[a.label, 2 + b.label, np.full(10, 4)]
    found = intervals(figures, strata)
    macro, single = found[MACRO, "image_auroc"], found["a", "image_auroc"]
    assert macro.holds(float(wanted))
    assert macro.high - macro.low < single.high - single.low, "a mean of two is surer than one of them"
    assert found["normal only", "image_auroc"] is None


def test_an_image_alone_in_its_stratum_is_in_every_resample():
    label, score = np.array([1, 0, 0, 0, 0]), np.array([0.5, 0.1, 0.6, 0.2, 0.7])
    found = intervals(ImageCounts(label, score, label).figures(), label)
    assert 0 <= found["image_auroc"].low < found["image_auroc"].high <= 1
    alone = intervals(ImageCounts(label[:2], score[:2], label[:2]).figures(), label[:2])
    assert set(alone.values()) == {None}


def test_the_same_seed_gives_the_same_interval():
    figures, label = images(50, 8).figures(), np.arange(50) % 2
    assert intervals(figures, label, seed=1) == intervals(figures, label, seed=1)
    assert intervals(figures, label, seed=1) != intervals(figures, label, seed=2)


DRAWS = 400


@pytest.mark.slow
def test_image_intervals_cover_in_95_percent_of_draws():
    """Binormal scores, of which AUROC and accuracy are known."""
    auroc, accuracy, hits = norm.cdf(1 / np.sqrt(2)), norm.cdf(0.5), np.zeros(2)
    for draw in range(DRAWS):
        rng, label = np.random.default_rng([9, draw]), np.arange(160) % 2
        score = rng.normal(size=160) + label
        figures = ImageCounts(label, score, (score > 0.5).astype(int)).figures()
        found = intervals(figures, label, seed=draw)
        hits += [found["image_auroc"].holds(auroc), found["image_acc"].holds(accuracy)]
    assert all(0.93 <= share <= 0.97 for share in hits / DRAWS), hits / DRAWS


@pytest.mark.slow
def test_pixel_intervals_cover_in_95_percent_of_draws():
    """Images that are hard or easy as a whole: an interval over pixels would be far too short."""
    edges = np.linspace(4, -3, 60)

    def draw(rng, n):
        quality = rng.normal(0.8, 0.6, n)
        counts = np.zeros((3, n, len(edges)))
        for kind, mean in ((0, np.zeros(n)), (1, quality)):
            below = norm.cdf(edges[None] - mean[:, None])
            shares = -np.diff(np.c_[np.ones(n), below], axis=1)
            counts[kind] = (900, 100)[kind] * shares / shares.sum(1, keepdims=True)
        counts[2] = counts[1] / 100
        return PixelCounts(counts, np.ones(n)).figures()

    ones = np.ones((1, 40_000))
    truth = {k: v[0] for k, v in draw(np.random.default_rng(10), 40_000)(ones).items()}
    hits = np.zeros(3)
    for k in range(DRAWS):
        found = intervals(draw(np.random.default_rng([11, k]), 120), np.zeros(120), seed=k)
        hits += [found[name].holds(truth[name]) for name in ("pixel_auroc", "pixel_aupr", "pixel_aupro")]
    assert all(0.93 <= share <= 0.97 for share in hits / DRAWS), hits / DRAWS
