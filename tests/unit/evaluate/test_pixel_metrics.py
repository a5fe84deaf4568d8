"""Pixel metrics against scikit-learn and adeval (MVTec's reference code), and the known failures of others."""

import cv2
import numpy as np
import pytest
from adeval.au_pro import calculate_au_pro
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_curve, roc_auc_score

from realad_verl.errors import UserError
from realad_verl.evaluate.pixel_metrics import (
    MAX_BINS,
    PixelHistogram,
    bin_edges,
    distinct,
    pixel_summary,
    quantise,
    score_keys,
    thin,
)


def make_maps(n=6, size=(96, 128), seed=0, strength=0.6):
    """Smooth random maps, higher inside the masks; the last image is normal."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(n):
        mask = np.zeros(size, np.uint8)
        if i < n - 1:
            for _ in range(3):
                y, x = rng.integers(10, size[0] - 10), rng.integers(10, size[1] - 10)
                cv2.ellipse(
                    mask, (int(x), int(y)), (int(rng.integers(2, 12)), 4), float(rng.integers(180)), 0, 360, 1, -1
                )
        noise = cv2.resize(rng.random((12, 16)).astype(np.float32), size[::-1])
        maps.append((noise + strength * cv2.GaussianBlur(mask.astype(np.float32), (9, 9), 3)).astype(np.float32) * 1e-3)
        masks.append(mask.astype(bool))
    return maps, masks


def fill(maps, masks, max_bins=MAX_BINS):
    histogram = PixelHistogram(max_bins)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        histogram.add(anomaly_map, mask)
    return histogram


def flat(maps, masks):
    return np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=50),
    st.integers(0, 22),
)
def test_bins_keep_order_and_cut_downwards(values, dropped):
    scores = np.sort(np.array(values, np.float32))
    keys = score_keys(scores, dropped)
    assert (keys[1:] >= keys[:-1]).all()
    edges = bin_edges(keys, dropped)
    assert (edges <= scores).all() and (dropped or np.array_equal(edges, scores))
    assert (score_keys(edges, dropped) == keys).all()
    normal = np.abs(scores) > 1e-30
    assert (np.abs(scores - edges)[normal] <= np.abs(scores[normal]) * 2.0 ** (dropped - 22)).all()


def test_zero_and_minus_zero_share_a_bin():
    assert score_keys(np.array([0.0, -0.0])).tolist() == [0, 0]


def check_against_sklearn(got, maps, masks, tolerance):
    y, s = flat(maps, masks)
    precision, recall, thresholds = precision_recall_curve(y, s)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert got["pixel_auroc"] == pytest.approx(roc_auc_score(y, s), abs=tolerance)
    assert got["pixel_aupr"] == pytest.approx(average_precision_score(y, s), abs=tolerance)
    assert got["pixel_f1_max"] == pytest.approx(f1.max(), abs=tolerance)
    assert got["pixel_f1_max_threshold"] == thresholds[f1[:-1].argmax()]
    assert got["pixel_acc"] == pytest.approx(accuracy_score(y, s >= got["pixel_acc_threshold"]), abs=tolerance)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_sklearn(seed):
    maps, masks = make_maps(seed=seed)
    check_against_sklearn(pixel_summary(fill(maps, masks)), maps, masks, 1e-12)


@pytest.mark.parametrize("max_bins", [1_000, 5_000, 40_000])
def test_past_the_limit_scores_are_cut_and_the_rest_stays_exact(max_bins):
    maps, masks = make_maps(seed=1)
    histogram = fill(maps, masks, max_bins)
    assert histogram.dropped and histogram.keys.size <= max_bins
    assert fill(maps[::-1], masks[::-1], max_bins).dropped == histogram.dropped  # whatever the order
    cut = [quantise(m, histogram.dropped) for m in maps]
    got = pixel_summary(histogram)
    check_against_sklearn(got, cut, masks, 1e-12)
    y, s = flat(maps, masks)
    assert abs(got["pixel_auroc"] - roc_auc_score(y, s)) <= got["pixel_auroc_error_bound"]
    assert got["pixel_aupr"] == pytest.approx(average_precision_score(y, s), abs=0.1 / max_bins**0.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_auroc_error_bound_holds_where_bins_are_crowded(seed, spread):
    rng = np.random.default_rng(seed)
    scores = (1 + spread * 1e-4 * rng.random((8, 8))).astype(np.float32)
    mask = rng.random((8, 8)) < 0.4
    mask[0, 0], mask[0, 1] = True, False
    got = pixel_summary(fill([scores], [mask], max_bins=4))  # a few bins for all 64 scores
    exact = roc_auc_score(mask.ravel(), scores.ravel())
    assert abs(got["pixel_auroc"] - exact) <= got["pixel_auroc_error_bound"] + 1e-12


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_agrees_with_reference(limit):
    maps, masks = make_maps(seed=3)
    n = sum(int((~m).sum()) for m in masks)
    reference, _ = calculate_au_pro(masks, maps, integration_limit=limit, num_thresholds=n)
    assert fill(maps, masks).curve().aupro(limit) == pytest.approx(reference, abs=1e-3 if limit > 0.1 else 2e-3)
    assert pixel_summary(fill(maps, masks), fpr_limit=limit)["pixel_aupro"] == fill(maps, masks).curve().aupro(limit)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.3, 0.7, 1.0]), st.sampled_from([1, 2, 5, 1000]))
def test_every_figure_stays_in_its_range(seed, limit, levels):
    rng = np.random.default_rng(seed)
    maps = [np.floor(rng.random((9, 11)) * levels).astype(np.float32) for _ in range(2)]
    masks = [rng.random((9, 11)) < 0.3 for _ in range(2)]
    got = pixel_summary(fill(maps, masks), fpr_limit=limit)
    for name in ("pixel_auroc", "pixel_aupr", "pixel_aupro", "pixel_f1_max", "pixel_acc"):
        assert 0 <= got[name] <= 1 + 1e-12, name


def test_perfect_and_constant_maps():
    _, masks = make_maps()
    perfect = pixel_summary(fill([m.astype(np.float32) for m in masks], masks))
    assert perfect["pixel_aupro"] == pytest.approx(1) and perfect["pixel_auroc"] == 1 and perfect["pixel_f1_max"] == 1
    constant = pixel_summary(fill([np.full(m.shape, 0.25, np.float32) for m in masks], masks))
    assert constant["pixel_auroc"] == pytest.approx(0.5)
    assert constant["pixel_aupro"] == pytest.approx(0.15)  # the diagonal: 0.3 / 2


def test_no_anomalous_pixel_gives_none_not_a_number():
    maps, masks = make_maps()
    got = pixel_summary(fill(maps, [np.zeros_like(m) for m in masks]))
    assert got["pixel_auroc"] is None and got["pixel_aupro"] is None and got["pixel_acc"] is None
    stated = pixel_summary(fill(maps, [np.zeros_like(m) for m in masks]), threshold=10.0)
    assert stated["pixel_acc"] == 1.0  # accuracy at a stated threshold needs no anomalous pixel


def test_no_image_at_all():
    assert pixel_summary(PixelHistogram())["pixel_auroc"] is None


@pytest.mark.parametrize("max_bins", [1_000, MAX_BINS])
def test_merge_equals_one_pass_and_zeroed_equals_zero_maps(max_bins):
    maps, masks = make_maps()
    whole = fill(maps, masks, max_bins)
    for cut in (1, 3, 5):
        parts = fill(maps[:cut], masks[:cut], max_bins)
        parts.merge(fill(maps[cut:], masks[cut:], max_bins))
        assert pixel_summary(parts) == pytest.approx(pixel_summary(whole))
    zero = fill([np.zeros_like(m) for m in maps], masks)
    zeroed = whole.zeroed()
    assert np.array_equal(zeroed.keys, zero.keys) and np.allclose(zeroed.counts, zero.counts)
    assert zeroed.n_regions == zero.n_regions


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2e-4, 7e-4, 5.0])
def test_accuracy_at_any_threshold(threshold):
    maps, masks = make_maps()
    y, s = flat(maps, masks)
    expected = accuracy_score(y, s >= np.float32(threshold))
    assert fill(maps, masks).curve().accuracy(threshold) == pytest.approx(expected)


def test_each_image_gets_its_own_auroc():
    maps, masks = make_maps(3)
    histogram = PixelHistogram()
    for anomaly_map, mask in zip(maps[:2], masks[:2], strict=True):
        expected = roc_auc_score(mask.ravel(), anomaly_map.ravel())
        assert histogram.add(anomaly_map, mask) == pytest.approx(expected, abs=1e-12)
    assert histogram.add(maps[2], masks[2]) is None
    assert histogram.add(maps[2], np.ones_like(masks[2])) is None


def test_bad_input_is_refused():
    maps, masks = make_maps(2)
    with pytest.raises(ValueError, match="one H x W"):
        PixelHistogram().add(maps[0][:50], masks[0])
    with pytest.raises(ValueError, match="finite"):
        PixelHistogram().add(np.full_like(maps[0], np.nan), masks[0])
    with pytest.raises(UserError, match="fpr_limit"):
        fill(maps, masks).curve().aupro(0)


def test_curves_are_thinned_and_keep_their_ends():
    points = fill(*make_maps()).curve().points(n=50)
    assert points["roc"][0] == [0, 0] and points["roc"][-1] == [1, 1]
    assert all(len(p) <= 53 for p in points.values())
    assert points["pro"][-1][0] <= 0.3
    assert thin(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 10) == [[0, 0], [1, 1]]


@pytest.mark.parametrize("spread", [10, 10**6, 2**31 - 1])
def test_distinct_is_numpys_unique(spread):
    keys = np.random.default_rng(spread).integers(-spread // 2, spread // 2, 5000).astype(np.int32)
    for some in (keys, keys[:1], keys[:0]):
        ours, expected = distinct(some), np.unique(some, return_counts=True)
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_array_equal(ours[1], expected[1])
        assert ours[0].dtype == np.int32
