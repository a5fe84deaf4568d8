"""One rank of the actor, which trains and hands its weights to the rollout. Run by test_weights.py.

usage: weights_rank.py JOB.json, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment. For each of the
job's actors, after each of its counts of updates, rank 0 writes a file: what was sent, and the module's own weights. An
actor with a ``checkpoint`` saves one at the end, as verl does.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
from engine_rank import build_engine, make_samples, update
from torch.distributed.tensor import DTensor

NAME = "_merged_lora_per_tensor_param"


@contextmanager
def without(mend: str | None) -> Iterator[None]:
    """verl's own code in the place of a mend: what it sends is seen to differ."""
    from unittest.mock import patch

    from verl.utils import fsdp_utils
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from realad_verl.verl_ext.train.engine import EvidenceEngine

    verls = {
        "merged_root": (fsdp_utils, "fsdp_merge_unmerge", fsdp_utils.fsdp_merge_unmerge.__wrapped__),
        "weights": (EvidenceEngine, NAME, getattr(FSDPEngineWithLMHead, NAME)),
    }
    with patch.object(*verls[mend]) if mend else nullcontext():
        yield


def own_weights(engine) -> dict[str, torch.Tensor]:
    """The module's state, gathered, under its own (PEFT's) names."""
    state = engine.module.state_dict()
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for n, v in state.items()}


def run(job: dict, actor: dict) -> None:
    """Train ``actor``, and write down its weights on the way."""
    import torch.distributed as dist

    from realad_verl.verl_ext.train.engine import REQUEST_KEY  # noqa: F401  (registers the engine)

    torch.manual_seed(0)
    engine = build_engine(job | actor)
    engine.rollout_dtype = getattr(torch, job.get("dtype", "float32"))
    rank, dp = engine.get_data_parallel_rank(), engine.get_data_parallel_size()
    samples = make_samples(job["model"], job["n"], False)
    mine = samples[rank * len(samples) // dp : (rank + 1) * len(samples) // dp]
    flags = {"temperature": 1.0, "use_remove_padding": False, "use_dynamic_bsz": False, "max_token_len_per_gpu": 600}
    flags |= {"micro_batch_size_per_gpu": min(2, len(mine)), "calculate_entropy": True}
    flags |= {"pad_token_id": engine.model_config.tokenizer.pad_token_id}
    for step in range(max(job["updates"]) + 1):
        if step in job["updates"]:
            before = own_weights(engine)
            with without(actor.get("without")):
                params, _ = engine.get_per_tensor_param(base_sync_done=True)
                sent = dict(params)  # all of them, kept beyond the merge, as a sender's buffer may
            after = own_weights(engine)
            assert all(torch.equal(value, after[name]) for name, value in before.items()), "the actor is changed"
            if dist.get_rank() == 0:
                torch.save({"sent": sent, "own": before, "actor": actor}, f"{job['out']}.{actor['name']}.{step}.pt")
        if step < max(job["updates"]):
            train(engine, mine, flags)
    if "checkpoint" in actor:
        folder = f"{job['out']}.{actor['name']}/global_step_{step}/actor"
        engine.save_checkpoint(folder, global_step=step)
        if "optimizer" in actor["checkpoint"]["save_contents"]:
            check_resumed(engine, folder, job | actor, mine, flags)
    dist.barrier()


def check_resumed(engine, folder: str, job: dict, samples: list[dict], flags: dict) -> None:
    """One update more, of the actor and of another one that starts from its checkpoint: the same weights, bitwise."""
    torch.manual_seed(1)
    again = build_engine(job)
    again.load_checkpoint(folder, del_local_after_load=False)
    last = own_weights(again)
    for one in (engine, again):
        train(one, samples, flags)
    weights = [own_weights(one) for one in (engine, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()), "not the unbroken run"
    assert sum(not torch.equal(value, last[name]) for name, value in weights[1].items()) >= 20


def train(engine, samples: list[dict], flags: dict) -> None:
    """One update."""
    from engine_rank import make_batch

    from realad_verl.verl_ext.repairs import position_ids

    with engine.eval_mode():
        output = engine.infer_batch(position_ids.rebuild(make_batch(samples, **flags)))["model_output"]
    update(engine, samples, flags, {"log_probs": list(output["log_probs"].unbind())})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import verl  # noqa: F401  (loads the plugin)

    for actor in job["actors"]:
        run(job, actor)


if __name__ == "__main__":
    main()
