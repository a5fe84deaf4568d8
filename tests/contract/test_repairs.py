"""Each patch of verl_ext/repairs is still needed: without it, the pinned release shows the fault.

A test that fails here after an upgrade says that the patch of its name can be deleted. ``ELSEWHERE`` names the test of
a fault that takes more than a few lines to show.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext import repairs

TOP = Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in Path(repairs.__file__).parent.glob("*.py") if p.stem != "__init__")
ARMED = repairs.EVERYWHERE + repairs.ON_CPU + repairs.IN_VLLM_ON_CPU

ELSEWHERE = {
    "any_processor": "tests/contract/test_verl_families.py::test_processors_and_prompts_of_every_family",
    "processor_once": "tests/contract/test_verl_families.py::test_processors_and_prompts_of_every_family",
    "logger_flush": "tests/contract/test_separate_async.py::test_setup_of_verl_needs_the_repair",
    "loopback_store": "tests/unit/verl_ext/repairs/test_loopback_store.py::test_where_a_process_group_listens",
    "merged_root": "tests/contract/test_weights.py::test_one_rank",
    "saved_weights": "tests/contract/test_separate_async.py::test_saved_weights_are_a_copy",
}
# name -> (what is done, words of the error it must end with)
FAULTS = {
    "fsdp_engines_on_cpu": (
        """
import verl.workers.engine.fsdp.transformer_impl
from verl.workers.engine.base import EngineRegistry
os.environ["VERL_ENGINE_DEVICE"] = "cpu"
EngineRegistry.get_engine_cls("language_model", "fsdp2")
""",
        "cpu",
    ),
    "gloo_process_group": (
        """
from verl.utils import distributed
distributed.get_device_name, distributed.get_nccl_backend = lambda: "cpu", lambda: "gloo"
os.environ["DIST_INIT_METHOD"] = "tcp://127.0.0.1:0"
distributed.initialize_global_process_group_ray()
""",
        "cpu:gloo,cpu:gloo",
    ),
    "nested_flops": (
        """
from transformers import Glm4vConfig
from verl.utils.flops_counter import FlopsCounter
FlopsCounter(Glm4vConfig()).estimate_flops([100, 200], 1.0)
""",
        "hidden_size",
    ),
    "padding_with_image": (
        """
import torch
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
source = {"prompts": torch.arange(9), "multi_modal_inputs": {"pixel_values": torch.ones(1)}}
template, _ = construct_minimal_padding_template(source, {}, 0)
assert template["multi_modal_inputs"], "no image in the padding"
""",
        "no image in the padding",
    ),
    "position_ids": (
        """
import torch
from tensordict import TensorDict
from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
ids = torch.nested.as_nested_tensor([torch.arange(24).reshape(4, 6)] * 3, layout=torch.jagged)
data = TensorDict({"position_ids": ids}, batch_size=3)
maybe_fix_3d_position_ids(data)
assert int(data["position_ids"].offsets()[-1]) == 3 * 6, "offsets count planes"
""",
        "offsets count planes",
    ),
    "vllm_fork_workers": (
        """
import inspect
from vllm.platforms.cpu import CpuPlatform
source = inspect.getsource(CpuPlatform.check_and_update_config)
assert 'os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"' not in source, "asks for spawn"
""",
        "asks for spawn",
    ),
    "vllm_live_weights": (
        """
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
assert layer.weight.numel(), "the weight is gone"
""",
        "the weight is gone",
    ),
    "vllm_version": ("import importlib.metadata; importlib.metadata.version('vllm')", "vllm"),
}
PROGRAM = """
import json, os, sys
MODEL, faults = json.loads(sys.argv[1])
for name, code in faults.items():
    try:
        exec(code, {"MODEL": MODEL, "os": os})
        ended = "no error"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    print("FAULT" + json.dumps([name, ended]), flush=True)
"""


def test_every_patch_has_an_entry_and_is_armed_once():
    assert sorted([*ELSEWHERE, *FAULTS]) == NAMES
    assert sorted([*ARMED, *repairs.IN_THE_WORKER]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_says_what_breaks_what_it_patches_and_where_it_was_seen(name):
    module = importlib.import_module(f"{repairs.__name__}.{name}")
    assert module.__doc__ and len(module.__doc__.split()) > 20
    assert module.SEEN_IN and all(re.fullmatch(r"[a-z-]+ \d+(\.\d+)+", release) for release in module.SEEN_IN)
    if name in ARMED:
        assert module.TARGET and callable(module.repair)


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_the_test_named_for_a_patch_exists(name):
    path, test = ELSEWHERE[name].split("::")
    assert f"def {test}(" in (TOP / path).read_text()


@pytest.fixture(scope="module")
def ended() -> dict[str, str]:
    """How each of ``FAULTS`` ends in a process without this package's plugin."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_", "VLLM_"))}
    environment |= {"VERL_USE_EXTERNAL_PLUGINS": "none", "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1"}
    faults = json.dumps([str(tiny_model_dir()), {name: code for name, (code, _) in FAULTS.items()}])
    command = [sys.executable, "-c", PROGRAM, faults]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    lines = [line.removeprefix("FAULT") for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert len(lines) == len(FAULTS), done.stderr[-2000:]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_the_release_still_has_the_fault(ended, name):
    assert ended[name] != "no error", f"{name} is no longer needed: delete realad_verl/verl_ext/repairs/{name}.py"
    assert FAULTS[name][1] in ended[name]


def test_the_table_in_the_documents_is_that_of_the_folder():
    text = (TOP / "docs" / "architecture.md").read_text()
    assert sorted(re.findall(r"^\| `repairs/(\w+)` \|", text, re.M)) == NAMES
    for name in NAMES:
        module = importlib.import_module(f"{repairs.__name__}.{name}")
        (row,) = re.findall(rf"^\| `repairs/{name}` \| ([^|]+) \|", text, re.M)
        assert row == (f"`{module.TARGET}`" if name in ARMED else "our worker, each batch"), name
