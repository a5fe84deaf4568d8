"""One rank of verl's FSDP engine with the read-out, outside Ray. Run by test_engine.py; writes what came out.

usage: engine_rank.py JOB.json, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.
"""

import json
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("VERL_PLATFORM", "cpu")
sys.path.append(str(Path(__file__).parents[1] / "unit" / "attention"))

import numpy as np
import torch
from exact_reference import exact_beside, means_over_layers
from flash_stand_in import install, use_flash
from PIL import Image
from tensordict import NonTensorData, NonTensorStack, TensorDict

RESPONSES = (
    "<think> the surface shows a dark scratch near the top left corner </think><answer> yes </answer>",
    "<think> no defect </think><answer> no </answer>",
    "<think> a long look at every part of the image : the texture is even , no stain , no hole , no crack </think>"
    "<answer> no </answer>",
    "no tags at all",
)


def make_samples(model_dir: str, n: int, equal: bool):
    """``n`` samples as verl's agent loop builds them: ids, 4-plane position ids, the processor's image inputs."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.utils import hf_processor

    from realad_verl.data.prompts import hf_messages

    processor = hf_processor(model_dir)
    holder = SimpleNamespace(processor=processor)
    rng = np.random.default_rng(0)
    text = processor.apply_chat_template(hf_messages(), add_generation_prompt=True, tokenize=False)
    samples = []
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 255, (168, 168, 3), dtype=np.uint8))
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        prompt = inputs.pop("input_ids")[0]
        response = processor.tokenizer(RESPONSES[0 if equal else i % len(RESPONSES)], add_special_tokens=False)
        responses = torch.tensor(response["input_ids"])
        input_ids = torch.cat([prompt, responses])
        mask = torch.ones_like(input_ids)
        multi_modal = {k: v for k, v in inputs.items() if k != "attention_mask"}
        position_ids = AgentLoopWorker._compute_position_ids(
            holder,
            input_ids[None],
            mask[None],
            multi_modal,  # type: ignore[arg-type]
        )[0]
        samples.append(
            {
                "image": np.asarray(image),
                "prompts": prompt,
                "responses": responses,
                "input_ids": input_ids,
                "position_ids": position_ids,
                "response_mask": torch.ones_like(responses),
                "loss_mask": torch.ones_like(responses),
                "reward_model": {"ground_truth": ("no", "yes")[i % 2]},
                "multi_modal_inputs": multi_modal,
                "extra_fields": {"reward_extra_info": {"score": 2.0, "format_reward": i / 2}, "realad_cut_tokens": i},
                "extra_info": {"realad_replaced": "why"} if i == 1 else {},
            }
        )
    return samples


def make_batch(samples: list[dict], **flags) -> TensorDict:
    """The batch as a worker receives it from TransferQueue."""
    fields = {}
    for key in samples[0].keys() - {"image"}:
        values = [sample[key] for sample in samples]
        if isinstance(values[0], torch.Tensor):
            fields[key] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
        else:
            fields[key] = NonTensorStack(*values)
    batch = TensorDict(fields, batch_size=len(samples))
    for key, value in flags.items():
        batch[key] = NonTensorData(value)
    return batch


def build_engine(job: dict):
    """The engine as verl's worker would build it, initialized."""
    import torch.distributed as dist
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    dtypes = {"param_dtype": job.get("param_dtype", "fp32"), "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    model_config = HFModelConfig(
        path=job["model"],
        use_remove_padding=job.get("packed", False),
        enable_gradient_checkpointing=job.get("checkpointing", False),
        lora_rank=job.get("lora_rank", 0),
        exclude_modules=job.get("exclude", ".*visual.*") if job.get("lora_rank") else None,
        lora={"merge": True} if job.get("merge") else {},
        override_config={"attn_implementation": "sdpa"},
    )
    engine = EngineRegistry.new(
        model_type=job.get("engine", "cgro_language_model"),
        backend="fsdp2",
        model_config=model_config,
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            model_dtype="fp32",
            mixed_precision=dtypes,
            ulysses_sequence_parallel_size=job.get("ulysses", 1),
            fsdp_size=job.get("fsdp_size", -1),
            seed=job.get("seed", 42),
        ),
        optimizer_config=FSDPOptimizerConfig(lr=job.get("lr", 1e-3), total_training_steps=10),
        checkpoint_config=CheckpointConfig(**job.get("checkpoint", {})),
    )
    engine.initialize()
    if job.get("packed"):
        use_flash(engine.module)
    return engine


def run(job: dict) -> dict:
    import torch.distributed as dist

    from realad_verl.verl_ext.repairs import position_ids
    from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request

    engine = build_engine(job)
    rank, dp = engine.get_data_parallel_rank(), engine.get_data_parallel_size()
    samples = make_samples(job["model"], job["n"], job.get("equal", False))
    mine = samples[rank * len(samples) // dp : (rank + 1) * len(samples) // dp]
    flags = {
        "temperature": 1.0,
        "use_remove_padding": job.get("packed", False),
        "use_dynamic_bsz": job.get("dynamic", False),
        "max_token_len_per_gpu": 600,
        "micro_batch_size_per_gpu": job.get("micro", 2),
        "calculate_entropy": True,
        "pad_token_id": engine.model_config.tokenizer.pad_token_id,
    }
    result = {"samples": mine, "weights": None, "dp_rank": rank}
    passes = {"off": None, "on": make_request(job.get("method", {}), detail=True, answer=True)}
    if not job.get("evidence", True):
        passes.pop("on")
    for name, request in passes.items():
        batch = make_batch(mine, **flags, **({REQUEST_KEY: request} if request else {}))
        reads_exactly = exact_beside() if request and job.get("exact") else nullcontext({})
        with engine.eval_mode(), reads_exactly as exact, rows_kept() as rows:
            output = engine.infer_batch(position_ids.rebuild(batch))["model_output"]
        if exact:
            result["rows"] = rows
            result["exact_rows"] = over_ranks(means_over_layers(exact), engine.ulysses_parallel_group)
        result[name] = {key: list(value.unbind()) for key, value in output.items()}
    if job.get("attention"):
        result |= attention_gradient(engine, mine, flags, job)
    if job.get("update"):
        result["weights"] = update(
            engine, mine, flags, result["on" if job.get("evidence", True) else "off"], rank * len(mine), dp
        )
    dist.barrier()
    return result


@contextmanager
def rows_kept():
    """The rows that the evidence of a pass is made of, one tensor a sample that has any."""
    from realad_verl.evidence import EvidenceBuilder

    reduce, kept = EvidenceBuilder.reduce, []

    def keeping(builder, plans, rows):
        kept.extend(rows)
        return reduce(builder, plans, rows)

    EvidenceBuilder.reduce = keeping
    try:
        yield kept
    finally:
        EvidenceBuilder.reduce = reduce


def over_ranks(rows: list[torch.Tensor], group) -> list[torch.Tensor]:
    """The rows as means over the ranks that share the heads of a sample."""
    import torch.distributed as dist

    for row in rows if group is not None else []:
        dist.all_reduce(row, group=group)
        row /= dist.get_world_size(group)
    return rows


def update(engine, samples: list[dict], flags: dict, output: dict, first: int = 0, dp: int = 1) -> dict:
    """One GRPO update as verl's worker does it, with made-up advantages; returns the weights after it.

    ``samples``: this rank's of ``dp`` times as many, from number ``first`` on.
    """
    from functools import partial

    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import response_from_nested

    from realad_verl.verl_ext.repairs import position_ids

    batch = make_batch(samples, **flags, global_batch_size=len(samples) * dp, dp_size=dp)
    log_probs = torch.nested.as_nested_tensor(output["log_probs"], layout=torch.jagged)
    batch["old_log_probs"] = response_from_nested(log_probs, batch["response_mask"])
    advantages = [(first + i - 1.5) * torch.ones(len(s["responses"])) for i, s in enumerate(samples)]
    batch["advantages"] = torch.nested.as_nested_tensor(advantages, layout=torch.jagged)
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=2)
    with engine.train_mode():
        # As the worker does: one sample a rank is a batch of equal lengths.
        engine.train_batch(position_ids.rebuild(batch), loss_function=partial(ppo_loss, config=config))
    return {n: p.full_tensor().detach().clone() for n, p in engine.module.named_parameters()}


def attention_gradient(engine, samples: list[dict], flags: dict, job: dict) -> dict:
    """Maps of two log-prob passes (the first fills the baseline), then the gradient of one update that has no reward.

    The targets are made up, one for each sample and the same on every rank; only their weights are the loss's own.
    """
    from functools import partial

    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    from realad_verl.method.attention_loss_config import AttentionLossConfig
    from realad_verl.verl_ext.repairs import position_ids
    from realad_verl.verl_ext.train.attention import wire as attention_wire
    from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request

    cfg = AttentionLossConfig(**job["attention"])
    maps = []
    for _ in range(2):
        batch = make_batch(samples, **flags, **{REQUEST_KEY: make_request({}, False, cfg)})
        with engine.eval_mode():
            output = engine.infer_batch(position_ids.rebuild(batch))["model_output"]
        maps.append(list(output[attention_wire.MAP].unbind()))
    vectors = []
    for sample, vector, summary in zip(samples, maps[1], output["evidence_summary"].unbind(), strict=True):
        map_P, grid = attention_wire.unpack_map(vector)
        label = int(sample["reward_model"]["ground_truth"] == "yes")
        target = None
        if map_P is not None:
            made_up = torch.linspace(1, 5 + label, len(map_P)) ** 2
            target = attention_wire.Target(made_up / made_up.sum(), grid, int(summary[1]), label)
        vectors.append(attention_wire.pack_target(target))
    request = {attention_wire.LOSS_KEY: attention_wire.make_loss_request(cfg, {})}
    batch = make_batch(samples, **flags, **request, global_batch_size=job["n"], dp_size=1)
    batch[attention_wire.TARGET] = torch.nested.as_nested_tensor(vectors, layout=torch.jagged)
    for name in ("old_log_probs", "advantages"):
        zeros = [torch.zeros(len(sample["responses"])) for sample in samples]
        batch[name] = torch.nested.as_nested_tensor(zeros, layout=torch.jagged)
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=2)
    gradients: dict = {}

    def keep_gradients():
        for name, parameter in engine.module.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.full_tensor().clone()
        return 0.0

    engine.optimizer_step = keep_gradients
    with engine.train_mode():
        output = engine.train_batch(position_ids.rebuild(batch), loss_function=partial(ppo_loss, config=config))
    weights = {n: p.full_tensor().detach().clone() for n, p in engine.module.named_parameters()}
    metrics = {k: float(sum(v.values)) for k, v in output["metrics"].items() if "attention" in k}
    engine.save_checkpoint(job["out"] + ".saved")
    kept = engine._teacher.baselines
    engine._teacher.baselines = {}
    engine._teacher.load(job["out"] + ".saved")
    states = [{grid: each.state_dict() for grid, each in some.items()} for some in (kept, engine._teacher.baselines)]
    return {"maps": maps, "gradients": gradients, "metrics": metrics, "weights": weights, "baselines": states}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(job.get("drawn", 0))
    if job.get("packed"):
        install()
    result = run(job)
    torch.save(result, f"{job['out']}.{os.environ['RANK']}")


if __name__ == "__main__":
    main()
