"""The shipped sweep files under the real `wandb agent`, W&B's side of it a stub on the loopback address.

`realad` is the real command with --dry-run: it composes, checks and plans what the agent asks for, and starts nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import yaml
from omegaconf import OmegaConf
from wandb_stub import Stub

from realad_verl.recipes_dir import shipped_recipes
from realad_verl.verl_ext.recipe.compose import compose_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]
SWEEPS = sorted((shipped_recipes() / "sweeps").glob("*.yaml"))

REALAD = """#!{python}
import json, os, subprocess, sys
done = subprocess.run([{python!r}, "-m", "realad_verl.cli", *sys.argv[1:], "--dry-run"])
names = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
with open({seen!r}, "a") as file:
    given = {{name: os.environ.get(name) for name in names}}
    file.write(json.dumps({{"argv": sys.argv[1:], "code": done.returncode, "env": given}}) + "\\n")
sys.exit(done.returncode)
"""


def two_points(sweep: dict) -> list[dict]:
    """The first and the last value of every parameter."""
    edges = [
        lambda p: p["values"][0] if "values" in p else p["min"],
        lambda p: p["values"][-1] if "values" in p else p["max"],
    ]
    return [{name: pick(given) for name, given in sweep["parameters"].items()} for pick in edges]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_runs_the_sweep(tmp_path, prepared, path):
    sweep, seen = yaml.safe_load(path.read_text()), tmp_path / "seen.jsonl"
    points = two_points(sweep)
    stub = Stub(path.read_text(), points)
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "realad"
    shim.write_text(REALAD.format(python=sys.executable, seen=str(seen)))
    shim.chmod(0o755)
    (tmp_path / "data").symlink_to(prepared)
    env = {k: v for k, v in jobs.environment().items() if k != "WANDB_MODE"} | {
        "WANDB_BASE_URL": stub.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_DIR": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "wandb", "agent", "me/realad/sw33p"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1000)
    stub.close()
    assert seen.exists(), done.stderr[-3000:]
    runs = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [run["code"] for run in runs] == [0, 0], done.stderr[-3000:]
    for number, (run, point) in enumerate(zip(runs, points, strict=True)):
        check_point(run, point, number, tmp_path, sweep)


def check_point(run: dict, point: dict, number: int, folder: Path, sweep: dict) -> None:
    assert run["env"]["WANDB_RUN_ID"] == f"run{number}" and run["env"]["WANDB_SWEEP_ID"] == "sw33p"
    assert run["argv"][:2] == ["train", sweep["command"][2]]
    os.environ["WANDB_RUN_ID"] = f"run{number}"  # as in the agent's process: the run folder is named after it
    try:
        config = compose_recipe(run["argv"][1], run["argv"][2:])
        assert str(config.trainer.default_local_dir).endswith(f"outputs/sweeps/run{number}")
    finally:
        del os.environ["WANDB_RUN_ID"]
    for name, value in point.items():
        assert OmegaConf.select(config, name) == value, name
    # The metric that the sweep looks at is one of validation, and the recipe validates.
    assert sweep["metric"]["name"] == "val/best" and config.realad.val.best and config.trainer.test_freq > 0
