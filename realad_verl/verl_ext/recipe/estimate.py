"""The plan of a recipe before anything is started: processes, batch arithmetic, and an estimate of memory and speed.

Everything here is an ESTIMATE from sizes, printed with its formula; none of it was measured on a GPU.
"""

from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig

from realad_verl.verl_ext.recipe.estimate_speed import DTYPE_BYTES, GIB, MIB, Line, speed
from realad_verl.verl_ext.recipe.problem import Setup


@dataclass(frozen=True)
class Plan:
    """Lines in five groups. Memory is per GPU of the trainer; the rollout engine shares it where colocated."""

    processes: list[Line]
    batches: list[Line]
    memory: list[Line]
    disk: list[Line]
    speed: list[Line]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            group: [{key: v for key, v in asdict(x).items() if v is not None} for x in getattr(self, group)]
            for group in ("processes", "batches", "memory", "disk", "speed")
        }

    def text(self) -> str:
        """The plan for a person."""
        parts = []
        for group, lines in (
            ("processes", self.processes),
            ("batches", self.batches),
            ("memory per GPU (estimate)", self.memory),
            ("disk (estimate)", self.disk),
            ("a step (estimate, fast to slow)", self.speed),
        ):
            parts.append(f"{group}:")
            parts += [line.text() for line in lines]
        return "\n".join(parts)


def plan(config: DictConfig) -> Plan:
    """The plan of a composed recipe; no memory, disk and speed where the model's sizes are not known (a hub id)."""
    setup = Setup(config)
    return Plan(_processes(setup), _batches(setup), _memory(setup), _disk(setup), speed(setup))


def _processes(s: Setup) -> list[Line]:
    trainer, rollout = s.config.trainer, s.rollout
    tp = rollout.tensor_model_parallel_size
    separate = (rollout.nnodes or 0) * (rollout.n_gpus_per_node or 0) if s.is_separate else 0
    replicas = (separate or s.n_gpus) // tp
    where = "their own GPUs" if separate else "the trainer's GPUs"
    return [
        Line("actor ranks", s.n_gpus, "", f"{trainer.nnodes} nodes x {trainer.n_gpus_per_node} a node"),
        Line("vLLM replicas", replicas, "", f"{separate or s.n_gpus} GPUs / tensor parallel {tp}, on {where}"),
        Line("agent loop workers", rollout.agent.num_workers, "", "rollout.agent.num_workers"),
        Line("reward workers", s.config.reward.num_workers, "", "reward.num_workers"),
    ]


def _batches(s: Setup) -> list[Line]:
    prompts, n = s.config.data.train_batch_size, s.rollout.n
    mini = s.actor.ppo_mini_batch_size
    micro = s.actor.ppo_micro_batch_size_per_gpu
    lines = [
        Line("responses a step", prompts * n, "", f"train_batch_size {prompts} x n {n}"),
        Line("responses a rank", prompts * n / s.dp_size, "", f"{prompts * n} / {s.dp_size} data-parallel groups"),
        Line("updates a step", prompts / mini, "", f"train_batch_size {prompts} / ppo_mini_batch_size {mini}"),
    ]
    if micro and not s.actor.use_dynamic_bsz:
        per_rank = mini * n / s.dp_size
        formula = f"{mini} x {n} / {s.dp_size} / ppo_micro_batch_size_per_gpu {micro}"
        lines.append(Line("micro-batches an update", per_rank / micro, "", formula))
    return lines


def _memory(s: Setup) -> list[Line]:
    if s.facts is None:
        return []
    sharded, passing = _sharded(s), _passing(s)
    update = sum(line.value for line in (*sharded, *passing))
    fsdp = s.actor.fsdp_config
    stays = [
        line
        for line, moved in zip(sharded, (fsdp.param_offload, True, fsdp.optimizer_offload), strict=True)
        if not moved
    ]
    lines = [
        *sharded,
        *passing,
        Line("peak of an update", update, "GiB", "sum of the above"),
        *_log_probs(s, sharded[0]),
    ]
    if s.is_separate and not s.get("actor_rollout_ref.hybrid_engine"):
        return lines
    names = " + ".join(line.name for line in stays) or "nothing: all offloaded to host memory"
    lines.append(Line("stays while sampling", sum(line.value for line in stays), "GiB", names))
    return lines + _rollout(s)


def _sharded(s: Setup) -> list[Line]:
    """What FSDP shards: weights, gradients, moments, each over the ranks that hold one copy."""
    m = s.facts
    assert m is not None
    size, over = DTYPE_BYTES[s.actor.fsdp_config.get("model_dtype", "fp32")], s.shards
    trained = _trained_parameters(s)
    return [
        Line("weights", m.parameters * size / over / GIB, "GiB", f"{m.parameters:.3g} x {size} B / {over} ranks"),
        Line("gradients", trained * size / over / GIB, "GiB", f"{trained:.3g} trained x {size} B / {over} ranks"),
        Line("AdamW moments", trained * 2 * size / over / GIB, "GiB", f"{trained:.3g} trained x 2 x {size} B / {over}"),
    ]


def _passing(s: Setup) -> list[Line]:
    """What a micro-batch needs while it is computed."""
    m = s.facts
    assert m is not None
    tokens = _micro_tokens(s)
    kept = m.layers if s.model.enable_gradient_checkpointing else m.layers * 16
    lines = [
        Line(
            "activations",
            tokens * m.hidden * 2 * kept / GIB,
            "GiB",
            f"{tokens:,.0f} tokens x hidden {m.hidden} x 2 B x {kept} kept layer tensors",
        ),
        Line("logits", tokens * m.vocabulary * 4 * 2 / GIB, "GiB", f"{tokens:,.0f} x vocabulary {m.vocabulary} x 8 B"),
    ]
    return [*lines, _readout(s)] if s.evidence else lines


def _log_probs(s: Setup, weights: Line) -> list[Line]:
    """What the log-prob forward needs: no gradients, but the logits of a batch that is often larger."""
    m = s.facts
    assert m is not None
    tokens = _log_prob_tokens(s)
    formula = f"{tokens:,.0f} x vocabulary {m.vocabulary} x 6 B (bf16, and fp32 for the entropy)"
    logits = Line("log-prob logits", tokens * m.vocabulary * 6 / GIB, "GiB", formula)
    parts = [weights, logits, *([_readout(s)] if s.evidence else [])]
    names = " + ".join(part.name for part in parts)
    return [logits, Line("peak of log-probs", sum(part.value for part in parts), "GiB", names)]


def _log_prob_tokens(s: Setup) -> float:
    """Tokens of one log-prob micro-batch on one rank."""
    if s.rollout.log_prob_use_dynamic_bsz:
        return s.rollout.log_prob_max_token_len_per_gpu
    longest = s.config.data.max_prompt_length + s.config.data.max_response_length
    return (s.rollout.log_prob_micro_batch_size_per_gpu or 1) * longest / s.ulysses


def _rollout(s: Setup) -> list[Line]:
    """The rollout engine: on the trainer's GPUs, inside ``rollout.gpu_memory_utilization``."""
    m = s.facts
    assert m is not None
    tp, size = s.rollout.tensor_model_parallel_size, DTYPE_BYTES[s.rollout.dtype]
    return [
        Line("rollout weights", m.parameters * size / tp / GIB, "GiB", f"{m.parameters:.3g} x {size} B / tp {tp}"),
        Line(
            "KV cache a 1,000 tokens",
            1000 * 2 * m.layers * m.kv_heads * m.head_dim * size / tp / GIB,
            "GiB",
            f"1000 x 2 x {m.layers} layers x {m.kv_heads} KV heads x {m.head_dim} x {size} B / tp {tp}",
        ),
    ]


def _disk(s: Setup) -> list[Line]:
    """What a checkpoint takes, and those that are kept of a run."""
    m = s.facts
    if m is None:
        return []
    size, copies = DTYPE_BYTES[s.actor.fsdp_config.get("model_dtype", "fp32")], s.n_gpus / s.shards
    trained, contents = _trained_parameters(s), s.actor.checkpoint.save_contents
    alone = s.model.lora_rank and s.get("actor_rollout_ref.actor.checkpoint.save_lora_only")
    saved = trained if alone else m.parameters + (trained if s.model.lora_rank else 0)
    moments = 2 * trained if "optimizer" in contents else 0
    merged = m.parameters * 2 if "hf_model" in contents else 0  # verl's own copy, in bf16
    checkpoint = ((saved + moments) * size * copies + merged) / MIB
    what = f"({saved:.3g} saved + {moments:.3g} moments) x {size} B x {copies:g} copies"
    lines = [Line("a checkpoint", checkpoint, "MiB", what + (" + hf_model in bf16" if merged else ""))]
    if s.config.trainer.save_freq <= 0:
        return lines + [Line("checkpoints of the run", 0, "MiB", "trainer.save_freq: none is saved")]
    kept = s.get("trainer.max_actor_ckpt_to_keep")
    # verl removes the oldest once the new one is written: for a moment there is one more.
    formula = (
        f"({kept} kept + 1 being written) x a checkpoint" if kept else "all kept: a checkpoint x steps / save_freq"
    )
    most = kept + 1 if kept else _saves(s)
    return lines + [Line("checkpoints of the run", checkpoint * most, "MiB", formula)] if most else lines


def _saves(s: Setup) -> int:
    """How often a run of a known number of steps saves; 0 where the data decides."""
    steps = s.get("trainer.total_training_steps", 0)
    return -(-steps // s.config.trainer.save_freq)


def _readout(s: Setup) -> Line:
    bound = s.get("realad.method.readout.max_bytes", 64 << 20)
    image = (s.facts.image_tokens if s.facts else None) or 225
    longest = s.config.data.max_response_length
    rows = _micro_sequences(s) * longest * image * 4
    formula = f"{bound / 2**20:.0f} MiB (readout.max_bytes) + rows: responses x {longest} x {image} x 4 B"
    return Line("read-out", (bound + rows) / GIB, "GiB", formula)


def _trained_parameters(s: Setup) -> float:
    """All parameters, or those of a LoRA of rank r on every linear layer of the language model."""
    m = s.facts
    assert m is not None
    rank = s.model.lora_rank
    if not rank:
        return m.parameters
    qkv = m.hidden + (m.heads + 2 * m.kv_heads) * m.head_dim + 2 * m.hidden
    out = m.heads * m.head_dim + m.hidden
    return rank * m.layers * (qkv + out + 3 * (m.hidden + m.intermediate))


def _micro_sequences(s: Setup) -> int:
    if s.rollout.log_prob_use_dynamic_bsz:
        longest = s.config.data.max_prompt_length + s.config.data.max_response_length
        return max(1, s.rollout.log_prob_max_token_len_per_gpu * s.ulysses // longest)
    return s.rollout.log_prob_micro_batch_size_per_gpu or s.actor.ppo_micro_batch_size_per_gpu or 1


def _micro_tokens(s: Setup) -> float:
    """Tokens of one micro-batch on one rank."""
    if s.actor.use_dynamic_bsz:
        return s.actor.ppo_max_token_len_per_gpu
    longest = s.config.data.max_prompt_length + s.config.data.max_response_length
    return (s.actor.ppo_micro_batch_size_per_gpu or 1) * longest / s.ulysses
