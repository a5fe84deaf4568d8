"""A sweep that is stopped: a real job under the real `wandb agent`, on a Ray that was started before.

W&B's stop is SIGTERM, and SIGKILL 30 s later. The job logs offline, whose file says under which run and sweep.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from jobs import ON_CLUSTER, cluster, descendants, environment, finish, start
from test_training import SMALL
from wandb_stub import Stub

from realad_verl.recipes_dir import shipped_recipes
from realad_verl.verl_ext.run_folder.checkpoints import last_complete

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

RECIPE, GRACE = "local/cgro_attention_tiny_cpu", 30.0
SHIM = """#!/usr/bin/env bash
export WANDB_MODE=offline
exec {python} -m realad_verl.cli "$@"
"""


def test_a_stop_loses_nothing_that_a_checkpoint_held(tmp_path, prepared):
    sweep = yaml.safe_load((shipped_recipes() / "sweeps" / "attention_loss.yaml").read_text())
    settings = [*SMALL, "trainer.total_training_steps=200", "trainer.save_freq=1", "trainer.test_freq=-1"]
    settings.remove("data.train_batch_size=4")  # of which the loss on the attention gets too few normal images
    settings += [f"data.{kind}_files={prepared}/{kind}.parquet" for kind in ("train", "val")]
    shipped = [part for part in sweep["command"] if not part.startswith(("data.", "realad.val.best"))]
    sweep["command"] = [*shipped[:2], RECIPE, *shipped[3:-1], *settings, shipped[-1]]
    point = {name: given["values"][-1] for name, given in sweep["parameters"].items()}
    run = tmp_path / "outputs" / "sweeps" / "run0"

    def two_steps() -> bool:
        return (last_complete(run) or 0) >= 2

    stub = Stub(yaml.safe_dump(sweep), [point], two_steps)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "realad"
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(0o755)
    with cluster() as ray:
        env = {k: v for k, v in environment().items() if k != "WANDB_MODE"} | ON_CLUSTER
        env |= {"RAY_ADDRESS": ray.address, "REALAD_TEST_JOB": str(run)}
        env |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path)}
        env["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = [sys.executable, "-m", "wandb", "agent", "me/realad/sw33p"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        ended = time.monotonic()
        stub.close()
        assert stub.stopped_at is not None, (done.stdout + done.stderr)[-4000:]
        print(f"the agent was done {ended - stub.stopped_at:.0f} s after the stop")
        held = last_complete(run)
        assert held is not None and held >= 2
        # What the job left on the cluster goes by itself, killed or not.
        deadline = time.monotonic() + 120
        while descendants(str(run)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not descendants(str(run))

        # Logged once, by the process on the cluster, as the sweep's run: the file is a log of plain protobuf records.
        (logged,) = tmp_path.rglob("run-*.wandb")
        assert logged.name == "run-run0.wandb" and b"sw33p" in logged.read_bytes()
        parameters = [f"{name}={value}" for name, value in point.items()]
        resume = [*settings, *parameters, f"trainer.total_training_steps={held + 1}"]
        process = start(run, prepared, *resume, resume=True, address=ray.address, recipe=RECIPE)
        again = finish(process, run, 900)
    assert again.returncode == 0, again.stderr[-3000:]
    assert sorted(again.steps()) == list(range(1, held + 2))
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
