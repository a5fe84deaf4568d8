"""Merging LoRA into the weights reaches the adapters of FSDP2's root unit, too.

verl 0.9.1 merges unit by unit and leaves the root out. What no unit wraps belongs to the root: the mergers between
vision and language of Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Without this vLLM samples with the base model's mergers, while
the actor trains, and scores, with the adapted ones.
"""

import functools
import inspect
from typing import Any

TARGET = "verl.utils.fsdp_utils"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.fsdp_merge_unmerge`` (verl.utils.fsdp_utils)."""
    original, merge_or_unmerge = module.fsdp_merge_unmerge, module._merge_or_unmerge_lora_
    assert list(inspect.signature(original).parameters) == ["module", "do_merge"], (
        "verl's fsdp_merge_unmerge changed its parameters"
    )
    assert list(inspect.signature(merge_or_unmerge).parameters) == ["module", "merge"], (
        "verl's _merge_or_unmerge_lora_ changed its parameters"
    )

    @functools.wraps(original)
    def fsdp_merge_unmerge(actor: Any, do_merge: bool) -> None:
        original(actor, do_merge)
        if module.fsdp_version(actor) == 2:
            # It leaves alone what is merged, or unmerged, already: all but the root's own.
            merge_or_unmerge(actor, merge=do_merge)

    module.fsdp_merge_unmerge = fsdp_merge_unmerge
