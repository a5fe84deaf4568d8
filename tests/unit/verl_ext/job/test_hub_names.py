"""The names that an export writes: those of published checkpoints, which transformers reads back and vLLM knows."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from realad_verl.verl_ext.job.state import _hub_names

sys.path.append(str(Path(__file__).parents[2]))
import tiny_models

# By what their published checkpoints hold.
PREFIXED = {"gemma3", "llava_next", "llava_onevision", "paligemma"}
MERGED_EXPERTS = {"glm4v_moe", "qwen3_vl_moe"}


@pytest.mark.parametrize("family", sorted(set(tiny_models.FAMILIES) - MERGED_EXPERTS))
def test_exported_names_load_whole(tmp_path, family):
    model = tiny_models.build(family).model
    state = model.state_dict()
    tied = {n for n, _ in model.named_parameters()}
    shapes = {name: value.shape for name, value in state.items() if name in tied or name not in ("lm_head.weight",)}
    hub = _hub_names(model, shapes)
    assert any("vision_tower.vision_model." in name for name in hub) == (family in PREFIXED)
    model.config.save_pretrained(tmp_path)
    save_file({name: state[own].clone() for name, own in hub.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
