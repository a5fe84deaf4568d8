"""The tiny backbone's shape: a Qwen2.5-VL of 1.2 million parameters whose image is always 12 x 12 tokens."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from realad_verl.tiny.tokenizer import build_tokenizer

IMAGE_SIZE = 168  # pixels; any image is resized to about this area, a square one to exactly 168 x 168
PATCH = 14
GRID = IMAGE_SIZE // PATCH  # 12
HIDDEN = 128


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The architecture.

    Three choices differ from the big Qwen2.5-VL on purpose. No merging: each 14-pixel patch is one image token, so that
    the grid stays 12 x 12. Full attention in every vision block: a defect shows against the rest of the surface.
    ``rope_theta`` 16 instead of 1e6: the big model's slow rotations cannot tell a dozen rows or columns apart.
    """
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,  # heads of 32, the smallest that vLLM's CPU attention takes
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 16.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 1,
        "temporal_patch_size": 2,
        "window_size": IMAGE_SIZE,
        "fullatt_block_indexes": [0, 1, 2],
        "out_hidden_size": HIDDEN,
        "initializer_range": 0.05,
    }
    fields: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2_5_VLConfig(**fields)


def tiny_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """Chat template, tokenizer and an image processor that brings a square image to 144 patches, any other to fewer."""
    pixels: dict[str, Any] = {"size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}}
    patches: dict[str, Any] = {"patch_size": PATCH, "merge_size": 1, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels, **patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels, **patches),
        chat_template=tokenizer.chat_template,
    )


def new_model(seed: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A freshly initialised model and its processor."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer)).float()
    return model, tiny_processor(tokenizer)


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, out: Path) -> None:
    """Write weights, configuration, processor and generation defaults (plain sampling at temperature 1) to ``out``."""
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=64
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
