"""Tiny random models for the attention tests, and eager attention to compare with."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from realad_verl.attention.readout import AttentionReadout, RowRequest

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
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "qwen2": {},
    "qwen2_window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
}
IMAGE_TOKEN = 5


def causal_model(kind: str = "qwen2", attention: str = "sdpa", **changes: Any):
    """A tiny random causal language model in eval mode, with attention far from uniform."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind.removesuffix("_window")](**{**TEXT, **KINDS[kind], **changes})
    return with_attention(_sharpened(AutoModelForCausalLM.from_config(config, attn_implementation="eager")), attention)


def vision_model(attention: str = "sdpa"):
    """A tiny random Qwen2.5-VL in eval mode."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = CONFIG_MAPPING["qwen2_5_vl"](
        text_config={**TEXT, "rope_parameters": rope},
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
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    return with_attention(_sharpened(model), attention)


def with_attention(model, attention: str):
    """The same model with another attention implementation, without asking whether its package is installed."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention
    return model


def _sharpened(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(12)
    return model.eval()


def eager_attention(model, **inputs: Any) -> Tensor:
    """[B, N, N] attention averaged over heads and layers, by eager ``output_attentions`` of the same weights."""
    return eager_layers(model, **inputs).mean(0)


def eager_layers(model, **inputs: Any) -> Tensor:
    """[L, B, N, N] attention of each layer averaged over heads."""
    return eager_heads(model, **inputs).mean(2)


def eager_heads(model, **inputs: Any) -> Tensor:
    """[L, B, H, N, N] attention of every head."""
    before = model.config._attn_implementation
    with_attention(model, "eager")
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    with_attention(model, before)
    return torch.stack([layer.float() for layer in output.attentions])


def padded(lengths: list[int], width: int, side: str = "left") -> dict[str, Tensor]:
    """Random token ids, padded on one side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, TEXT["vocab_size"], (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, width) if side == "left" else slice(0, length)] = 1
    return {"input_ids": ids * mask, "attention_mask": mask}


QUERIES, COLUMNS = torch.tensor([3, 9, 8, 0]), torch.tensor([0, 2, 7, 9])


def requests_for(lengths: list[int], width: int, side: str = "left") -> list[RowRequest]:
    """The same queries and columns of every sequence of a padded batch."""
    return [
        RowRequest(row, width - length if side == "left" else 0, length, QUERIES, COLUMNS)
        for row, length in enumerate(lengths)
    ]


def read(model, requests, inputs: dict[str, Any], head_group=None, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Rows and logits of one forward with the read-out on."""
    readout = AttentionReadout(model, **options)
    with torch.no_grad(), readout.reading(requests, head_group) as reading:
        output = model(**inputs)
    return reading.rows(), output.logits


def wanted(attention_BNN: Tensor, request: RowRequest) -> Tensor:
    """The rows and columns of ``request`` out of a whole attention matrix."""
    rows, columns = request.offset + request.queries, request.offset + request.columns
    return attention_BNN[request.batch_row][rows[:, None], columns[None, :]]


def assert_rows(rows: list[Tensor], requests: list[RowRequest], attention_BNN: Tensor, within: float = 1e-6) -> None:
    assert len(rows) == len(requests)
    for got, request in zip(rows, requests, strict=True):
        assert got.dtype == torch.float32
        want = wanted(attention_BNN, request)
        assert want.max() > 0.05  # not a comparison of nothing
        assert (got - want).abs().max() <= within
