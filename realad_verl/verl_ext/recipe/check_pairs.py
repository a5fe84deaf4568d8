"""Settings of a recipe that must agree, and pairs that do not work together. One function a rule."""

import re
from collections.abc import Iterator

from realad_verl.backbones import BACKBONES, TRAINABLE
from realad_verl.errors import UserError
from realad_verl.verl_ext.names import AGENT_LOOP, ENGINE, SEEDED_AGENT_LOOP, TRAINERS
from realad_verl.verl_ext.recipe.problem import Problem, Rule, Setup
from realad_verl.verl_ext.settings import RealadSettings

ACTOR = "actor_rollout_ref.actor"
MODEL = "actor_rollout_ref.model"
ROLLOUT = "actor_rollout_ref.rollout"
REWARD_FN = "reward.custom_reward_function"
OUR_REWARD = "pkg://reward_fns.compose"
VERL_TRAINERS = ("sync", "colocate_async", "separate_async")
FLASH = ("flash_attention_2", "flash_attention_3")
READABLE = ("eager", "sdpa", *FLASH)


def realad_section(s: Setup) -> Iterator[Problem]:
    try:
        RealadSettings.from_config(s.config)
    except UserError as error:
        yield Problem("realad", "(see the message)", str(error), "correct it")


def trainer_exists(s: Setup) -> Iterator[Problem]:
    key, known = "trainer.v1.trainer_mode", (*TRAINERS, *VERL_TRAINERS)
    if s.trainer_mode not in known:
        yield Problem(key, s.trainer_mode, f"one of {', '.join(known)}", "cgro_sync")
    if not s.config.trainer.use_v1:
        yield Problem("trainer.use_v1", False, "CGRO lives in verl's v1 trainers", "trainer.use_v1=true")


def consistency_has_a_trainer(s: Setup) -> Iterator[Problem]:
    weight = s.get("realad.w_cons", 0)
    if weight and not s.is_cgro:
        yield Problem(
            "realad.w_cons",
            weight,
            f"trainer.v1.trainer_mode = {s.trainer_mode} pays no consistency reward",
            f"trainer.v1.trainer_mode=cgro_{s.trainer_mode}, or realad.w_cons=0",
        )


def trainer_agrees(s: Setup) -> Iterator[Problem]:
    if not s.is_cgro:
        return
    if s.config.algorithm.adv_estimator != "grpo":
        yield Problem(
            "algorithm.adv_estimator", s.config.algorithm.adv_estimator, "CGRO is GRPO with another reward", "grpo"
        )
    if s.evidence and s.model.model_type != ENGINE:
        yield Problem(
            f"{MODEL}.model_type", s.model.model_type, "this engine reads no attention", f"{ENGINE} (the base's value)"
        )


def strategy_is_read(s: Setup) -> Iterator[Problem]:
    for key in (f"{ACTOR}.strategy", "actor_rollout_ref.ref.strategy"):
        if s.get(key) != "fsdp2":
            yield Problem(
                key, s.get(key), "the read-out is built for fsdp2 (verl is retiring fsdp; megatron hides attention)",
                "fsdp2"
            )  # fmt: skip


def reward_agrees(s: Setup) -> Iterator[Problem]:
    path = s.get(f"{REWARD_FN}.path")
    if path is None:
        yield Problem(
            f"{REWARD_FN}.path", None, "verl's built-in rewards know no anomaly data", f"{OUR_REWARD}, or your own"
        )
    if path != OUR_REWARD:
        return
    kwargs = s.get(f"{REWARD_FN}.reward_kwargs", {})
    for weight in ("w_fmt", "w_acc"):
        if kwargs.get(weight, 1.0) != s.get(f"realad.{weight}"):
            yield Problem(
                f"{REWARD_FN}.reward_kwargs.{weight}",
                kwargs.get(weight, 1.0),
                f"the reward function would pay this, not realad.{weight} = {s.get(f'realad.{weight}')}",
                f"set realad.{weight} only, and leave the base's ${{realad.{weight}}} here",
            )
    for key in kwargs:
        if key not in ("w_fmt", "w_acc", "spans"):
            yield Problem(f"{REWARD_FN}.reward_kwargs.{key}", kwargs[key], "allowed: w_fmt, w_acc, spans", "remove it")
    yield from _same_tags(s, kwargs)


def _same_tags(s: Setup, kwargs) -> Iterator[Problem]:
    from realad_verl.method.config import SpanConfig

    try:
        ours, theirs = SpanConfig(**s.get("realad.method.spans", {})), SpanConfig(**(kwargs.get("spans") or {}))
    except (UserError, TypeError):
        return  # realad_section and the reward function's own validation say what is wrong with them
    if ours != theirs:
        yield Problem(
            f"{REWARD_FN}.reward_kwargs.spans",
            kwargs.get("spans"),
            "the reward function would look for other tags than realad.method.spans",
            "reward.custom_reward_function.reward_kwargs.spans='${realad.method.spans}'",
        )


def separate_async(s: Setup) -> Iterator[Problem]:
    """What verl's separate_async trainer asserts at start, said before a node is taken."""
    if not s.is_separate:
        if s.rollout.nnodes > 0:
            yield Problem(
                f"{ROLLOUT}.nnodes", s.rollout.nnodes, "nodes of their own need trainer_mode cgro_separate_async", "0"
            )
        return
    mini, batch = s.actor.ppo_mini_batch_size, s.config.data.train_batch_size
    steps = s.config.trainer.v1.separate_async.parameter_sync_step
    if batch != steps * mini:
        yield Problem(
            "data.train_batch_size",
            batch,
            f"separate_async wants parameter_sync_step x ppo_mini_batch_size = {steps} x {mini}",
            f"{steps * mini}",
        )
    if s.rollout.nnodes < 1 or s.rollout.n_gpus_per_node < 1:
        yield Problem(
            f"{ROLLOUT}.nnodes", s.rollout.nnodes, "separate_async samples on nodes of their own", "at least 1"
        )
    backend = s.get(f"{ROLLOUT}.checkpoint_engine.backend")
    if backend == "naive":
        yield Problem(f"{ROLLOUT}.checkpoint_engine.backend", backend, "cannot reach other nodes", "nccl")


def hybrid_engine(s: Setup) -> Iterator[Problem]:
    if not s.get("actor_rollout_ref.hybrid_engine") and not s.is_separate:
        yield Problem(
            "actor_rollout_ref.hybrid_engine", False, "only separate_async samples elsewhere", "true (the default)"
        )


def packing(s: Setup) -> Iterator[Problem]:
    attention = s.get(f"{MODEL}.override_config.attn_implementation", "flash_attention_2")
    key = f"{MODEL}.override_config.attn_implementation"
    packed = s.model.use_remove_padding
    if s.evidence and attention not in READABLE:
        yield Problem(key, attention, f"cannot be read; readable: {', '.join(READABLE)}", "sdpa or flash_attention_2")
    elif packed and attention not in FLASH:
        yield Problem(
            f"{MODEL}.use_remove_padding",
            packed,
            f"packed sequences need flash attention, not {attention}",
            f"{MODEL}.use_remove_padding=false, or remove {key}",
        )
    if s.ulysses > 1 and not packed:
        yield Problem(
            f"{ACTOR}.ulysses_sequence_parallel_size",
            s.ulysses,
            f"Ulysses splits packed sequences, {MODEL}.use_remove_padding is false",
            f"{MODEL}.use_remove_padding=true, or a size of 1",
        )
    if s.get(f"{ACTOR}.pad_to_length") and not packed:
        yield Problem(f"{ACTOR}.pad_to_length", True, "pads packs; use_remove_padding is false", "remove it")


def cpu_device(s: Setup) -> Iterator[Problem]:
    if s.config.trainer.device != "cpu":
        return
    attention = s.get(f"{MODEL}.override_config.attn_implementation", "flash_attention_2")
    if attention in FLASH:
        key = f"{MODEL}.override_config.attn_implementation"
        yield Problem(key, attention, "flash-attn has no CPU kernels (trainer.device = cpu)", f"+{key}=sdpa")
    for part in ("actor", "ref"):
        key = f"actor_rollout_ref.{part}.fsdp_config"
        if s.get(f"{key}.use_torch_compile"):
            yield Problem(f"{key}.use_torch_compile", True, "not used on cpu: compiling outlasts the run", "false")
    if s.get(f"{ROLLOUT}.enable_sleep_mode", True) or s.rollout.free_cache_engine:
        yield Problem(
            f"{ROLLOUT}.free_cache_engine",
            s.rollout.free_cache_engine,
            "vLLM's sleep mode needs a GPU",
            "free_cache_engine: false and enable_sleep_mode: false, as in local/cgro_tiny_cpu",
        )


def evidence_pairs(s: Setup) -> Iterator[Problem]:
    """What the read-out does not work with, and what costs it a forward."""
    if not s.evidence:
        return
    if s.actor.use_prefix_grouper:
        fix = f"{ACTOR}.use_prefix_grouper=false, or realad.evidence=false with realad.w_cons=0"
        yield Problem(f"{ACTOR}.use_prefix_grouper", True, "shares prompts between rows: no row to read", fix)
    if s.rollout.multi_turn.enable:
        yield Problem(f"{ROLLOUT}.multi_turn.enable", True, "evidence is of one response to one image", "false")
    loop = s.rollout.agent.default_agent_loop
    if loop not in ("single_turn_agent", AGENT_LOOP, SEEDED_AGENT_LOOP):
        fix = f"{AGENT_LOOP} (the base's value), or verl's single_turn_agent"
        yield Problem(f"{ROLLOUT}.agent.default_agent_loop", loop, "evidence is of one response", fix)
    if s.get("algorithm.rollout_correction.bypass_mode"):
        yield Problem(
            "algorithm.rollout_correction.bypass_mode",
            True,
            "verl then skips the log-prob forward that the read-out rides on",
            "fine as it is: the evidence gets a forward of its own, which costs what bypass mode saves",
            "warning",
        )
    if s.get(f"{MODEL}.use_fused_kernels"):
        yield Problem(f"{MODEL}.use_fused_kernels", True, "not tried with the read-out", "false", "warning")
        if s.get("trainer.test_freq", -1) > 0 and s.get("realad.val.evidence", True):
            allowed = "makes no logits, which P(yes) of validation (val/image_auroc) is read from"
            yield Problem(f"{MODEL}.use_fused_kernels", True, allowed, "false, or realad.val.evidence=false")


def backbone_is_known(s: Setup) -> Iterator[Problem]:
    if s.facts and s.facts.model_type not in BACKBONES:
        yield Problem(
            f"{MODEL}.path",
            s.model.path,
            f"model_type '{s.facts.model_type}' has no backbone entry; known: {', '.join(sorted(BACKBONES))}",
            "one of these, or add a family (docs/backbones.md)",
        )
    elif s.facts and (reason := BACKBONES[s.facts.model_type].untrainable):
        yield Problem(
            f"{MODEL}.path",
            s.model.path,
            f"'{s.facts.model_type}' localizes but does not train: {reason}; trainable: {', '.join(TRAINABLE)}",
            "a model of one of these families",
        )
    elif s.facts and (unknown := BACKBONES[s.facts.model_type].not_run):
        fix = "a family that was trained (docs/backbones.md), or watch training/rollout_actor_probs_pearson_corr"
        yield Problem(f"{MODEL}.path", s.model.path, f"'{s.facts.model_type}': {unknown}", fix, "warning")
    if s.facts and s.facts.model_type == "qwen3_vl" and s.config.data.image_patch_size != 16:
        yield Problem("data.image_patch_size", s.config.data.image_patch_size, "Qwen3-VL has patches of 16", "16")
    if s.model.trust_remote_code:
        yield Problem(
            f"{MODEL}.trust_remote_code",
            True,
            "runs code from the model's repository, whose attention the read-out may not find",
            "false, with a checkpoint in the Transformers format (often named -hf)",
            "warning",
        )


def lora_reaches_the_rollout(s: Setup) -> Iterator[Problem]:
    """LoRA where the recipe means it to be: names that exist, and none that the rollout would leave out."""
    family = s.facts.model_type if s.facts else ""
    if s.model.lora_rank <= 0 or s.model.target_modules != "all-linear" or family not in BACKBONES:
        return
    beside, key, excluded = BACKBONES[family].beside, f"{MODEL}.exclude_modules", s.model.exclude_modules
    everything = f".*({'|'.join(beside)}).*"
    if excluded and not any(name in excluded for name in beside):
        yield Problem(key, excluded, f"names nothing of '{family}', which has {', '.join(beside)}", f"'{everything}'")
        return
    # vLLM applies LoRA to the language model only: other adapters must be merged on the way, or left out.
    inside = [f"model.{name}.layers.0.linear" for name in beside]
    open_layers = [name for name in inside if not (excluded and re.fullmatch(excluded, name))]
    if open_layers and not s.get(f"{MODEL}.lora.merge"):
        yield Problem(
            key,
            excluded,
            f"LoRA on {open_layers[-1].split('.')[1]} would be trained but not sampled with: vLLM adapts language "
            "layers only",
            f"{MODEL}.lora.merge=true, or exclude_modules='{everything}'",
        )


def frozen_vision(s: Setup) -> Iterator[Problem]:
    if s.actor.freeze_vision_tower:
        yield Problem(
            f"{ACTOR}.freeze_vision_tower",
            True,
            "verl 0.9.1 does not act on it: the vision encoder would train",
            "false; LoRA with exclude_modules freezes the vision encoder (paper/qwen2_5_vl_7b_lora)",
        )


PAIRS: tuple[Rule, ...] = (
    realad_section,
    trainer_exists,
    consistency_has_a_trainer,
    trainer_agrees,
    strategy_is_read,
    reward_agrees,
    separate_async,
    hybrid_engine,
    packing,
    cpu_device,
    evidence_pairs,
    backbone_is_known,
    lora_reaches_the_rollout,
    frozen_vision,
)
