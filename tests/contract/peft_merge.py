"""The oracle of what an actor's weights are: PEFT's own merge, outside verl and FSDP."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText


def merged_by_peft(model: str, actor: dict, own: dict[str, torch.Tensor], folder: Path) -> None:
    """The actor's weights in ``folder`` as transformers saves them, merged by PEFT, outside verl and FSDP."""
    module = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    if actor.get("lora_rank"):
        config = LoraConfig(
            r=actor["lora_rank"], lora_alpha=16, target_modules="all-linear", exclude_modules=actor["exclude"]
        )
        module = get_peft_model(module, config)
    module.load_state_dict(own)
    if actor.get("lora_rank"):
        module = module.merge_and_unload()
    module.save_pretrained(folder)
