"""Exports of one-rank checkpoints written as verl's FSDPCheckpointManager does, and of what is none.

Checkpoints of real ranks: tests/contract/test_weights.py.
"""

import json
import shutil

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from realad_verl.calibration import find_calibration, write_baselines
from realad_verl.cli import app
from realad_verl.commands.model_option import resolve_model
from realad_verl.errors import UserError
from realad_verl.localize import Localizer
from realad_verl.method.baseline import Baseline
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.job import export as module
from realad_verl.verl_ext.job.export import export
from realad_verl.verl_ext.run_folder.checkpoints import mark_complete

MERGER = r".*visual\.(blocks|patch_embed).*"
MANIFEST = {"format": "realad-manifest/1", "dataset": "visa", "settings": {"size": 168}}
MANIFEST["files"] = {"train.parquet": {"rows": 372, "sha256": "8cd9"}}
SETTINGS = """
actor_rollout_ref: {{model: {{path: "{base}", exclude_modules: '{merger}'}}}}
realad: {{w_fmt: 1.0, w_acc: 1.0, w_cons: 1.0, method: {{scoring: {{select: both}}}}}}
data: {{train_files: {data}/train.parquet}}
trainer: {{experiment_name: a_run}}
"""


def weights(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.fixture(scope="module")
def trained():
    """The tiny model with an adapter on language and merger whose B is not zero."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=MERGER, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return model


def checkpoint(run, model, lora_only=False, step=2):
    """A run folder with one checkpoint, whole."""
    actor = run / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    state = {k: v for k, v in model.state_dict().items() if "lora_" in k or not lora_only}
    torch.save(state, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    meta = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"}
    (actor / "lora_train_meta.json").write_text(json.dumps(meta))
    model.config.save_pretrained(actor / "huggingface")
    AutoProcessor.from_pretrained(str(tiny_model_dir())).save_pretrained(actor / "huggingface")
    (actor.parent / "data.pt").write_bytes(b"x")
    data = run / "data"
    data.mkdir(exist_ok=True)
    (data / "manifest.json").write_text(json.dumps(MANIFEST))
    text = SETTINGS.format(base=tiny_model_dir(), merger=MERGER, data=data)
    (run / "config.yaml").write_text(text)
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))
    mark_complete(run, step)
    return run


@pytest.fixture(scope="module")
def truth(trained, tmp_path_factory):
    """PEFT's own merge, as transformers saves it."""
    folder = tmp_path_factory.mktemp("truth")
    with torch.no_grad():
        state = trained.state_dict()
        model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32)
        copy = get_peft_model(model, trained.peft_config["default"])
        copy.load_state_dict(state)
        copy.merge_and_unload().save_pretrained(folder)
    return weights(folder)


@pytest.mark.parametrize("lora_only", [False, True])
def test_merged(tmp_path, trained, truth, lora_only, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE", 1_000_000)  # several files, as for a large model
    run = checkpoint(tmp_path / "run", trained, lora_only)
    made = export(run, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    got = weights(tmp_path / "out")
    assert got.keys() == truth.keys() == weights(tiny_model_dir()).keys()
    assert max((got[name] - value).abs().max().item() for name, value in truth.items()) <= 1e-6
    changed = [n for n, value in weights(tiny_model_dir()).items() if not torch.equal(got[n], value.float())]
    assert len(changed) == 23 and any("merger" in name for name in changed)
    assert (made.step, made.parameters) == (2, sum(value.numel() for value in truth.values()))
    assert Localizer.from_pretrained(tmp_path / "out").model.dtype == torch.float32
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "step | 2",
        "LoRA of rank 8",
        "data set visa, images 372, sha256 8cd9, size 168",
        "select: both",
        "w_cons 1.0",
        "transformers:",
    ):
        assert words in card, words
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "out" / "generation_config.json").is_file()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])  # others: test_hub_names.py
def test_families(tmp_path, family):
    """Names and values are those of PEFT's merge as transformers saves it, from the base's own files."""
    tiny = tiny_models.build(family)
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.processor.save_pretrained(tmp_path / "base")
    names = set(weights(tmp_path / "base"))
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=MERGER)
    model = get_peft_model(tiny.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    runs = {}
    for lora_only in (False, True):
        runs[lora_only] = checkpoint(tmp_path / f"run_{lora_only}", model, lora_only)
        (runs[lora_only] / "config.yaml").write_text(f"actor_rollout_ref: {{model: {{path: {tmp_path / 'base'}}}}}")
        export(runs[lora_only], tmp_path / f"out_{lora_only}")
    model.merge_and_unload().save_pretrained(tmp_path / "truth")
    want = weights(tmp_path / "truth")
    for lora_only in runs:
        got = weights(tmp_path / f"out_{lora_only}")
        assert got.keys() == want.keys() == names
        assert max((got[name] - value).abs().max().item() for name, value in want.items()) <= 1e-6


def test_bf16_and_adapter(tmp_path, trained, truth):
    run = checkpoint(tmp_path / "run", trained)
    export(run / "global_step_2" / "actor", tmp_path / "bf16", dtype="bf16")
    config = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert {config["dtype"], config["text_config"]["dtype"]} == {"bfloat16"}
    files = (tmp_path / "bf16" / name for name in ("model.safetensors", "config.json"))
    assert len({file.stat().st_mode for file in files}) == 1
    got = weights(tmp_path / "bf16")
    assert all(torch.equal(got[name], value.bfloat16()) for name, value in truth.items())
    export(run, tmp_path / "peft", adapter=True)
    base = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32)
    PeftModel.from_pretrained(base, tmp_path / "peft").merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = weights(tmp_path / "merged")
    assert max((merged[name] - value).abs().max().item() for name, value in truth.items()) <= 1e-6


def test_model_run_is_exported_once(tmp_path, trained, capsys):
    run = checkpoint(tmp_path / "run", trained, lora_only=True)
    folder = resolve_model(str(run))
    assert folder == str(run / "exported" / "global_step_2") and "once" in capsys.readouterr().err
    made = (run / "exported" / "global_step_2" / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(str(run / "global_step_2")) == folder and "once" not in capsys.readouterr().err
    assert resolve_model(folder) == folder  # a model, whatever its name
    assert (run / "exported" / "global_step_2" / "model.safetensors").stat().st_mtime_ns == made
    shutil.rmtree(run / "global_step_2")
    checkpoint(run, trained)  # another run in the same folder
    assert resolve_model(str(run)) == folder and "once" in capsys.readouterr().err
    assert resolve_model("tiny") == str(tiny_model_dir()) and resolve_model("some/hub-id") == "some/hub-id"


def test_the_runs_calibration_goes_with_the_model(tmp_path, trained):
    run = checkpoint(tmp_path / "run", trained)
    config, folder = run / "config.yaml", tmp_path / "calibration"
    text = config.read_text().replace("select: both}", f"select: both}}, calibration: {folder}")
    config.write_text(text)
    export(run, tmp_path / "without")
    assert find_calibration(tmp_path / "without") is None
    assert "was not there" in (tmp_path / "without" / "README.md").read_text()
    folder.mkdir()
    baseline = Baseline((2, 2), torch.ones(4), torch.tensor([1]), torch.ones(1, 4))
    write_baselines(folder, baseline, MethodConfig(), trained.config)
    (folder / "calibration.yaml").write_text("realad: {method: {scoring: {select: text}}}")
    export(run, tmp_path / "with")
    assert find_calibration(tmp_path / "with") == tmp_path / "with" / "calibration"


def _shard(run):
    return run / "global_step_2" / "actor" / "model_world_size_1_rank_0.pt"


def cut(run):
    _shard(run).write_bytes(_shard(run).read_bytes()[:1000])


def cut_unlisted(run):
    cut(run)
    (run / "global_step_2" / "actor" / "complete.json").unlink()


def no_shard(run):
    (run / "global_step_2" / "actor" / "complete.json").unlink()
    _shard(run).unlink()


def a_rank_missing(run):
    shutil.copy(_shard(run), _shard(run).with_name("model_world_size_2_rank_0.pt"))
    config = run / "global_step_2" / "actor" / "fsdp_config.json"
    config.write_text('{"FSDP_version": 2, "world_size": 2}')


def foreign(run):
    (run / "global_step_2" / "actor" / "fsdp_config.json").unlink()


def a_weight_missing(run):
    state = torch.load(_shard(run))
    del state[next(name for name in state if name.endswith("norm.weight"))]
    torch.save(state, _shard(run))
    mark_complete(run, 2)


def half_an_adapter(run):
    state = torch.load(_shard(run))
    del state[next(name for name in state if "lora_B" in name)]
    torch.save(state, _shard(run))
    mark_complete(run, 2)


def code(run):
    torch.save({"a": print}, _shard(run))
    mark_complete(run, 2)


BAD = {
    cut: "is torn: .*rank_0.pt missing or not of the size",
    cut_unlisted: "is torn, or no model shard",
    no_shard: "is torn: of the shards of 1 ranks",
    a_rank_missing: "is torn: .*rank_1",
    foreign: "no FSDP checkpoint of verl",
    a_weight_missing: "1 weights missing",
    half_an_adapter: "is torn: it holds one of A and B",
    code: "is torn, or no model shard",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__)
def test_torn_or_foreign_is_one_error(tmp_path, trained, damage):
    run = checkpoint(tmp_path / "run", trained)
    damage(run)
    with pytest.raises(UserError, match=BAD[damage]):
        export(run / "global_step_2", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing half-written is left


def test_mistakes(tmp_path, trained):
    run = checkpoint(tmp_path / "run", trained)
    for folder in (tmp_path, tmp_path / "nothing", run / "data"):
        with pytest.raises(UserError, match="no run folder with a whole checkpoint"):
            export(folder, tmp_path / "out")
    with pytest.raises(UserError, match="dtype = 'int8'.*fp32, bf16, fp16"):
        export(run, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match="is not empty"):
        export(run, run)
    shutil.rmtree(run / "global_step_2")
    (run / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="no run folder with a whole checkpoint.*save_freq"):
        resolve_model(str(run))
    checkpoint(run, trained, lora_only=True)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="adapter alone.*config.yaml"):
        export(run, tmp_path / "out")


def test_command(tmp_path, trained):
    run = checkpoint(tmp_path / "run", trained)
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 2
