"""With a real Ray: the watchdog frees a main thread that waits in ``ray.get``, as the launcher of every run does, and
nothing of a local Ray outlives the launcher's shutdown, even where its control store has died."""

import os
import subprocess
import sys

PROGRAM = """
import sys, time
from pathlib import Path
import ray
from realad_verl.verl_ext import heartbeat
from realad_verl.verl_ext.watchdog import PhaseTimeout, Watchdog

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
from realad_verl.verl_ext.launch import shut_down_ray

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


def run(program: str, *arguments: str) -> str:
    env = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=240, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_nothing_outlives_a_shutdown_without_control_store():
    assert "left [] True" in run(HEADLESS)


def test_a_launcher_that_waits_for_ray_is_freed(tmp_path):
    said = run(PROGRAM, str(tmp_path))
    assert "freed 'sampling responses' of step 2 took longer than" in said and "True" in said
    assert "ray::" in (tmp_path / "stacks.txt").read_text()
