"""Baselines and smoothing by hand; smoothing against SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from realad_verl.method.baseline import (
    Baseline,
    baseline_rows,
    divide_by_baseline,
    image_share,
    mean_rows,
    resize_rows,
    smooth_maps,
)

# Token 7 looks at cell 0 by habit, token 9 at cell 3; token 8 was seen once.
ROWS = torch.tensor([[0.3, 0.1, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.4], [0.1, 0.1, 0.1, 0.1]])
IDS = torch.tensor([7, 7, 9, 8])


def test_mean_rows_by_hand():
    found = mean_rows(ROWS, IDS, (2, 2), at_least=1)
    assert found.ids_V.tolist() == [7, 8, 9]
    # shares of token 7: (3/4, 1/4) and (1/2, 1/2); however much it looked at the image plays no part
    torch.testing.assert_close(found.words_VP[0], torch.tensor([0.625, 0.375, 0.0, 0.0]))
    torch.testing.assert_close(found.normal_P, torch.tensor([(1.25 + 0.25) / 4, 0.25, 0.25 / 4, 1.25 / 4]))


def test_rare_words_share_the_mean_of_all():
    found = mean_rows(ROWS, IDS, (2, 2), at_least=2)
    assert found.ids_V.tolist() == [7]
    rows = found.rows(torch.tensor([8, 7, 1000, 0]), "word")
    torch.testing.assert_close(rows[1], found.words_VP[0])
    torch.testing.assert_close(rows[[0, 2, 3]], found.normal_P.expand(3, -1))
    torch.testing.assert_close(found.rows(torch.tensor([7]), "normal")[0], found.normal_P)


def test_bad_rows_make_no_baseline():
    rows = torch.cat([ROWS, torch.full((1, 4), float("nan")), torch.zeros(1, 4)])
    found = mean_rows(rows, torch.tensor([7, 7, 9, 8, 7, 9]), (2, 2))
    torch.testing.assert_close(found.words_VP, mean_rows(ROWS, IDS, (2, 2)).words_VP)
    with pytest.raises(ValueError, match="no row"):
        mean_rows(torch.zeros(2, 4), IDS[:2], (2, 2))


def test_no_word_has_its_own():
    found = baseline_rows(torch.tensor([1, 2]), ROWS[3], torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    torch.testing.assert_close(found, ROWS[3].expand(2, -1))


def test_divide_by_hand():
    base = torch.tensor([[0.2, 0.1, 0.1, 0.0]])  # shares .5, .25, .25, 0 -> floor .0025
    row = torch.tensor([[0.1, 0.1, 0.1, 0.1]])  # shares .25 each
    torch.testing.assert_close(divide_by_baseline(row, base), torch.tensor([[0.5, 1.0, 1.0, 100.0]]))
    torch.testing.assert_close(divide_by_baseline(base * 0.3, base)[0, :3], torch.ones(3))  # as on normal images
    assert divide_by_baseline(torch.zeros(1, 4), base).tolist() == [[0.0] * 4]
    assert divide_by_baseline(torch.tensor([[float("nan"), 1, 1, 1]]), base).isnan().any()


def test_resize_keeps_sums_and_constant_rows():
    rows = torch.rand(3, 12)
    assert Baseline((3, 4), image_share(rows[:1])[0], torch.tensor([5]), image_share(rows[1:2])).resized((3, 4)).grid
    for to in ((6, 8), (2, 2), (5, 3)):
        found = resize_rows(rows, (3, 4), to)
        assert found.shape == (3, to[0] * to[1])
        torch.testing.assert_close(found.sum(1), rows.sum(1))
    torch.testing.assert_close(resize_rows(torch.ones(1, 12), (3, 4), (6, 8)), torch.full((1, 48), 0.25))
    # halving takes the mean of what falls into a cell, weighted towards its centre: a left-right step stays a step
    step = torch.tensor([[0.0, 0.0, 1.0, 1.0] * 4])
    half = resize_rows(step, (4, 4), (2, 2))[0].view(2, 2)
    assert (half[:, 1] > 3 * half[:, 0]).all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit grid"):
        Baseline((2, 2), torch.rand(5), torch.tensor([1]), torch.rand(1, 4))
    with pytest.raises(ValueError, match="has 4"):
        resize_rows(torch.rand(1, 5), (2, 2), (3, 3))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("grid", [(12, 12), (3, 7), (1, 9)])
def test_smoothing_is_scipys(sigma, grid):
    maps = torch.rand(2, grid[0] * grid[1])
    radius = max(1, round(3 * sigma))
    found = smooth_maps(maps, grid, sigma)
    for one, smooth in zip(maps, found, strict=True):
        expected = gaussian_filter(one.view(grid).double().numpy(), sigma, mode="nearest", radius=radius)
        np.testing.assert_allclose(smooth.view(grid).numpy(), expected, atol=1e-6)


def test_no_smoothing_is_bitwise_nothing_and_gradients_pass():
    maps = torch.rand(4, 9)
    assert torch.equal(smooth_maps(maps, (3, 3), 0.0), maps)
    maps.requires_grad_()
    smooth_maps(maps, (3, 3), 1.0).square().sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all()
