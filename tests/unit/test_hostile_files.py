"""Files from elsewhere that carry code, and secrets that must not be written down."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from realad_verl.errors import UserError
from realad_verl.localize import Localizer
from realad_verl.recipes_dir import list_recipes
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.job.launch import prepare
from realad_verl.verl_ext.recipe.compose import compose_recipe


@pytest.fixture()
def model(tmp_path) -> Path:
    """The tiny model in a folder of its own, to be made hostile."""
    return Path(shutil.copytree(tiny_model_dir(), tmp_path / "model"))


def ran(tmp_path) -> bool:
    return (tmp_path / "ran").exists()


def test_code_of_a_model_is_not_run(tmp_path, model):
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trust_remote_code"):
        Localizer.from_pretrained(model)
    assert not ran(tmp_path)


def test_trust_is_warned_of(model):
    with pytest.warns(UserWarning, match="code from the repository"):
        Localizer.from_pretrained(model, trust_remote_code=True)


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_weights_are_not_run(tmp_path, model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match="cannot load a model"):
        Localizer.from_pretrained(model)
    assert not ran(tmp_path)
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert ran(tmp_path), "the file does what it was refused for"


def test_the_shipped_weights_are_no_pickle():
    weights = sorted(path.name for path in tiny_model_dir().iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"})
    assert weights == [] and load_file(tiny_model_dir() / "model.safetensors")


@pytest.mark.parametrize("recipe", list_recipes())
def test_no_recipe_trusts_remote_code(recipe):
    config = compose_recipe(recipe)
    assert not config.actor_rollout_ref.model.trust_remote_code
    assert not config.data.get("trust_remote_code", False)


SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "VLLM_API_KEY", "REALAD_PASSWORD", "NCCL_SECRET")


def test_secrets_are_not_handed_to_ray_nor_stored(tmp_path, monkeypatch):
    """Ray's runtime environment is printed by verl and stored in the run folder."""
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cr3t")
    monkeypatch.setenv("WANDB_PROJECT", "open")
    config = compose_recipe("local/cgro_tiny_cpu", [f"trainer.default_local_dir={tmp_path}/run"])
    monkeypatch.setattr(os, "environ", os.environ.copy())  # prepare sets what the job needs in this process
    prepare(config)
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables["WANDB_PROJECT"] == "open" and not set(SECRETS) & set(variables)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"s3cr3t" in path.read_bytes()]


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_local_run_joins_no_other_cluster(tmp_path, monkeypatch, address):
    """Ray by itself joins what it finds on the machine, perhaps another person's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    config = compose_recipe("local/cgro_tiny_cpu", [f"trainer.default_local_dir={tmp_path}/run"])
    prepare(config)
    assert config.ray_kwargs.ray_init.get("address") == (None if address else "local")
