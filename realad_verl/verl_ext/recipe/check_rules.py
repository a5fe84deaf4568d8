"""Arithmetic of a recipe: batches, parallel sizes, tokens. One function a rule."""

from collections.abc import Iterator

from realad_verl.data.prompts import prompt_text
from realad_verl.errors import UserError
from realad_verl.verl_ext.recipe.data.check_data import data_files_exist
from realad_verl.verl_ext.recipe.data.check_rows import rows_are_usable, temp_folder_is_short, template_agrees
from realad_verl.verl_ext.recipe.model_facts import model_facts
from realad_verl.verl_ext.recipe.problem import Problem, Rule, Setup

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
# A token of English is about four letters; a chat template adds its own.
LETTERS_A_TOKEN, TEMPLATE_TOKENS = 4, 24


COUNTS = (
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    f"{ACTOR}.ppo_mini_batch_size",
    f"{ACTOR}.ulysses_sequence_parallel_size",
    f"{ROLLOUT}.n",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ROLLOUT}.data_parallel_size",
)


def counts_are_positive(s: Setup) -> Iterator[Problem]:
    """Checked before the other rules, which divide by these."""
    for key in COUNTS:
        value = s.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield Problem(key, value, "a whole number >= 1", "set it")


def world_divides(s: Setup) -> Iterator[Problem]:
    if s.n_gpus % s.ulysses:
        yield Problem(
            f"{ACTOR}.ulysses_sequence_parallel_size",
            s.ulysses,
            f"must divide the {s.n_gpus} ranks (trainer.nnodes x trainer.n_gpus_per_node)",
            "choose a divisor of them",
        )
    shard = s.get(f"{ACTOR}.fsdp_config.fsdp_size", -1)
    if shard > 0 and s.n_gpus % shard:
        yield Problem(
            f"{ACTOR}.fsdp_config.fsdp_size", shard, f"must divide the {s.n_gpus} ranks", "use -1, or a divisor of them"
        )


def mini_batch_divides(s: Setup) -> Iterator[Problem]:
    batch, mini = s.config.data.train_batch_size, s.actor.ppo_mini_batch_size
    if mini > batch or batch % mini:
        yield Problem(
            f"{ACTOR}.ppo_mini_batch_size",
            mini,
            f"must divide data.train_batch_size = {batch}; verl fills up with copies that train nothing",
            f"set it to {batch} (one update a step) or a divisor of it",
        )
    if (mini * s.rollout.n) % s.dp_size:
        yield Problem(
            f"{ACTOR}.ppo_mini_batch_size",
            mini,
            f"ppo_mini_batch_size x rollout.n = {mini * s.rollout.n} must be a multiple of the {s.dp_size} "
            "data-parallel groups (ranks / Ulysses size)",
            f"make it a multiple of {s.dp_size} / gcd({s.dp_size}, {s.rollout.n})",
        )


def micro_batches_divide(s: Setup) -> Iterator[Problem]:
    if s.actor.use_dynamic_bsz:
        return
    mini = s.actor.ppo_mini_batch_size * s.rollout.n // s.dp_size
    step = s.step_responses // s.dp_size
    sizes = [(f"{ACTOR}.ppo_micro_batch_size_per_gpu", mini), (f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", step)]
    if s.needs_reference:
        sizes.append(("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", step))
    for key, responses in sizes:
        micro = s.get(key)
        if micro is None:
            yield Problem(key, None, "must be set unless use_dynamic_bsz is on", f"a divisor of {responses}")
        elif micro < 1 or responses % micro:
            yield Problem(key, micro, f"must divide the {responses} responses of a rank", f"a divisor of {responses}")


def deprecated_micro_batches(s: Setup) -> Iterator[Problem]:
    old = ("actor.ppo_micro_batch_size", "rollout.log_prob_micro_batch_size", "ref.log_prob_micro_batch_size")
    for key in (f"actor_rollout_ref.{name}" for name in old):
        if s.get(key) is not None:
            yield Problem(key, s.get(key), "deprecated by verl, counts all GPUs together", f"set {key}_per_gpu")


def dynamic_batches_agree(s: Setup) -> Iterator[Problem]:
    dynamic = s.actor.use_dynamic_bsz
    if s.rollout.log_prob_use_dynamic_bsz != dynamic:
        yield Problem(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz",
            s.rollout.log_prob_use_dynamic_bsz,
            f"must equal {ACTOR}.use_dynamic_bsz = {dynamic}",
            "remove it: it follows the actor's",
        )
    longest = s.config.data.max_prompt_length + s.config.data.max_response_length
    budget = s.actor.ppo_max_token_len_per_gpu * s.ulysses
    if dynamic and budget < longest:
        yield Problem(
            f"{ACTOR}.ppo_max_token_len_per_gpu",
            s.actor.ppo_max_token_len_per_gpu,
            f"one sequence can have {longest} tokens (prompt + response), {budget} fit on {s.ulysses} rank(s)",
            f"at least {-(-longest // s.ulysses)}",
        )


def group_is_a_group(s: Setup) -> Iterator[Problem]:
    if s.rollout.n < 2:
        yield Problem(f"{ROLLOUT}.n", s.rollout.n, "GRPO compares responses to one prompt", "at least 2 (the paper: 8)")
    if s.rollout.temperature <= 0:
        yield Problem(
            f"{ROLLOUT}.temperature", s.rollout.temperature, "equal responses give no advantage", "above 0, as 1.0"
        )


def tensor_parallel_fits(s: Setup) -> Iterator[Problem]:
    key, tp = f"{ROLLOUT}.tensor_model_parallel_size", s.rollout.tensor_model_parallel_size
    pools = (
        [("trainer", s.n_gpus, s.config.trainer.n_gpus_per_node)] if s.get("actor_rollout_ref.hybrid_engine") else []
    )
    if s.rollout.nnodes > 0:
        pools.append(("rollout", s.rollout.nnodes * s.rollout.n_gpus_per_node, s.rollout.n_gpus_per_node))
    for name, gpus, per_node in pools:
        size = tp * s.rollout.data_parallel_size
        if gpus % size:
            yield Problem(key, tp, f"x data_parallel_size must divide the {gpus} GPUs of the {name}", "a divisor")
        elif tp > per_node:
            yield Problem(
                key, tp, f"more than the {per_node} GPUs of a node: every layer talks over the network",
                f"at most {per_node}", "warning"
            )  # fmt: skip
    heads = s.facts.heads if s.facts else None
    if heads and heads % tp:
        yield Problem(key, tp, f"must divide the model's {heads} attention heads", "a divisor of both")


def ulysses_heads_fit(s: Setup) -> Iterator[Problem]:
    if s.ulysses == 1 or s.facts is None:
        return
    key = f"{ACTOR}.ulysses_sequence_parallel_size"
    heads, kv = s.facts.heads, s.facts.kv_heads
    if heads % s.ulysses:
        yield Problem(key, s.ulysses, f"must divide the model's {heads} attention heads", "a divisor of them")
    elif kv % s.ulysses and s.ulysses % kv:
        yield Problem(
            key, s.ulysses, f"must divide, or be a multiple of, the {kv} key-value heads", "1, or such a size"
        )


def tokens_fit(s: Setup) -> Iterator[Problem]:
    data, longest = s.config.data, s.rollout.max_model_len
    total = data.max_prompt_length + data.max_response_length
    if longest is not None and total > longest:
        yield Problem(
            f"{ROLLOUT}.max_model_len",
            longest,
            f"data.max_prompt_length + data.max_response_length = {total} do not fit",
            f"at least {total}",
        )
    positions = s.facts.max_positions if s.facts else None
    if positions and (longest or total) > positions:
        key = f"{ROLLOUT}.max_model_len" if longest else "data.max_response_length"
        yield Problem(key, longest or total, f"the model has {positions} positions", f"at most {positions} in all")
    if data.truncation != "error":
        yield Problem("data.truncation", data.truncation, "cutting a prompt cuts its image tokens", "error")


def image_fits_prompt(s: Setup) -> Iterator[Problem]:
    if s.facts is None or s.facts.image_tokens is None:
        return
    text = len(prompt_text()) // LETTERS_A_TOKEN + TEMPLATE_TOKENS
    needed = s.facts.image_tokens + text
    if needed > s.config.data.max_prompt_length:
        yield Problem(
            "data.max_prompt_length",
            s.config.data.max_prompt_length,
            f"a 420 x 420 image takes {s.facts.image_tokens} tokens of this model, the question about {text}",
            f"at least {needed}, or smaller images (realad prepare --size)",
        )


def model_is_readable(s: Setup) -> Iterator[Problem]:
    try:
        model_facts(s.model.path)
    except UserError as error:
        yield Problem("actor_rollout_ref.model.path", s.model.path, str(error), "a model folder, or a hub id")


def outputs_are_shared(s: Setup) -> Iterator[Problem]:
    folder = s.config.trainer.default_local_dir
    if s.config.trainer.nnodes > 1 and not folder.startswith(("/", "~")):
        yield Problem(
            "trainer.default_local_dir",
            folder,
            "several nodes write checkpoints: a relative folder is another one on each of them",
            "an absolute path that every node sees",
            "warning",
        )


def one_checkpoint_is_none(s: Setup) -> Iterator[Problem]:
    """verl removes the old weights once the new ones are written, before the rest of the new checkpoint is."""
    key = "trainer.max_actor_ckpt_to_keep"
    if s.get(key) == 1:
        yield Problem(key, 1, "a run that dies while saving would have no whole checkpoint left", "2 or more, or null")


def best_step_is_validated_and_saved(s: Setup) -> Iterator[Problem]:
    best = s.get("realad.val.best")
    if best is None:
        return
    if s.get("trainer.test_freq", -1) <= 0:
        key = "trainer.test_freq"
        allowed = f"> 0: realad.val.best = {best} is a metric of validation, which never runs"
        yield Problem(key, s.get(key), allowed, "trainer.test_freq=50, or realad.val.best=null")
    key = f"{ACTOR}.checkpoint.async_save"
    if s.get(key):
        allowed = "the best step is kept as soon as it is validated, when its files may not be written yet"
        yield Problem(key, True, allowed, f"{key}=false, or realad.val.best=null")


def lora_has_no_hf_model(s: Setup) -> Iterator[Problem]:
    """verl saves it with PEFT's names: transformers finds none of them, and fills the model with random numbers."""
    key = f"{ACTOR}.checkpoint.save_contents"
    if s.model.lora_rank > 0 and "hf_model" in s.actor.checkpoint.save_contents:
        allowed = "of a LoRA run verl writes an hf_model whose weights no model loads"
        yield Problem(
            key, list(s.get(key)), allowed, "leave hf_model out: `realad export RUN --out DIR` makes the model"
        )


ARITHMETIC: tuple[Rule, ...] = (
    model_is_readable,
    world_divides,
    mini_batch_divides,
    micro_batches_divide,
    deprecated_micro_batches,
    dynamic_batches_agree,
    group_is_a_group,
    tensor_parallel_fits,
    ulysses_heads_fit,
    tokens_fit,
    image_fits_prompt,
    data_files_exist,
    rows_are_usable,
    template_agrees,
    temp_folder_is_short,
    outputs_are_shared,
    one_checkpoint_is_none,
    best_step_is_validated_and_saved,
    lora_has_no_hf_model,
)
