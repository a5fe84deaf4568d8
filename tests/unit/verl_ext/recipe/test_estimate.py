"""The plan's arithmetic against numbers worked out by hand, and the base recipe against the method's defaults."""

import json

import pytest
from omegaconf import OmegaConf

from realad_verl.errors import UserError
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.recipe.estimate import GIB, MIB, plan
from realad_verl.verl_ext.recipe.model_facts import KNOWN, model_facts

SEVEN_B = KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"]


def memory(recipe: str, overrides=()) -> dict[str, float]:
    return {line.name: line.value for line in plan(compose_recipe(recipe, overrides)).memory}


def test_base_recipe_spells_out_the_methods_defaults():
    section = OmegaConf.to_container(compose_recipe("cgro").realad.method)
    assert section == json.loads(json.dumps(MethodConfig().to_dict()))  # YAML has lists where dataclasses have tuples


def test_weights_are_divided_by_the_ranks_that_hold_one_copy():
    whole = SEVEN_B.parameters * 4 / GIB
    assert memory("cluster/4x8")["weights"] == pytest.approx(whole / 32)
    # 128 ranks, sharded within a node of 8: each GPU holds an eighth.
    assert memory("cluster/16x8")["weights"] == pytest.approx(whole / 8)


def test_full_fine_tuning_trains_every_weight_and_offloads():
    lines = memory("cluster/full_offload")
    assert lines["gradients"] == pytest.approx(lines["weights"])
    assert lines["AdamW moments"] == pytest.approx(2 * lines["weights"])
    assert lines["stays while sampling"] == 0
    kept = memory("cluster/full_offload", ["actor_rollout_ref.actor.fsdp_config.param_offload=false"])
    assert kept["stays while sampling"] == pytest.approx(lines["weights"])


def test_peak_of_an_update_is_the_sum_of_its_parts():
    lines = memory("paper/qwen2_5_vl_7b_lora")
    parts = ("weights", "gradients", "AdamW moments", "activations", "logits", "read-out")
    assert lines["peak of an update"] == pytest.approx(sum(lines[part] for part in parts))


def test_trainer_of_separate_nodes_holds_no_rollout():
    assert "rollout weights" not in memory("cluster/4x8_async")


def test_sizes_of_a_local_model_are_read():
    facts = model_facts(str(tiny_model_dir()))
    assert facts is not None
    config = json.loads((tiny_model_dir() / "config.json").read_text())["text_config"]
    assert (facts.layers, facts.hidden, facts.heads) == (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
    )
    assert facts.image_tokens == 144  # its processor keeps 168 x 168 pixels: 12 x 12 patches of 14, none merged


def test_unreadable_and_unknown_models(tmp_path):
    assert model_facts("someone/unknown-model") is None
    assert memory("paper/qwen2_5_vl_7b_lora", ["actor_rollout_ref.model.path=someone/unknown-model"]) == {}
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(UserError, match="num_attention_heads"):
        model_facts(str(tmp_path))


def disk(recipe: str, overrides=()) -> dict[str, float]:
    return {line.name: line.value for line in plan(compose_recipe(recipe, overrides)).disk}


def test_a_lora_checkpoint_is_the_adapter_and_its_moments():
    rank, hidden, heads, kv, middle = 16, 3584, 28 * 128, 4 * 128, 18944
    linears = [(hidden, heads), (hidden, kv), (hidden, kv), (heads, hidden), *[(hidden, middle)] * 2, (middle, hidden)]
    trained = 28 * sum(rank * (a + b) for a, b in linears)
    lines = disk("paper/qwen2_5_vl_7b_lora")
    assert lines["a checkpoint"] == pytest.approx(3 * trained * 4 / MIB)
    assert lines["checkpoints of the run"] == pytest.approx(4 * lines["a checkpoint"])
    # Sixteen nodes hold sixteen copies, and each rank saves its own.
    assert disk("cluster/16x8")["a checkpoint"] == pytest.approx(16 * lines["a checkpoint"])


def test_a_whole_checkpoint():
    assert disk("cluster/full_offload")["a checkpoint"] == pytest.approx(3 * SEVEN_B.parameters * 4 / MIB)
    merged = ["actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]"]
    assert disk("cluster/full_offload", merged)["a checkpoint"] == pytest.approx(SEVEN_B.parameters * 6 / MIB)
    every = ["trainer.max_actor_ckpt_to_keep=null", "trainer.total_training_steps=101"]
    one = disk("cluster/full_offload")["a checkpoint"]
    assert disk("cluster/full_offload", every)["checkpoints of the run"] == pytest.approx(3 * one)
    assert disk("cluster/full_offload", ["trainer.save_freq=-1"])["checkpoints of the run"] == 0
