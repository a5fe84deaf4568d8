"""The places of dropped responses are filled with copies of a sample, its image included.

verl 0.9.1 fills them with 128 end tokens and no image. A micro-batch of such samples alone never calls the vision
encoder: with several ranks the others wait in its all-gather until the watchdog ends the run, and Qwen2.5-VL, for which
verl runs the encoder on zeros, dies of what transformers 5 returns.
"""

import functools
from typing import Any

import torch

TARGET = "verl.trainer.ppo.padding_utils"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.construct_minimal_padding_template`` (verl.trainer.ppo.padding_utils)."""
    original = module.construct_minimal_padding_template

    @functools.wraps(original)
    def construct(source_td: Any, source_tag: dict, eos_token_id: int) -> tuple[dict, dict]:
        """The prompt of the source and one end token without weight."""
        if "multi_modal_inputs" not in source_td.keys():  # noqa: SIM118  (a TensorDict refuses a bare `in`)
            return original(source_td, source_tag, eos_token_id)
        prompts = source_td["prompts"]
        module.SYNTHETIC_PADDING_SEQ_LEN = len(prompts) + 1  # verl makes everything along the tokens of this length
        sample, tag = original(source_td, source_tag, eos_token_id)
        sample["prompts"] = prompts.clone()
        sample["input_ids"] = torch.cat((prompts, sample["responses"]))
        sample["multi_modal_inputs"] = source_td["multi_modal_inputs"]
        if isinstance(source_td["position_ids"], torch.Tensor):
            sample["position_ids"] = source_td["position_ids"][..., : len(prompts) + 1].clone()
        return sample, tag

    module.construct_minimal_padding_template = construct
