"""verl's own FSDP engines, registered for cuda and npu, also serve cpu; the reference engine pins no memory.

Without the first, plain GRPO finds no engine on CPU. Without the second a forward-only engine (reference model) dies
with "Found no NVIDIA driver", since FSDP2's offload policy pins by default in verl.
"""

import inspect
from typing import Any

TARGET = "verl.workers.engine.fsdp.transformer_impl"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Register ``module``'s engines for cpu and patch its ``CPUOffloadPolicy`` (verl's transformer_impl)."""
    from verl.workers.engine.base import EngineRegistry

    backends = ["fsdp", "fsdp2"]
    EngineRegistry.register(model_type="language_model", backend=backends, device="cpu")(module.FSDPEngineWithLMHead)
    EngineRegistry.register(model_type="value_model", backend=backends, device="cpu")(module.FSDPEngineWithValueHead)
    original = module.CPUOffloadPolicy
    assert "pin_memory" in inspect.signature(original).parameters, "FSDP2's CPUOffloadPolicy lost pin_memory"
    module.CPUOffloadPolicy = lambda pin_memory=False: original(pin_memory=False)
