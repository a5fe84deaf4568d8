"""The reference kernel in flash-attn's place, so that verl's var-length paths run on CPU."""

import torch
import torch.distributed as dist

from realad_verl.attention import flash_reference

_entered = []


def install() -> None:
    """Put the reference kernel where transformers and verl look for flash-attn, for the life of this process."""
    context = flash_reference.as_flash_attention_2()
    context.__enter__()
    _entered.append(context)
    from verl.models.transformers import qwen2_vl

    names = {
        "flash_attn_func": flash_reference.flash_attn_func,
        "flash_attn_varlen_func": flash_reference.flash_attn_varlen_func,
        "_flash_supports_window_size": True,
        "_flash_supports_deterministic": True,
        "_flash_use_top_left_mask": False,
        "_flash_deterministic_enabled": False,
        # The real kernel takes half precision only, so verl casts; the reference computes in fp32.
        "fa_peft_integration_check": lambda query, key, value, target_dtype=None: (query, key, value),
    }
    for name, value in names.items():
        setattr(qwen2_vl, name, value)
    dist.all_to_all = all_to_all_by_gather


def use_flash(model) -> None:
    """Switch the language layers of a loaded model to flash_attention_2."""
    for module in model.modules():
        config = getattr(module, "config", None)
        text = getattr(config, "text_config", None)
        if text is not None:
            text._attn_implementation = "flash_attention_2"


def all_to_all_by_gather(output_list, input_list, group=None, async_op=False):
    """``torch.distributed.all_to_all`` from all-gathers: gloo has no all-to-all, which Ulysses needs."""
    assert not async_op
    rank = dist.get_rank(group)
    for target, tensor in enumerate(input_list):
        gathered = [torch.empty_like(tensor) for _ in input_list]
        dist.all_gather(gathered, tensor.contiguous(), group=group)
        if target == rank:
            for source, received in enumerate(gathered):
                output_list[source].copy_(received)
