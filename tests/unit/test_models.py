"""Folders that somebody who has just trained may hand to ``--model``: each is refused with the command to run."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from realad_verl.errors import UserError
from realad_verl.evaluate.engines import build_engine
from realad_verl.localize import Localizer
from realad_verl.models import load_model
from realad_verl.tiny import tiny_model_dir

FILES = [path for path in tiny_model_dir().iterdir() if path.is_file()]


def model_folder(path, weights):
    """The tiny model's config and processor with ``weights``."""
    path.mkdir(parents=True)
    for file in FILES:
        if file.suffix != ".safetensors":
            shutil.copy(file, path)
    if weights:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def weights():
    return load_file(tiny_model_dir() / "model.safetensors")


def run_folder(path, weights=None):
    """verl's folders of a checkpoint; with ``weights``, as hf_model saves them."""
    model_folder(path / "global_step_2" / "actor" / "huggingface", weights)
    torch.save({}, path / "global_step_2" / "actor" / "model_world_size_1_rank_0.pt")
    return path


@pytest.mark.parametrize("part", ["", "global_step_2", "global_step_2/actor", "global_step_2/actor/huggingface"])
@pytest.mark.parametrize("hf_model", [False, True])
def test_parts_of_a_run(tmp_path, weights, part, hf_model):
    run = run_folder(tmp_path / "run", weights if hf_model else None)
    step = run if part == "" else run / "global_step_2"
    with pytest.raises(UserError, match=f"realad export {step} --out MODEL"):
        Localizer.from_pretrained(run / part)


def test_an_adapter(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()))
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a LoRA adapter.*realad export RUN --out MODEL.*merge_and_unload"):
        Localizer.from_pretrained(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match="config but no weights.*realad export RUN"):
        Localizer.from_pretrained(model_folder(tmp_path / "model", None))


def test_weights_of_a_wrapper(tmp_path, weights):
    """What verl's hf_model writes for a LoRA run: transformers alone loads it, with random weights in every place."""
    folder = model_folder(tmp_path / "model", {f"base_model.model.{name}": value for name, value in weights.items()})
    AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(UserError, match=r"81 missing.*80 unknown, as base_model\.model.*realad export RUN"):
        Localizer.from_pretrained(folder)


def test_one_weight_missing_and_one_of_another_shape(tmp_path, weights):
    less = {name: value for name, value in weights.items() if "layers.0.mlp.up_proj" not in name}
    with pytest.raises(UserError, match="1 missing.*up_proj"):
        load_model(model_folder(tmp_path / "less", less), torch.float32)
    name = next(name for name in weights if "layers.0.mlp.up_proj.weight" in name)
    other = weights | {name: weights[name][:-1].clone()}
    with pytest.raises(UserError):
        load_model(model_folder(tmp_path / "other", other), torch.float32)


def test_a_missing_file(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()))
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    AutoProcessor.from_pretrained(str(tiny_model_dir())).save_pretrained(tmp_path)
    max(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match="cannot load a model"):
        Localizer.from_pretrained(tmp_path)


def test_both_engines_start_from_the_reader(tmp_path):
    """An engine needs a Localizer of the model, so nothing reaches vLLM that was not looked at."""
    folder = str(model_folder(tmp_path / "model", None))
    for engine in ("vllm", "transformers"):
        with pytest.raises(UserError, match="no weights"):
            options = {"batch_size": 1, "gpu_memory": 0.1, "image_size": None}
            build_engine(engine, Localizer.from_pretrained(folder), folder, **options)


def test_tied_weights_are_not_missing(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()))
    config = model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    tied = type(model)(config)
    tied.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(str(tiny_model_dir())).save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    loaded, _ = load_model(tmp_path, torch.float32)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
