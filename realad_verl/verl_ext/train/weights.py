"""The actor's weights on their way to vLLM: whole, with LoRA merged, in the precision that the rollout is set to.

What vLLM holds after a sync must be what the actor computes with, or the sampling policy is not the trained one.
"""

# verl's classes are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name, offload_fsdp_model_to_cpu
from verl.utils.model import convert_weight_keys

WRAPPER = "base_model.model."  # what PEFT puts before a module's name
Named = Iterable[tuple[str, Tensor]]


def for_rollout(weights: Named, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """``weights`` as they are sent: what is wider than ``dtype`` is rounded to it, once; None sends them as they are.

    vLLM would round them itself. Rounded before, half as much is sent, and one bucket holds the largest weight.
    """
    for name, weight in weights:
        narrower = dtype is not None and weight.is_floating_point() and weight.element_size() > dtype.itemsize
        yield name, weight.to(dtype) if narrower else weight


def merged(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight of ``engine``'s PEFT module, gathered, with the adapter merged, in the actor's own precision.

    verl 0.9.1 rounds them to bf16, whatever the rollout computes in. Without that, on one rank it would hand out the
    storage itself, which is the base model's again by the time that it is sent: so each one is a copy here.
    """
    module = engine.module
    try:
        with merged_lora_context(module, backup_adapters=True):
            params = normalize_peft_param_name(module.state_dict())
            # The one place where names become those of the family's hub checkpoint, which vLLM's loader reads.
            params = convert_weight_keys(params, getattr(module, "_fsdp_wrapped_module", module))
            for name, param in params.items():
                yield name, _whole(param)
    finally:
        if engine.is_param_offload_enabled:
            offload_fsdp_model_to_cpu(module)


def base_model(module: Any) -> Any:
    """transformers' model in a PEFT one."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def renamed(weights: Named, module: Any) -> Iterator[tuple[str, Tensor]]:
    """``weights`` under the names of the family's published checkpoints, which vLLM's loader knows.

    transformers 5 builds SigLIP and CLIP without the ``vision_model`` of their checkpoints. It says so in its
    conversion of weights, which verl 0.9.1 does not read.
    """
    changes = get_model_conversion_mapping(base_model(module), add_legacy=False)
    dropped = {
        f"{change.scope_prefix}.": f"{change.scope_prefix}.{change.prefix_to_remove}."
        for change in changes
        if isinstance(change, PrefixChange) and change.prefix_to_remove and change.scope_prefix
    }
    for name, weight in weights:
        tower = next((tower for tower in dropped if name.removeprefix(WRAPPER).startswith(tower)), None)
        yield name if tower is None else name.replace(tower, dropped[tower], 1), weight


def _whole(param: Tensor) -> Tensor:
    if not isinstance(param, DTensor):
        return param.detach().clone()
    return param.detach().to(get_device_id(), non_blocking=True).full_tensor().clone()
