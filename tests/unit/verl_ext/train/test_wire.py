"""What leaves the worker comes back the same, dense or jagged."""

import re

import pytest
import torch

from realad_verl import evidence
from realad_verl.method.evidence import Evidence
from realad_verl.verl_ext.train import wire


def _evidence(r=3, grid=(2, 3), jaccard=0.25, problem=None) -> Evidence:
    rows, cols = grid
    return Evidence(
        anomaly_map_P=torch.arange(rows * cols, dtype=torch.float32) if problem is None else None,
        grid=grid,
        weights_R=torch.rand(r),
        s_t_R=torch.rand(r),
        s_i_R=-torch.rand(r),
        kept_R=torch.tensor([True] + [False] * (r - 1))[:r],
        n_reasoning=r,
        n_kept=min(r, 1),
        fallback=False,
        jaccard=jaccard,
        problem=problem,
    )


@pytest.mark.parametrize("jaccard", [0.0, 0.25, 1.0, None])
def test_summary_round_trip(jaccard):
    (got,) = wire.unpack_summaries(wire.pack_summary(_evidence(jaccard=jaccard), 2.5)[None])
    assert (got.jaccard, got.n_reasoning, got.n_kept, got.fallback, got.problem) == (jaccard, 3, 1, False, None)
    assert got.milliseconds == 2.5


@pytest.mark.parametrize("problem", [p for p in wire.PROBLEMS if p])
def test_every_problem_travels(problem):
    vector = wire.pack_summary(_evidence(jaccard=None, problem=problem), 0)
    assert wire.unpack_summaries(vector[None])[0].problem == problem


def test_every_problem_of_the_evidence_has_a_code():
    documented = re.findall(r'^\| "(\w+)"', evidence.__doc__ or "", re.MULTILINE)
    assert len(documented) >= 7 and set(documented) <= set(wire.PROBLEMS)


def test_detail_round_trip():
    one = _evidence()
    detail = wire.unpack_detail(*wire.pack_detail(one, [4, 5, 7]).values())
    assert detail.map_HW is not None and torch.equal(detail.map_HW, torch.arange(6.0).reshape(2, 3))
    assert detail.tokens[0].tolist() == [4, 5, 7]
    assert torch.equal(detail.tokens[3], one.weights_R)


def test_sample_without_evidence_is_never_empty():
    packed = wire.pack_detail(_evidence(r=0, problem="no_reasoning"), [])
    assert all(vector.numel() > 0 for vector in packed.values())
    detail = wire.unpack_detail(*packed.values())
    assert detail.map_HW is None and detail.tokens.shape == (5, 0)


def test_summary_costs_24_bytes():
    vector = wire.pack_summary(_evidence(), 0)
    assert vector.element_size() * vector.numel() == 24
