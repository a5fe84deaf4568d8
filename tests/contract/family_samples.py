"""Samples of any family as verl's agent loop builds them, of images that are wide, tall, large and small."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from realad_verl.backbones.inputs import chat_text
from realad_verl.data.prompts import hf_messages

# Width, height. One micro-batch holds all; tiled families cut the first three into several tiles, the last into one.
SIZES = ((210, 90), (100, 220), (200, 190), (64, 64))


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def rendered(processor: Any, picture: Image.Image) -> Any:
    """The prompt with its placeholders plain and expanded, and the image's features."""
    from realad_verl.verl_ext.train import families

    return families.render(processor, chat_text(processor, hf_messages()), [picture], {})


def sample(processor: Any, prompt: Any, response: list[int]) -> dict[str, Any]:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    ids, features = torch.tensor([*prompt.ids, *response]), dict(prompt.features)
    holder: Any = SimpleNamespace(processor=processor)
    positions = AgentLoopWorker._compute_position_ids(holder, ids[None], torch.ones_like(ids)[None], features)[0]
    ones = torch.ones(len(response), dtype=torch.long)
    return {
        "prompts": torch.tensor(prompt.ids),
        "responses": torch.tensor(response),
        "input_ids": ids,
        "position_ids": positions,
        "response_mask": ones,
        "loss_mask": ones,
        "multi_modal_inputs": features,
    }


def flags(tokenizer: Any, packed: bool = False, micro: int = 4) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "use_remove_padding": packed,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": micro,
        "calculate_entropy": True,
        "pad_token_id": tokenizer.pad_token_id,
    }
