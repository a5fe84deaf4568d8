"""Tiny random models for the attention tests, and eager attention to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
IMAGE_TOKEN = 5


def causal_model(kind: str = "qwen2", attention: str = "sdpa", **changes: Any):
    """A tiny random causal language model in eval mode, with attention far from uniform."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**TEXT, **changes})
    return _sharpened(AutoModelForCausalLM.from_config(config, attn_implementation=attention))


def vision_model(attention: str = "sdpa"):
    """A tiny random Qwen2.5-VL in eval mode."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["qwen2_5_vl"](
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return _sharpened(AutoModelForImageTextToText.from_config(config, attn_implementation=attention))


def _sharpened(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(12)
    return model.eval()


def eager_attentions(model, **inputs: Any) -> Tensor:
    """[L, B, T, T] attention of each layer averaged over heads, by eager ``output_attentions``."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    model.set_attn_implementation(before)
    return torch.stack([layer.float().mean(1) for layer in output.attentions])


def left_padded(lengths: list[int], width: int) -> dict[str, Tensor]:
    """Random token ids, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, TEXT["vocab_size"], (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1
    return {"input_ids": ids * mask, "attention_mask": mask}
