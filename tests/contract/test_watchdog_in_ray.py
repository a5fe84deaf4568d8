"""With a real Ray: the watchdog frees a main thread that waits in ``ray.get``, as the launcher of every run does, and
nothing of a local Ray outlives the launcher's shutdown, even where its control store has died."""

import os
import subprocess
import sys

PROGRAM = """
import sys, time
from pathlib import Path
import ray
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.job.watchdog import PhaseTimeout, Watchdog

folder = Path(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
stuck = ray.remote(lambda: time.sleep(100)).remote()
heartbeat.write(folder, "sampling responses", step=2, total_steps=9)
began = time.monotonic()
try:
    with Watchdog(folder, 0, 1, interval=0.2):
        ray.get(stuck)
except PhaseTimeout as error:
    print("freed", error, time.monotonic() - began < 60)
finally:
    ray.shutdown()
"""


HEADLESS = """
import os, time
import psutil, ray
from realad_verl.verl_ext.job.launch import shut_down_ray

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
ray.get(ray.remote(lambda: 1).remote())
children = psutil.Process().children(recursive=True)
(store,) = [p for p in children if p.cmdline()[0].endswith("gcs_server")]
store.kill()
began = time.monotonic()
shut_down_ray(limit_s=3, grace_s=2)
alive = [p.cmdline() for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
left = [c[0] for c in alive if c and ("ray::" in c[0] or "raylet" in c[0])]
print("left", left, time.monotonic() - began < 30, flush=True)
os._exit(0)
"""


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=80_000_000))
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
JOINS = """
import sys, time
from pathlib import Path
import ray
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.job.watchdog import PartDied, Watchdog

ray.init(address=sys.argv[2])
made = lambda name: ray.remote(type(name, (), {"answer": lambda self: 1})).options(num_cpus=0).remote()
part, other = made("vLLMHttpServer"), made("Other")
ray.get([part.answer.remote(), other.answer.remote()])
stuck = ray.remote(lambda: time.sleep(100)).remote()
heartbeat.write(Path(sys.argv[1]), "sampling responses", step=2, total_steps=9)
try:
    with Watchdog(Path(sys.argv[1]), 0, 60, interval=0.2, grace_s=1):
        time.sleep(2)
        ray.kill(other)
        time.sleep(3)
        ray.kill(part)
        ray.get(stuck)
except PartDied as error:
    print("freed:", error)
"""


def environment() -> dict[str, str]:
    env = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    return env


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_nothing_outlives_a_shutdown_without_control_store():
    assert "left [] True" in run(HEADLESS)


def test_a_launcher_that_waits_for_ray_is_freed(tmp_path):
    said = run(PROGRAM, str(tmp_path))
    assert "freed 'sampling responses' of step 2 took longer than" in said and "True" in said
    assert "ray::" in (tmp_path / "stacks.txt").read_text()


def test_an_actor_that_died_on_a_cluster_is_named(tmp_path):
    """No process of it is below the launcher; another actor that ends is not missed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment(), **pipes)
    try:
        address = next(line for line in iter(cluster.stdout.readline, "") if line[:1].isdigit())
        said = run(JOINS, str(tmp_path), address.strip())
        assert "freed: lost ray::vLLMHttpServer on 127.0.0.1: a run cannot go on without." in said
    finally:
        cluster.stdin.close()
        cluster.wait(timeout=60)
