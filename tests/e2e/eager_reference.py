"""The evidence of a training job's samples, from eager attention of the same weights: no read-out, no verl, no vLLM."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from realad_verl.attention.eager_reference import mean_rows
from realad_verl.backbones import backbone_for
from realad_verl.backbones.inputs import chat_text, collate, prepare
from realad_verl.data.prompts import hf_messages
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence

# What peft puts around a module's name.
WRAPPER, BASE, DOWN, UP = "base_model.model.", ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


class EagerReference:
    """A model with eager attention and its processor."""

    def __init__(self, folder: Path, method: MethodConfig) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.builder = EvidenceBuilder(self.model.config, self.processor.tokenizer, method)
        self.text = chat_text(self.processor, hf_messages())

    def load_lora_checkpoint(self, shard: Path, scale: float) -> None:
        """Take the weights of a one-rank LoRA checkpoint: W + ``scale`` B A, ``scale`` = lora_alpha / lora_rank."""
        saved = {
            name.removeprefix(WRAPPER): getattr(value, "_local_tensor", value)
            for name, value in torch.load(shard, weights_only=False).items()
        }
        merged = {n.replace(BASE, "."): value.clone() for n, value in saved.items() if ".lora_" not in n}
        for name in (n for n in saved if n.endswith(DOWN)):
            module = name.removesuffix(DOWN)
            merged[f"{module}.weight"] += scale * saved[f"{module}{UP}"] @ saved[name]
        self.model.load_state_dict(merged)

    @torch.no_grad()
    def evidence(self, image: Image.Image, response_ids: Sequence[int]) -> tuple[Evidence, list[int]]:
        """The evidence of one response and the indices of its reasoning tokens."""
        prompt, response = prepare(self.processor, self.text, image), torch.tensor(list(response_ids))
        plan = self.builder.plan(torch.cat([prompt.input_ids, response]), len(prompt.input_ids), prompt.image)
        if plan.request is None:
            return self.builder.reduce([plan], [])[0], plan.reasoning
        backbone = backbone_for(self.model.config)
        batch = collate([prompt], [response], self.processor.tokenizer.pad_token_id, "right", backbone)
        if backbone.both_ways:  # not in vLLM's CPU attention, and so not in the actor on a CPU
            batch["token_type_ids"].zero_()
        attentions = self.model(**batch, output_attentions=True, use_cache=False).attentions
        rows = mean_rows(attentions, [plan.request])
        return self.builder.reduce([plan], rows)[0], plan.reasoning
