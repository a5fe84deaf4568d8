"""Placement on a Ray cluster: two raylets with one rank each do what one node with two ranks does."""

import os
import subprocess
import sys

import pytest
from test_training import REPEATABLE, SMALL, check_same

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=6, num_gpus=1, object_store_memory=300_000_000))
cluster.add_node(num_cpus=6, num_gpus=1, object_store_memory=300_000_000)
cluster.wait_for_nodes()
print("ADDRESS", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture()
def two_raylets():
    """The address of a cluster of two raylets on this machine, with the variables that its workers inherit."""
    cpu = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    cpu |= {"RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "120000", "GLOO_SOCKET_IFNAME": "lo"}
    cpu |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | cpu,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[1] for line in lines if line.startswith("ADDRESS"))
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def test_two_nodes_equal_one(train, tmp_path, prepared, two_raylets, monkeypatch):
    single = train(tmp_path / "single", prepared, *SMALL, *REPEATABLE, "trainer.n_gpus_per_node=2")
    assert single.returncode == 0, single.stderr[-3000:]
    double = train(tmp_path / "double", prepared, *SMALL, *REPEATABLE, "trainer.nnodes=2", address=two_raylets)
    assert double.returncode == 0, double.stderr[-3000:]
    check_same(single, double, 3)
