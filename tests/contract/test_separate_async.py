"""What the separate_async trainer needs of verl, mended and not, and weights over gloo between real processes.

Each fault is shown without the repair first: a test that fails there says that the release no longer needs it.
"""

import os
import subprocess
import sys

import pytest


def python(code: str, *arguments: str, plugins: str = "auto") -> subprocess.CompletedProcess:
    """``code``, or the file of that name, in a process of its own, with this package's plugin or without any."""
    left = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_", "RAY_"))}
    env = left | {"OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"VERL_PLATFORM": "cpu"} if plugins == "auto" else {"VERL_USE_EXTERNAL_PLUGINS": plugins}
    run = [code] if code.endswith(".py") else ["-c", code]
    command = [sys.executable, *run, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)


# verl's own _setup, its collaborators replaced by what they leave behind.
SETUP = """
import sys
from types import SimpleNamespace
import verl.trainer.ppo.v1
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import trainer_base, trainer_separate_async as module

hybrid = sys.argv[1] == "True"
def base_setup(self):
    self.llm_server_manager = SimpleNamespace(rollout_replicas=["hybrid"] * hybrid, server_addresses=[])
    self.actor_rollout_wg = object()
trainer_base.PPOTrainer._setup = base_setup
standalone = SimpleNamespace(get_replicas=lambda: ["standalone"], server_addresses=[])
module.LLMServerManager = SimpleNamespace(create=lambda config, start_rank: standalone)
module.CheckpointEngineManager = lambda config, actor_wg, replicas: SimpleNamespace(replicas=replicas)
module.PPOTrainerSeparateAsync.add_replicas_to_balancer = lambda self: None
rollout = {"prometheus": {"enable": False}, "checkpoint_engine": {
    "_target_": "verl.workers.config.CheckpointEngineConfig", "backend": "gloo"}}
trainer = module.PPOTrainerSeparateAsync.__new__(module.PPOTrainerSeparateAsync)
trainer.config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
trainer._enable_hybrid_replicas = hybrid
trainer._setup()
print("MODE", trainer.current_mode.value, trainer.standalone_checkpoint_manager.replicas)
"""


@pytest.mark.parametrize(("hybrid", "mode"), [(False, "trainer"), (True, "rollout")])
def test_setup_of_verl(hybrid, mode):
    done = python(SETUP, str(hybrid))
    assert f"MODE {mode} ['standalone']" in done.stdout, done.stderr[-2000:]


def test_setup_of_verl_needs_the_repair():
    done = python(SETUP.replace('"backend": "gloo"', '"backend": "naive"'), "False", plugins="none")
    assert done.returncode == 1 and "TypeError" in done.stderr and "flush" in done.stderr, done.stderr[-2000:]


SAVED = """
import torch, verl
from torch.distributed.fsdp import fully_shard
from verl.utils.fsdp_utils import fsdp2_sharded_load_from_cpu as load, fsdp2_sharded_save_to_cpu as save
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
mesh = torch.distributed.init_device_mesh("cpu", (1,))
model = torch.nn.Linear(3, 3)
fully_shard(model, mesh=mesh)
before = [p.full_tensor().clone() for p in model.parameters()]
state = save(model)
with torch.no_grad():
    for parameter in model.parameters():
        parameter += 1
load(model, *state)
print("RESTORED", all(torch.equal(p.full_tensor(), b) for p, b in zip(model.parameters(), before)))
"""


@pytest.mark.parametrize(("plugins", "restored"), [("auto", True), ("none", False)])
def test_saved_weights_are_a_copy(plugins, restored):
    done = python(SAVED, plugins=plugins)
    assert f"RESTORED {restored}" in done.stdout, done.stderr[-2000:]


# Two trainer ranks, of which one sends, and two rollout processes.
GLOO = """
import asyncio, sys, torch, multiprocessing as mp

def weights():
    torch.manual_seed(0)
    yield "dense", torch.randn(70, 30)
    yield "transposed", torch.randn(4, 6).T
    yield "half", torch.randn(5).bfloat16()
    yield "scalar", torch.tensor(3)
    yield "empty", torch.zeros(0, 4)

def work(side, index, to_parent, from_parent):
    import verl
    from realad_verl.verl_ext.cpu.gloo_engine import GlooCheckpointEngine as Engine
    engine = Engine(bucket_size=1 << 20, is_master=(side, index) == ("actor", 0), timeout_s=60)
    for _ in range(2):  # a group is built for each sync
        to_parent.send(engine.prepare())
        metadata = from_parent.recv()
        kwargs = Engine.build_topology(2, 2, metadata)[side == "rollout"]
        engine.init_process_group(**{k: v[index] for k, v in kwargs.items()})
        if side == "actor":
            walked = []
            seen = ((walked.append(n), (n, w))[1] for n, w in weights())
            to_parent.send((asyncio.run(engine.send_weights(seen)), walked))
        else:
            async def collect():
                return {n: w async for n, w in engine.receive_weights()}
            got, want = asyncio.run(collect()), dict(weights())
            same = {n: torch.equal(got[n], want[n]) and got[n].dtype == want[n].dtype for n in want}
            to_parent.send((same, sorted(got) == sorted(want)))
        from_parent.recv()
        engine.finalize()

def main():
    ctx, people = mp.get_context("spawn"), []
    for side in ("actor", "rollout"):
        for index in range(2):
            ours, theirs = ctx.Pipe()
            process = ctx.Process(target=work, args=(side, index, theirs, theirs), daemon=True)
            process.start()
            people.append(ours)
    for _ in range(2):
        metadata = [p.recv() for p in people]
        [p.send(metadata) for p in people]
        results = [p.recv() for p in people]
        [p.send(None) for p in people]
        (sent, walked), (none, also), *received = results
        names = [n for n, _ in weights()]
        assert sent == {"weight_sync/tensors": 5.0} and none == {} and walked == also == names, results
        assert all(all(same.values()) and complete for same, complete in received), received
    print("ARRIVED")

if __name__ == "__main__":
    main()
"""


def test_weights_over_gloo(tmp_path):
    (tmp_path / "gloo.py").write_text(GLOO)
    done = python(str(tmp_path / "gloo.py"))
    assert "ARRIVED" in done.stdout, done.stderr[-3000:]
