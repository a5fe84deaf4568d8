"""After a sync, every parameter of vLLM equals the actor's weight with its adapter merged by PEFT itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_engine import HERE, _free_port

from realad_verl.tiny import tiny_model_dir

WHOLE = {"save_contents": ["model", "optimizer", "extra"]}
FULL = {"name": "full", "checkpoint": WHOLE}
LORA = {"name": "lora", "lora_rank": 8, "merge": True, "exclude": r".*visual.*"}
MERGER = {"name": "merger", "lora_rank": 8, "merge": True, "exclude": r".*visual\.(blocks|patch_embed).*"}
MERGER["checkpoint"] = {"save_contents": ["model", "hf_model"]}
ADAPTER = MERGER | {"name": "adapter", "checkpoint": WHOLE | {"save_lora_only": True}}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "VERL_PLATFORM": "cpu"}


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VERL_", "VLLM_"))}
    return kept | ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()} | more


def actors(folder: Path, world: int, **job) -> list[Path]:
    """Train the job's actors on ``world`` ranks; what they sent, and own, after 0, 1 and 3 updates."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {"model": str(tiny_model_dir()), "n": 4, "lr": 0.01, "updates": [0, 1, 3], "out": str(folder / "sent")} | job
    (folder / "job.json").write_text(json.dumps(job))
    environment = _environment(WORLD_SIZE=str(world), LOCAL_RANK="0")
    command = [sys.executable, str(HERE / "weights_rank.py"), str(folder / "job.json")]
    ranks = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}, cwd=HERE) for rank in range(world)]
    try:
        codes = [process.wait(timeout=500) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world
    return sorted(folder.glob("sent.*.pt"))


def compared(folder: Path, files: list[Path], model: str | None = None, dtype: str = "float32") -> dict[str, dict]:
    """Of each file: how many parameters vLLM has, and which of them differ from PEFT's merge."""
    result = folder / "compared.json"
    command = [sys.executable, str(HERE / "weights_vllm.py"), model or str(tiny_model_dir()), dtype, str(result)]
    subprocess.run([*command, *map(str, files)], env=_environment(), cwd=HERE, check=True, timeout=500)
    return json.loads(result.read_text())


def check(found: dict[str, dict], cases: int) -> None:
    assert len(found) == cases
    for name, result in found.items():
        print(name, result["parameters"], f"{result['worst']:.1e}")
        assert not result["off"], (name, result)
        assert result["parameters"] >= 50
    # Not vacuous: the updates moved the weights that were compared.
    for actor in {name.split(".")[1] for name in found}:
        assert len({result["digest"] for name, result in found.items() if name.split(".")[1] == actor}) == 3


def check_exports(folder: Path) -> None:
    """Each checkpoint exported is PEFT's merge of the actor: the same names and values; the adapter loads in PEFT."""
    import torch
    from peft import PeftModel
    from peft_merge import merged_by_peft
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from realad_verl.verl_ext.job.export import export

    runs = sorted(path for path in folder.glob("sent.*") if path.is_dir())
    for run in runs:
        saved = torch.load(f"{run}.3.pt", weights_only=False)
        (run / "config.yaml").write_text(f"actor_rollout_ref: {{model: {{path: {tiny_model_dir()}}}}}")
        merged_by_peft(str(tiny_model_dir()), saved["actor"], saved["own"], run / "truth")
        want = load_file(run / "truth" / "model.safetensors")
        export(run / "global_step_3", run / "out")
        models = {"merged": load_file(run / "out" / "model.safetensors")}
        _, report = AutoModelForImageTextToText.from_pretrained(run / "out", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        if saved["actor"].get("lora_rank"):
            export(run / "global_step_3", run / "peft", adapter=True)
            base = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32)
            PeftModel.from_pretrained(base, run / "peft").merge_and_unload().save_pretrained(run / "by_peft")
            models["adapter"] = load_file(run / "by_peft" / "model.safetensors")
        base = load_file(tiny_model_dir() / "model.safetensors")
        for what, got in models.items():
            assert got.keys() == want.keys() == base.keys()
            assert max((got[name] - value).abs().max().item() for name, value in want.items()) <= 1e-6, (run, what)
            assert sum(not torch.equal(got[name], value.float()) for name, value in base.items()) >= 20
    assert len(runs) >= 2


def test_one_rank(tmp_path):
    """And with either mend taken out the comparison fails: so an upgrade of verl says when they are needless."""
    without = [LORA | MERGER | {"name": f"no_{mend}", "without": mend} for mend in ("merged_root", "weights")]
    for actor in without:
        del actor["checkpoint"]
    found = compared(tmp_path, actors(tmp_path, 1, actors=[FULL, LORA, MERGER, ADAPTER, *without]))
    seen = {name: found.pop(name)["off"] for name in list(found) if name.startswith("sent.no_")}
    check(found, 12)
    check_exports(tmp_path)
    assert not seen["sent.no_merged_root.0.pt"]  # B is zero before the first update
    assert len(seen["sent.no_merged_root.1.pt"]) == 2
    assert all(".merger." in name for name in seen["sent.no_merged_root.1.pt"])
    assert len(seen["sent.no_weights.1.pt"]) > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks(tmp_path):
    files = actors(tmp_path, 2, actors=[FULL, LORA, MERGER, ADAPTER])
    check(compared(tmp_path, files), 12)
    check_exports(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hsdp_and_a_rollout_in_bf16(tmp_path):
    """Two shards, held twice; vLLM rounds PEFT's merge itself, the actor rounds before it sends."""
    files = actors(tmp_path, 4, actors=[FULL, MERGER], fsdp_size=2, dtype="bfloat16")
    check(compared(tmp_path, files, dtype="bfloat16"), 6)
    check_exports(tmp_path)
