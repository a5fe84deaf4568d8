"""The plugin in a process of its own: what is registered, when, and what happens when it is not."""

import json
import os
import subprocess
import sys

import pytest


def _python(code: str, **env) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"} | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment, check=False
    )


REGISTERED = """
import json, verl
from realad_verl.verl_ext import plugin
early = plugin.registered()
import verl.trainer.ppo.v1
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.engine.base import EngineRegistry
from verl.plugin.platform import PlatformRegistry
engines = {m: sorted(map(str, b["fsdp2"])) for m, b in EngineRegistry._engines.items() if "fsdp2" in b}
print("RESULT" + json.dumps(dict(early=early, late=plugin.registered(), trainers=sorted(TRAINER_REGISTRY),
                                 engines=engines, platforms=PlatformRegistry.registered_names())))
"""


def _registered(**env):
    done = _python(REGISTERED, **env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT"))


def test_registers_trainers_and_engine_without_cpu_parts():
    got = _registered()
    assert {"cgro_sync", "cgro_colocate_async", "cgro_separate_async", "sync"} <= set(got["trainers"])
    assert {"cpu", "cuda", "npu"} <= set(got["engines"]["cgro_language_model"])
    # Inert where nobody asked for the CPU.
    assert "cpu" not in got["platforms"] and "cpu" not in got["engines"]["language_model"]
    # Nothing heavy at entry-point time.
    assert got["early"] == ["plugin"]


def test_cpu_platform_is_opt_in():
    got = _registered(VERL_PLATFORM="cpu")
    assert "cpu" in got["platforms"]
    assert {"cpu", "cuda", "npu"} <= set(got["engines"]["language_model"])


def test_a_process_without_the_plugin_refuses():
    code = (
        "import verl\nfrom realad_verl.verl_ext import plugin\nplugin._active.clear()\n"
        "plugin.require_active('engine cgro_language_model')"
    )
    done = _python(code)
    assert done.returncode == 1 and "realad doctor" in done.stderr


DOCTOR = "import sys; sys.argv = ['realad', 'doctor', '--json']; from realad_verl.cli import main; main()"


def test_doctor_is_well():
    done = _python(DOCTOR)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == 0 and report["ok"], done.stdout
    assert {"verl", "plugin", "devices", "ray cluster"} <= {f["name"] for f in report["findings"]}


@pytest.mark.parametrize("policy", ["none", "another_plugin"])
def test_doctor_names_a_plugin_that_verl_does_not_load(policy):
    done = _python(DOCTOR, VERL_USE_EXTERNAL_PLUGINS=policy)
    assert done.returncode == 1 and "VERL_USE_EXTERNAL_PLUGINS" in done.stdout


TRAP = """
from omegaconf import OmegaConf
from realad_verl.verl_ext.recipe.compose import compose_recipe
config = compose_recipe("local/cgro_tiny_cpu", ["data.train_files=x", "data.val_files=x",
                        "trainer.default_local_dir=/tmp/realad_trap", "trainer.v1.trainer_mode={name}"{extra}])
import verl.trainer.ppo.v1 as v1
trainer = v1.get_trainer_cls("{name}")(config)
stock = v1.get_trainer_cls("{stock}")(OmegaConf.merge(config, {{"trainer": {{"v1": {{"trainer_mode": "{stock}"}}}}}}))
assert type(trainer.replay_buffer) is type(stock.replay_buffer), type(trainer.replay_buffer)
assert trainer.trainer_mode == stock.trainer_mode == "{stock}"
keys = ("gen_batch_size", "train_batch_size", "trainer_mode")
print([(k, getattr(trainer.replay_buffer, k, None), getattr(stock.replay_buffer, k, None)) for k in keys])
assert all(getattr(trainer.replay_buffer, k, 0) == getattr(stock.replay_buffer, k, 0) for k in keys)
print("SAME")
"""


@pytest.mark.parametrize("stock", ["sync", "colocate_async"])
def test_trainer_name_does_not_change_the_replay_buffer(stock):
    """verl compares the mode's name to "sync": another name would silently get the asynchronous buffer."""
    code = TRAP.format(name=f"cgro_{stock}", stock=stock, extra="")
    done = _python(code, VERL_PLATFORM="cpu", REALAD_TINY_MODEL="/tmp")
    assert "SAME" in done.stdout, done.stdout[-1000:] + done.stderr[-3000:]
