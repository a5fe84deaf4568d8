"""The whole reduction: by hand, edge by edge, and batched against one by one."""

from dataclasses import replace

import pytest
import torch

from realad_verl.method import evidence as evidence_module
from realad_verl.method.baseline import smooth_maps
from realad_verl.method.config import ConsistencyConfig, MapConfig, MethodConfig, ScoringConfig
from realad_verl.method.evidence import compute_evidence, compute_evidence_batch, no_evidence

TWO = MethodConfig(consistency=ConsistencyConfig(t=2))
# 3 x 3. Token 0 looks at the top left (one region: S_I = 0), token 1 at the same corner (S_I = 0), token 2 at two
# opposite corners (two regions of one cell: S_I = -ln 2).
ROWS = torch.tensor([[8.0, 1, 0, 0, 0, 0, 0, 0, 0], [6.0, 0, 0, 0, 0, 0, 0, 0, 0], [5.0, 0, 0, 0, 0, 0, 0, 0, 4]]) / 10
S_T = torch.tensor([0.3, 0.25, 0.1])  # normalised: 1, 0.75, 0


def test_by_hand():
    found = compute_evidence(ROWS, S_T, (3, 3), TWO)
    # w = 0.5 * S_T^ + 0.5 * S_I^ with S_I^ = 1, 1, 0: 1, 0.875, 0; kept: tokens 0 and 1
    torch.testing.assert_close(found.weights_R, torch.tensor([1.0, 0.875, 0.0]))
    assert found.kept_R.tolist() == [True, True, False] and found.n_kept == 2 and not found.fallback
    assert found.s_i_R.tolist() == pytest.approx([0.0, 0.0, -0.693147], abs=1e-5)
    # map[0] = (1 * 0.8 + 0.875 * 0.6) / 1.875, map[1] = 0.1 / 1.875
    expected = torch.zeros(9)
    expected[0], expected[1] = (0.8 + 0.875 * 0.6) / 1.875, 0.1 / 1.875
    torch.testing.assert_close(found.anomaly_map_P, expected)
    # 9 cells: the 95th percentile keeps the strongest one, cell 0 for both: J = 1
    assert found.jaccard == 1.0 and found.problem is None


def test_fewer_tokens_than_t_still_make_a_map():
    found = compute_evidence(ROWS, S_T, (3, 3))
    assert found.problem == "too_few_tokens" and found.jaccard is None and found.anomaly_map_P is not None


def test_one_token():
    found = compute_evidence(ROWS[:1], S_T[:1], (3, 3))
    assert found.fallback and found.n_kept == 1
    torch.testing.assert_close(found.anomaly_map_P, ROWS[0])


def test_nothing_passes():
    # S_T^ = 1, 0.75, 0 but S_I all equal -> zeros: nobody passes; the two largest weights: tokens 0 and 1
    cfg = MethodConfig(scoring=ScoringConfig(fallback_tokens=2))
    found = compute_evidence(ROWS[[0, 1, 0]], S_T, (3, 3), cfg)
    assert found.fallback and found.kept_R.tolist() == [True, True, False]


def test_constant_rows_are_never_selected():
    rows = torch.cat([torch.full((1, 9), 0.9), ROWS])
    found = compute_evidence(rows, torch.cat([torch.tensor([9.0]), S_T]), (3, 3), TWO)
    alone = compute_evidence(ROWS, S_T, (3, 3), TWO)
    assert found.kept_R.tolist() == [False, True, True, False] and found.weights_R[0] == 0
    torch.testing.assert_close(found.anomaly_map_P, alone.anomaly_map_P)
    assert found.jaccard == alone.jaccard


def test_only_constant_rows():
    found = compute_evidence(torch.full((6, 9), 0.1), torch.rand(6), (3, 3))
    assert found.problem == "constant_rows" and found.jaccard is None and found.n_kept == 0
    torch.testing.assert_close(found.anomaly_map_P, torch.full((9,), 0.1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["rows", "s_t"])
def test_non_finite_attention(bad, where):
    rows, s_t = ROWS.clone(), S_T.clone()
    if where == "rows":
        rows[0, 3] = bad
    else:
        s_t[0] = bad
    found = compute_evidence(rows, s_t, (3, 3), TWO)
    assert found.problem == "non_finite" and found.jaccard is None and not found.kept_R[0]
    assert found.anomaly_map_P is not None and found.anomaly_map_P.isfinite().all()
    for values in (found.weights_R, found.s_t_R, found.s_i_R):
        assert values.isfinite().all()
    everything = compute_evidence(torch.full((3, 9), bad), S_T, (3, 3), TWO)
    assert everything.problem == "non_finite" and everything.anomaly_map_P is None


def test_nothing_to_look_at():
    assert compute_evidence(torch.zeros(0, 9), torch.zeros(0), (3, 3)).problem == "no_reasoning"
    found = compute_evidence(torch.zeros(4, 0), torch.zeros(4), (0, 0))
    assert found.problem == "no_image" and found.n_reasoning == 4 and found.anomaly_map_P is None
    assert no_evidence("no_words", 3).problem == "no_words"
    assert compute_evidence_batch([]) == []


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="shapes do not fit"):
        compute_evidence(ROWS, S_T, (3, 4))
    with pytest.raises(ValueError, match="shapes do not fit"):
        compute_evidence(ROWS, S_T[:2], (3, 3))


@pytest.mark.parametrize("limit", [1, 1000, 1 << 22])
@pytest.mark.parametrize("share", ["area", "mass"])
@pytest.mark.parametrize("select", ["both", "text", "image", "all"])
def test_batched_equals_single(limit, share, select, monkeypatch):
    monkeypatch.setattr(evidence_module, "GROUP_CELLS", limit)
    generator = torch.Generator().manual_seed(0)
    triples = []
    for i in range(40):
        R, grid = int(torch.randint(0, 30, (), generator=generator)), [(15, 15), (3, 4), (5, 5)][i % 3]
        rows = torch.rand(R, grid[0] * grid[1], generator=generator)
        if i % 7 == 0 and R:
            rows[0] = float("nan")
        if i % 5 == 0 and R > 1:
            rows[1] = 0.5
        triples.append((rows, torch.rand(R, generator=generator), grid))
    cfg = MethodConfig(scoring=ScoringConfig(select=select, share=share))
    for triple, found in zip(triples, compute_evidence_batch(triples, cfg), strict=True):
        alone = compute_evidence(*triple, cfg)
        for name in ("weights_R", "s_t_R", "s_i_R", "kept_R", "anomaly_map_P"):
            torch.testing.assert_close(
                getattr(found, name), getattr(alone, name), rtol=0, atol=1e-6
            )  # rounding of sums
        for name in ("grid", "n_reasoning", "n_kept", "fallback", "problem", "jaccard"):
            assert getattr(found, name) == getattr(alone, name)


def test_results_are_tensors_of_their_own():
    found = compute_evidence_batch([(ROWS, S_T, (3, 3))] * 3, TWO)[1]
    for values in (found.weights_R, found.s_t_R, found.s_i_R, found.kept_R, found.anomaly_map_P):
        assert values.untyped_storage().nbytes() == values.numel() * values.element_size()


def test_bfloat16_rows():
    found = compute_evidence(ROWS.bfloat16(), S_T.bfloat16(), (3, 3), TWO)
    assert found.anomaly_map_P.dtype == torch.float32 and found.jaccard == 1.0


def test_smoothed_map_is_the_map_smoothed():
    plain = compute_evidence(ROWS, S_T, (3, 3), TWO)
    found = compute_evidence(ROWS, S_T, (3, 3), replace(TWO, map=MapConfig(smooth=1.0)))
    torch.testing.assert_close(found.anomaly_map_P, smooth_maps(plain.anomaly_map_P, (3, 3), 1.0))
    assert found.jaccard == plain.jaccard and found.anomaly_map_P.argmax() == 0


def test_contrast_selects_the_sharp_token():
    cfg = MethodConfig(scoring=ScoringConfig(select="image", concentration="contrast", tau_i=0.5))
    found = compute_evidence(ROWS, S_T, (3, 3), cfg)
    # max / mean: .8 / .1 = 8, .6 / .0667 = 9, .5 / .1 = 5; normalised .75, 1, 0
    assert found.s_i_R.tolist() == pytest.approx([8.0, 9.0, 5.0]) and found.kept_R.tolist() == [True, True, False]
    torch.testing.assert_close(found.weights_R, torch.tensor([0.75, 1.0, 0.0]))
