"""CGRO's regions, Jaccard index and reward: by hand, and against sets and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from realad_verl.method.anomaly_map import map_shares, normalize_map, resize_map, weighted_map
from realad_verl.method.config import ConsistencyConfig
from realad_verl.method.consistency import attention_regions, consistency_reward, consistency_score, jaccard_index


def test_region_by_hand():
    # 75th percentile of 1..9: position 0.75 * 8 = 6 -> 7; at or above: 7, 8, 9
    row = torch.tensor([[3.0, 9, 1, 4, 7, 2, 8, 6, 5]])
    assert attention_regions(row, 75.0)[0].nonzero().squeeze(1).tolist() == [1, 4, 6]


@pytest.mark.parametrize(("cells", "kept"), [(225, 12), (49, 3), (20, 1), (9, 1), (4, 1)])
def test_how_many_cells_the_95th_percentile_keeps(cells, kept):
    row = torch.randperm(cells, generator=torch.Generator().manual_seed(0)).float()[None]
    assert attention_regions(row)[0].sum() == kept


def test_one_bright_cell_is_a_region_of_one_cell():
    row = torch.zeros(1, 225)
    row[0, 100] = 1
    assert attention_regions(row)[0].nonzero().tolist() == [[100]]


def test_jaccard_by_hand():
    # A = {0,1,2}, B = {1,2,3}, C = {2,3}:  AB 2/4, AC 1/4, BC 2/3;  joint {2} / {0,1,2,3}
    regions = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert jaccard_index(regions).item() == pytest.approx((1 / 2 + 1 / 4 + 2 / 3) / 3)
    assert jaccard_index(regions, "joint").item() == pytest.approx(1 / 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**31))
def test_jaccard_against_sets_and_sklearn(t, cells, seed):
    regions = np.random.default_rng(seed).random((t, cells)) > 0.5
    sets = [set(np.flatnonzero(r)) for r in regions]
    union, inter = set.union(*sets), set.intersection(*sets)
    assert jaccard_index(torch.from_numpy(regions), "joint").item() == pytest.approx(len(inter) / max(len(union), 1))
    pairs = [jaccard_score(a, b, zero_division=0.0) for a, b in itertools.combinations(regions, 2)]
    assert jaccard_index(torch.from_numpy(regions)).item() == pytest.approx(np.mean(pairs))


def test_one_region_has_no_jaccard():
    with pytest.raises(ValueError, match="at least 2"):
        jaccard_index(torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("jaccard", "label", "hard", "continuous"),
    [(0.6, 1, 1, 0.6), (0.5, 1, 0, 0.5), (0.2, 0, 1, 0.8), (0.3, 0, 0, 0.7), (None, 0, 0, 0), (math.nan, 0, 0, 0)],
)
def test_reward(jaccard, label, hard, continuous):
    assert consistency_reward(jaccard, label) == hard
    assert consistency_reward(jaccard, label, ConsistencyConfig(form="continuous")) == pytest.approx(continuous)


def test_reward_refuses_other_labels():
    with pytest.raises(ValueError, match="label = 2"):
        consistency_reward(0.5, 2)


@pytest.mark.parametrize(
    ("gate", "well_formed", "accurate", "expected"),
    [
        ("format", True, False, 1),
        ("format", False, True, 0),
        ("accuracy", True, True, 1),
        ("accuracy", True, False, 0),
        ("accuracy", True, None, 0),
        ("accuracy", False, True, 0),
        ("none", False, False, 1),
    ],
)
def test_gate(gate, well_formed, accurate, expected):
    assert consistency_score(0.9, 1, well_formed, ConsistencyConfig(gate=gate), accurate=accurate) == expected


@pytest.mark.parametrize("label", [None, 2, -1])
def test_a_sample_without_label_earns_nothing(label):
    assert consistency_score(0.9, label, True) == 0.0


def test_map_by_hand():
    # kept rows 0 and 2, weights 1 and 3: (1 * [4, 0] + 3 * [0, 8]) / 4
    rows = torch.tensor([[4.0, 0.0], [9.0, 9.0], [0.0, 8.0]])
    kept = torch.tensor([True, False, True])
    assert weighted_map(rows, map_shares(torch.tensor([1.0, 5.0, 3.0]), kept)).tolist() == [1.0, 6.0]
    assert weighted_map(rows, map_shares(torch.zeros(3), kept)).tolist() == [2.0, 4.0]
    assert map_shares(torch.ones(3), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_resize():
    # two cells side by side to four pixels, bilinear with cell centres: 0, 1/4, 3/4, 1
    assert resize_map(torch.tensor([0.0, 1.0]), (1, 2), (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert resize_map(torch.rand(6), (2, 3), (5, 7)).shape == (5, 7)
    with pytest.raises(ValueError, match="6 cells"):
        resize_map(torch.rand(6), (2, 2), (5, 7))


def test_normalize_for_display():
    assert normalize_map(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0.0, 1.0, 0.5]
    assert normalize_map(torch.ones(2)).tolist() == [0.0, 0.0]
