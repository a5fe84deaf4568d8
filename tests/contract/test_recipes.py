"""Shipped recipes pass their own check, every rule speaks when it is broken, sweeps stay inside the rules."""

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from realad_verl.errors import UserError
from realad_verl.recipes_dir import list_recipes, shipped_recipes
from realad_verl.verl_ext.recipe import check_cluster
from realad_verl.verl_ext.recipe.check import check_config, require_ok
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.recipe.problem import Setup

PAPER, CPU, ASYNC, LONG = (
    "paper/qwen2_5_vl_7b_lora",
    "local/cgro_tiny_cpu",
    "cluster/4x8_async",
    "cluster/ulysses_long",
)
ACTOR, MODEL, ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("actor", "model", "rollout"))
SWEEPS = sorted((shipped_recipes() / "sweeps").glob("*.yaml"))
# Sampled points of a sweep that is not a grid.
POINTS = 8
# Composing takes a third of a second: the quick suite checks every fifth point (of the grid, still every value).
FAST_STRIDE = 5


def _errors(recipe: str, overrides=()) -> list[str]:
    return [str(p) for p in check_config(compose_recipe(recipe, overrides), verl=False) if p.level == "error"]


@pytest.mark.parametrize("recipe", list_recipes())
def test_shipped_recipes_pass(recipe):
    config = compose_recipe(recipe)
    problems = check_config(config, verl=False)
    assert not [str(p) for p in problems if p.level == "error"]
    # A recipe names no data: that alone is warned of, and stops a run.
    assert {p.key for p in problems} == {"data.train_files", "data.val_files"}
    with pytest.raises(UserError, match="data.train_files.*realad prepare"):
        require_ok(config)


# The CPU recipe as slow: the end-to-end tests train it, so verl accepts it there too.
@pytest.mark.parametrize("recipe", [PAPER, pytest.param(CPU, marks=pytest.mark.slow)])
def test_verl_accepts(recipe):
    """In a process of its own: verl picks its platform (cpu or cuda) when it is imported."""
    code = (
        "import json, sys\n"
        "from realad_verl.verl_ext.recipe.check import check_config\n"
        "from realad_verl.verl_ext.recipe.compose import compose_recipe\n"
        "good, bad = compose_recipe(sys.argv[1]), compose_recipe(sys.argv[1])\n"
        "bad.actor_rollout_ref.actor.loss_agg_mode = 'no-such-mode'\n"
        "print(json.dumps([[p.to_dict() for p in check_config(c)] for c in (good, bad)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, recipe], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    good, bad = json.loads(done.stdout.splitlines()[-1])
    assert not [p for p in good if p["level"] == "error"]
    # That verl was asked at all shows in what it alone refuses.
    assert any(p["level"] == "error" and "no-such-mode" in p["allowed"] for p in bad)


# Recipe, overrides that break it, words that one error must hold: the key, what is allowed, the way out.
TAUGHT = "ours/qwen2_5_vl_7b_cgro_attention"
BROKEN = [
    (TAUGHT, ["distillation.enabled=true"], ["distillation.enabled = True", "realad.attention_loss.weight=0"]),
    (TAUGHT, ["realad.attention_loss.power=-1"], ["realad.attention_loss.power", "> 0"]),
    (PAPER, ["trainer.n_gpus_per_node=0"], ["trainer.n_gpus_per_node = 0", ">= 1", "set it"]),
    (PAPER, ["+data.max_promt_length=512"], ["data.max_promt_length", "unknown key", "did you mean data.max_prompt_"]),
    (PAPER, ["custom_reward_function.path=r.py"], ["legacy", "reward.custom_reward_function.path instead"]),
    (LONG, [f"{ACTOR}.ulysses_sequence_parallel_size=3"], ["ulysses_sequence", "divide the 8 ranks", "divisor"]),
    (PAPER, [f"{ACTOR}.fsdp_config.fsdp_size=3"], ["fsdp_size = 3", "divide the 8 ranks", "use -1"]),
    (PAPER, [f"{ACTOR}.ppo_mini_batch_size=5"], ["ppo_mini_batch_size = 5", "train_batch_size = 16", "set it to 16"]),
    (PAPER, ["data.train_batch_size=6", "trainer.nnodes=4"], ["ppo_mini_batch_size", "32 data-parallel", "gcd(32, 8)"]),
    (CPU, [f"{ACTOR}.ppo_micro_batch_size_per_gpu=3"], ["ppo_micro_batch_size_per_gpu = 3", "a divisor of 64"]),
    (CPU, [f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=null"], ["log_prob_micro_batch", "use_dynamic_bsz"]),
    (PAPER, [f"{ACTOR}.ppo_micro_batch_size=8"], ["deprecated by verl", "ppo_micro_batch_size_per_gpu"]),
    (CPU, [f"{ROLLOUT}.log_prob_use_dynamic_bsz=true"], ["log_prob_use_dynamic_bsz", "follows the actor's"]),
    (
        PAPER,
        [f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ppo_max_token_len_per_gpu=1000"],
        ["ppo_max_token_len_per_gpu = 1000", "can have 1536 tokens", "at least 1536"],
    ),
    (PAPER, [f"{ROLLOUT}.n=1"], ["rollout.n = 1", "GRPO compares", "at least 2"]),
    (PAPER, [f"{ROLLOUT}.temperature=0"], ["rollout.temperature", "no advantage", "above 0"]),
    (PAPER, [f"{ROLLOUT}.tensor_model_parallel_size=3"], ["tensor_model_parallel_size = 3", "divide the 8 GPUs"]),
    (PAPER, [f"{ROLLOUT}.tensor_model_parallel_size=8"], ["tensor_model_parallel_size = 8", "28 attention heads"]),
    (LONG, [f"{ACTOR}.ulysses_sequence_parallel_size=8"], ["ulysses", "28 attention heads", "a divisor of them"]),
    (PAPER, ["data.max_response_length=4096"], ["max_model_len = 1536", "= 4608 do not fit", "at least 4608"]),
    (PAPER, [f"{ROLLOUT}.max_model_len=200000"], ["max_model_len", "128000 positions", "at most 128000"]),
    (PAPER, ["data.truncation=left"], ["data.truncation = 'left'", "image tokens", "error"]),
    (PAPER, ["data.max_prompt_length=256"], ["data.max_prompt_length = 256", "takes 225 tokens", "smaller images"]),
    (PAPER, [f"{MODEL}.path=./no_such_model"], ["model.path", "no config.json", "a hub id"]),
    (
        PAPER,
        ["actor_rollout_ref.model.use_fused_kernels=true"],
        ["use_fused_kernels = True", "makes no logits", "realad.val.evidence=false"],
    ),
    (PAPER, ["realad.val.best=pixel_auroc"], ["realad.val.best", "image_auroc"]),
    (PAPER, ["realad.val.best=image_auroc", "trainer.test_freq=-1"], ["test_freq = -1", "never runs", "val.best=null"]),
    (PAPER, ["trainer.max_actor_ckpt_to_keep=1"], ["max_actor_ckpt_to_keep = 1", "dies while saving", "2 or more"]),
    (
        PAPER,
        [f"{ACTOR}.checkpoint.save_contents=[model,hf_model]"],
        ["hf_model", "no model loads", "realad export RUN"],
    ),
    (PAPER, ["data.train_files=no/such.parquet"], ["data.train_files", "no such file", "realad prepare"]),
    (PAPER, ["trainer.v1.trainer_mode=cgro_snyc"], ["trainer_mode = 'cgro_snyc'", "one of cgro_", "Fix: cgro_sync"]),
    (PAPER, ["trainer.use_v1=false"], ["trainer.use_v1", "v1 trainers", "trainer.use_v1=true"]),
    (
        PAPER,
        ["trainer.v1.trainer_mode=sync"],
        ["realad.w_cons", "pays no consistency reward", "trainer_mode=cgro_sync"],
    ),
    (PAPER, ["algorithm.adv_estimator=gae"], ["algorithm.adv_estimator = 'gae'", "Fix: grpo"]),
    (PAPER, [f"{MODEL}.model_type=language_model"], ["model.model_type", "reads no attention", "cgro_language_model"]),
    (PAPER, [f"{ACTOR}.strategy=fsdp"], ["actor.strategy = 'fsdp'", "built for fsdp2", "Fix: fsdp2"]),
    (PAPER, ["reward.custom_reward_function.path=null"], ["custom_reward_function.path", "pkg://reward_fns.compose"]),
    (
        PAPER,
        ["reward.custom_reward_function.reward_kwargs.w_fmt=0.5"],
        ["reward_kwargs.w_fmt = 0.5", "not realad.w_fmt = 1.0", "set realad.w_fmt only"],
    ),
    (
        PAPER,
        ["+reward.custom_reward_function.reward_kwargs.w_cons=1"],
        ["reward_kwargs.w_cons", "allowed: w_fmt, w_acc, spans", "remove it"],
    ),
    (
        PAPER,
        ["realad.method.spans.think_open='<r>'", "reward.custom_reward_function.reward_kwargs.spans=null"],
        ["reward_kwargs.spans", "other tags", "${realad.method.spans}"],
    ),
    (PAPER, ["realad.method.consistency.t=1"], ["realad", "consistency.t", "Fix: correct it"]),
    (PAPER, ["+realad.method.scoring.tau=0.3"], ["realad", "tau", "tau_t"]),
    (PAPER, [f"{ROLLOUT}.nnodes=2"], ["rollout.nnodes = 2", "cgro_separate_async", "Fix: 0"]),
    (ASYNC, ["data.train_batch_size=32"], ["data.train_batch_size = 32", "parameter_sync_step", "Fix: 64"]),
    (ASYNC, [f"{ROLLOUT}.nnodes=0"], ["rollout.nnodes = 0", "nodes of their own", "at least 1"]),
    (ASYNC, [f"{ROLLOUT}.checkpoint_engine.backend=naive"], ["backend = 'naive'", "other nodes", "nccl"]),
    (PAPER, ["actor_rollout_ref.hybrid_engine=false"], ["hybrid_engine", "only separate_async", "true"]),
    (
        PAPER,
        [f"+{MODEL}.override_config.attn_implementation=sdpa"],
        ["use_remove_padding", "need flash attention, not sdpa", "use_remove_padding=false"],
    ),
    (
        CPU,
        [f"{MODEL}.override_config.attn_implementation=flex_attention"],
        ["attn_implementation = 'flex_attention'", "readable: eager, sdpa", "sdpa or"],
    ),
    (
        LONG,
        [f"{MODEL}.use_remove_padding=false"],
        ["ulysses_sequence_parallel_size = 4", "splits packed sequences", "use_remove_padding=true"],
    ),
    (PAPER, [f"{MODEL}.path=google/gemma-3-12b-it"], ["exclude_modules", "names nothing of 'gemma3'", "vision_tower"]),
    (
        CPU,
        [f"{MODEL}.override_config.attn_implementation=flash_attention_2"],
        ["attn_implementation", "no CPU kernels", "=sdpa"],
    ),
    (CPU, [f"{ACTOR}.fsdp_config.use_torch_compile=true"], ["use_torch_compile", "not used on cpu", "false"]),
    (CPU, [f"{ROLLOUT}.free_cache_engine=true"], ["free_cache_engine", "sleep mode needs a GPU", "enable_sleep_mode"]),
    (PAPER, [f"{ACTOR}.use_prefix_grouper=true"], ["use_prefix_grouper", "no row to read", "=false"]),
    (PAPER, [f"{ROLLOUT}.multi_turn.enable=true"], ["multi_turn.enable", "one response to one image", "false"]),
    (
        PAPER,
        [f"{ROLLOUT}.agent.default_agent_loop=tool_agent"],
        ["default_agent_loop = 'tool_agent'", "one response", "single_turn_agent"],
    ),
    ("backbones/qwen3_vl_8b", ["data.image_patch_size=14"], ["data.image_patch_size = 14", "patches of 16", "Fix: 16"]),
    (PAPER, [f"{MODEL}.lora.merge=false"], ["exclude_modules", "not sampled with", "lora.merge=true"]),
    (PAPER, ["algorithm.filter_groups.enable=true"], ["filter_groups.enable", "before R_cons", "realad.w_cons=0"]),
    (ASYNC, [f"{ROLLOUT}.checkpoint_engine.backend=nccll"], ["backend = 'nccll'", "verl has nccl", "Fix: nccl"]),
    (
        "local/cgro_tiny_cpu_async",
        [f"{ROLLOUT}.checkpoint_engine.backend=nccl"],
        ["backend = 'nccl'", "trainer.device = cpu", "cpu.gloo_engine"],
    ),
    (
        PAPER,
        [f"+{ACTOR}.fsdp_config.wrap_policy.transformer_layer_class=[A]"],
        ["unknown key", "transformer_layer_cls_"],
    ),
    (PAPER, [f"{ACTOR}.freeze_vision_tower=true"], ["freeze_vision_tower", "does not act on it", "exclude_modules"]),
]


@pytest.mark.parametrize(("recipe", "overrides", "words"), BROKEN, ids=lambda value: "+".join(map(str, value))[:60])
def test_broken_recipes_are_explained(recipe, overrides, words):
    errors = _errors(recipe, overrides)
    assert any(all(word in error for word in words) for error in errors), errors


# Uses that a rule must let pass: the other side of what it refuses.
VALID = [
    (PAPER, ["algorithm.filter_groups.enable=true", "realad.w_cons=0"]),
    (PAPER, [f"+{ACTOR}.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap=[Qwen2_5_VLDecoderLayer]"]),
    (
        ASYNC,
        [f"{ROLLOUT}.checkpoint_engine.backend=mine", f"{ROLLOUT}.checkpoint_engine.custom_backend_module=my.engine"],
    ),
    (ASYNC, ["actor_rollout_ref.hybrid_engine=true"]),
]


@pytest.mark.parametrize(("recipe", "overrides"), VALID, ids=lambda value: "+".join(map(str, value))[:60])
def test_valid_uses_pass(recipe, overrides):
    assert not _errors(recipe, overrides)


@pytest.mark.parametrize(("batch", "refused"), [(4, False), (8, True)])
def test_a_batch_of_more_rows_than_there_are(tmp_path, batch, refused):
    columns = {"data_source": ["a"] * 6, "prompt": ["p"] * 6, "images": [[]] * 6}
    table = pyarrow.table(columns | {"reward_model": [{"ground_truth": "yes"}] * 6})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    errors = _errors(CPU, [f"data.train_files={tmp_path}/train.parquet", f"data.train_batch_size={batch}"])
    assert refused == any("data.train_batch_size = 8" in e and "6 rows" in e for e in errors), errors


@pytest.mark.parametrize(("free", "warned"), [(1 << 40, False), (1 << 20, True)])
def test_checkpoints_larger_than_the_disk(tmp_path, monkeypatch, free, warned):
    monkeypatch.setattr(check_cluster.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(check_cluster, "_gpu_stack", lambda: True)
    config = compose_recipe(PAPER, [f"trainer.default_local_dir={tmp_path}/run"])
    found = [p for p in check_config(config, verl=False) if p.key == "trainer.max_actor_ckpt_to_keep"]
    assert [p.level for p in found] == ["warning"] * warned


@pytest.mark.parametrize(
    ("stack", "installed", "refused"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_nccl_needs_cupy_on_a_gpu_machine_only(monkeypatch, stack, installed, refused):
    setup = Setup(compose_recipe(ASYNC))
    monkeypatch.setattr(check_cluster, "_gpu_stack", lambda: stack)
    monkeypatch.setattr(check_cluster.importlib.util, "find_spec", lambda _: object() if installed else None)
    problems = list(check_cluster.checkpoint_engine(setup))
    assert refused == any("imports cupy" in p.allowed for p in problems)


@pytest.mark.parametrize(("recipe", "warned"), [("local/cgro_tiny_cpu_async", True), (CPU, False)])
def test_asynchronous_runs_cannot_be_repeated(recipe, warned):
    problems = check_config(compose_recipe(recipe, ["realad.deterministic=true"]), verl=False)
    assert warned == any(p.key == "realad.deterministic" for p in problems)


def test_mistyped_override_does_not_compose():
    with pytest.raises(UserError, match="max_promt_length"):
        compose_recipe(PAPER, ["data.max_promt_length=512"])


def _grid(sweep: dict) -> list[dict]:
    names = list(sweep["parameters"])
    return [
        dict(zip(names, point, strict=True))
        for point in itertools.product(*(p["values"] for p in sweep["parameters"].values()))
    ]


def _sampled(sweep: dict) -> list[dict]:
    """Points that W&B's own sampler proposes, with every bound of every parameter beside them."""
    import sweeps

    np.random.seed(0)  # the sampler draws from numpy's global generator
    runs = [sweeps.next_run(sweep, []) for _ in range(POINTS)]
    points = [{name: given["value"] for name, given in run.config.items()} for run in runs if run is not None]
    edges = [{name: p[edge] for name, p in sweep["parameters"].items()} for edge in ("min", "max")]
    return edges + points


@pytest.mark.parametrize("stride", [FAST_STRIDE, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_points_of_sweeps_pass(path, stride):
    sweep = yaml.safe_load(path.read_text())
    points = _grid(sweep) if sweep["method"] == "grid" else _sampled(sweep)
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points) >= POINTS
    recipe = sweep["command"][2]
    assert sweep["command"][:2] == ["realad", "train"] and recipe in list_recipes()
    for point in points[::stride]:
        overrides = [f"{key}={value}" for key, value in point.items()]
        assert not _errors(recipe, overrides), overrides
