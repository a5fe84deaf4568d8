"""Weights that verl's separate_async trainer saves are a copy, also where they are in host memory already.

That trainer keeps pi_old, the weights at the start of a step, and restores them for the old log-probs (and so for the
evidence) of every later mini-batch. verl saves each shard by ``.cpu()``, which copies from a GPU. On a CPU, and on a
GPU with ``param_offload``, it is the parameter itself: the update changes what was saved, restoring does nothing, and
old log-probs and evidence come from weights that the responses were never sampled with. Nothing is reported.
"""

import functools
from typing import Any

TARGET = "verl.utils.fsdp_utils"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.fsdp2_sharded_save_to_cpu`` (verl.utils.fsdp_utils)."""
    original = module.fsdp2_sharded_save_to_cpu

    @functools.wraps(original)
    def save(model: Any) -> tuple[dict, Any]:
        state, spec = original(model)
        shards = {name: getattr(p, "_local_tensor", p).data_ptr() for name, p in model.named_parameters()}
        copied = {
            name: (shard.clone() if shard.data_ptr() == shards[name] else shard, layout)
            for name, (shard, layout) in state.items()
        }
        return copied, spec

    module.fsdp2_sharded_save_to_cpu = save
