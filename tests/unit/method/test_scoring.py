"""ReAL's scores: each formula worked out by hand on a 3 x 3 grid, and against an independent reference."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from realad_verl.method import scoring
from realad_verl.method.config import ScoringConfig
from realad_verl.method.scoring import (
    concentration,
    contrast,
    min_max,
    select_tokens,
    semantic_relevance,
    spatial_entropy,
    token_weights,
    top_tokens,
)

ALL3 = torch.ones(3, dtype=torch.bool)
# Two corners above the mean 11/9 = 1.22, not touching:   5 0 0
#                                                         0 0 0
#                                                         0 2 4   -> regions {5}, {2, 4}: areas 1 and 2
TWO_REGIONS = torch.tensor([[5.0, 0, 0, 0, 0, 0, 0, 2, 4]])


def reference_entropy(row, grid, share):
    row = np.asarray(row, dtype=np.float64)
    above = (row > row.mean()).reshape(grid)
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    if count == 0:
        return math.log(len(row))
    weights = np.ones(grid) if share == "area" else (row - row.mean()).reshape(grid)
    p = ndimage.sum_labels(weights, labels, np.arange(1, count + 1))
    p = p / p.sum()
    return float(-(p * np.log(p)).sum())


def test_semantic_relevance_sums_the_word_columns():
    torch.testing.assert_close(semantic_relevance(torch.tensor([[0.1, 0.2], [0.0, 0.3]])), torch.tensor([0.3, 0.3]))
    assert semantic_relevance(torch.zeros(4, 0)).tolist() == [0, 0, 0, 0]


def test_entropy_by_area():
    # p = 1/3, 2/3: E = 1/3 ln 3 + 2/3 ln 1.5
    expected = math.log(3) / 3 + 2 / 3 * math.log(1.5)
    assert spatial_entropy(TWO_REGIONS, (3, 3)).item() == pytest.approx(expected, abs=1e-6)
    assert concentration(TWO_REGIONS, (3, 3)).item() == pytest.approx(-expected, abs=1e-6)


def test_entropy_by_mass():
    # above the mean 11/9: 5 -> 34/9; 2 -> 7/9 and 4 -> 25/9, together 32/9: p = 34/66, 32/66
    expected = -(34 / 66 * math.log(34 / 66) + 32 / 66 * math.log(32 / 66))
    assert spatial_entropy(TWO_REGIONS, (3, 3), "mass").item() == pytest.approx(expected, abs=1e-6)


def test_diagonal_neighbours_are_one_region():
    diagonal = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0, 1]])
    assert spatial_entropy(diagonal, (3, 3)).item() == 0.0
    assert spatial_entropy(diagonal, (1, 9)).item() == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e-30, math.nan, math.inf])
def test_a_map_without_regions_has_the_largest_entropy(value):
    assert spatial_entropy(torch.full((2, 225), value), (15, 15)).tolist() == pytest.approx([math.log(225)] * 2)


@pytest.mark.parametrize("share", ["area", "mass"])
@pytest.mark.parametrize("grid", [(15, 15), (3, 3), (4, 7), (1, 1), (1, 9), (9, 1), (2, 30)])
def test_entropy_equals_a_loop_of_scipy_label(grid, share, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_CELLS", 7 * grid[0] * grid[1] + 1)  # several chunks, the last one partial
    rows = torch.from_numpy(np.random.default_rng(0).random((60, grid[0] * grid[1]), dtype=np.float32))
    expected = [reference_entropy(row, grid, share) for row in rows.numpy()]
    np.testing.assert_allclose(spatial_entropy(rows, grid, share).numpy(), expected, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31), st.sampled_from(["area", "mass"]))
def test_entropy_of_coarse_maps(height, width, seed, share):
    rows = np.random.default_rng(seed).integers(0, 3, (5, height * width)).astype(np.float32)
    expected = [reference_entropy(row, (height, width), share) for row in rows]
    got = spatial_entropy(torch.from_numpy(rows), (height, width), share)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_grid_must_fit():
    with pytest.raises(ValueError, match="9 image cells"):
        spatial_entropy(torch.zeros(1, 9), (2, 4))


def test_min_max():
    # (0.2 - 0.1)/0.3, (0.1 - 0.1)/0.3, (0.4 - 0.1)/0.3
    torch.testing.assert_close(min_max(torch.tensor([0.2, 0.1, 0.4]), ALL3), torch.tensor([1 / 3, 0.0, 1.0]))


def test_min_max_of_equal_scores_is_zero():
    assert min_max(torch.full((3,), 0.7), ALL3).tolist() == [0, 0, 0]
    noise = torch.tensor([0.7, 0.7 * (1 + 2e-7), 0.7])
    assert min_max(noise, ALL3).tolist() == [0, 0, 0]
    assert min_max(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).tolist() == []


def test_min_max_leaves_out_what_is_not_usable():
    usable = torch.tensor([True, True, False])
    assert min_max(torch.tensor([1.0, 3.0, -100.0]), usable).tolist() == [0, 1, 0]
    assert min_max(torch.tensor([1.0, 3.0, 2.0]), ~ALL3).tolist() == [0, 0, 0]


S_T, S_I = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.4, 0.8, 1.0])


@pytest.mark.parametrize(
    ("select", "weights", "kept"),
    [
        ("both", [0.25 * 1 + 0.75 * 0.4, 0.25 * 0.6 + 0.75 * 0.8, 0.25 * 0.2 + 0.75 * 1.0], [False, True, False]),
        ("text", [1.0, 0.6, 0.2], [True, True, False]),
        ("image", [0.4, 0.8, 1.0], [False, True, True]),
        ("all", [1.0, 1.0, 1.0], [True, True, True]),
    ],
)
def test_weights_and_selection(select, weights, kept):
    cfg = ScoringConfig(select=select, alpha=0.25, beta=0.75)
    w = token_weights(S_T, S_I, ALL3, cfg)
    torch.testing.assert_close(w, torch.tensor(weights))
    chosen, fallback = select_tokens(S_T, S_I, w, ALL3, cfg)
    assert chosen.tolist() == kept and not fallback


def test_thresholds_are_exceeded_strictly():
    chosen, fallback = select_tokens(S_T, S_I, S_T, ALL3, ScoringConfig(select="text", tau_t=0.6))
    assert chosen.tolist() == [True, False, False] and not fallback


def test_fallback_takes_the_largest_weights_and_the_first_among_equals():
    zeros = torch.zeros(4)
    usable = torch.tensor([False, True, True, True])
    chosen, fallback = select_tokens(zeros, zeros, zeros, usable, ScoringConfig(fallback_tokens=2))
    assert chosen.tolist() == [False, True, True, False] and fallback
    index, valid = top_tokens(torch.tensor([0.1, 0.9, 0.9, 0.5]), torch.ones(4, dtype=torch.bool), 3)
    assert index.tolist() == [1, 2, 3] and valid.all()
    index, valid = top_tokens(torch.tensor([0.9, 0.1, 0.2, 0.3]), torch.tensor([False, True, False, False]), 3)
    assert index[0] == 1 and valid.tolist() == [True, False, False]


def test_contrast_by_hand():
    rows = torch.tensor([[0.4, 0.1, 0.1, 0.0], [0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.0, 0.3], [0.0, 0, 0, 0]])
    assert contrast(rows).tolist() == pytest.approx([0.4 / 0.15, 1.0, 4.0, 1.0])
    assert contrast(torch.tensor([[float("nan"), 1.0]])).tolist() == [1.0]
    assert contrast(torch.zeros(2, 0)).tolist() == [1.0, 1.0]


def test_contrast_tells_a_sharp_region_from_a_broad_one():
    """Both are one component, so their entropy is 0; the contrast is not."""
    broad, sharp = torch.zeros(25), torch.zeros(25)
    broad[:10], sharp[:2] = 0.1, 0.5
    rows, cfg = torch.stack([broad, sharp]), ScoringConfig(concentration="contrast")
    assert concentration(rows, (5, 5)).tolist() == [0.0, 0.0]
    assert concentration(rows, (5, 5), cfg).tolist() == pytest.approx([2.5, 12.5])


def test_labelling_takes_no_more_threads_than_torch():
    before = cv2.getNumThreads(), torch.get_num_threads()
    try:
        cv2.setNumThreads(2)
        torch.set_num_threads(1)
        spatial_entropy(torch.rand(40, 25), (5, 5))
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
