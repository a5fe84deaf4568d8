"""The watchdog frees a main thread that waits in ``ray.get``, as the launcher of every run does."""

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
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
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


def test_a_launcher_that_waits_for_ray_is_freed(tmp_path):
    env = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "freed 'sampling responses' of step 2 took longer than" in done.stdout and "True" in done.stdout
    assert "ray::" in (tmp_path / "stacks.txt").read_text()
