"""Placement on a Ray cluster: two raylets with one rank each do what one node with two ranks does."""

import pytest
from jobs import cluster
from test_training import REPEATABLE, SMALL, check_same

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture()
def two_raylets():
    """The address of a cluster of two raylets on this machine."""
    with cluster() as made:
        yield made.address


def test_two_nodes_equal_one(train, tmp_path, prepared, two_raylets, monkeypatch):
    single = train(tmp_path / "single", prepared, *SMALL, *REPEATABLE, "trainer.n_gpus_per_node=2")
    assert single.returncode == 0, single.stderr[-3000:]
    double = train(tmp_path / "double", prepared, *SMALL, *REPEATABLE, "trainer.nnodes=2", address=two_raylets)
    assert double.returncode == 0, double.stderr[-3000:]
    check_same(single, double, 3)
