"""From an image and a prompt to a model's inputs: one sample at a time, then a padded batch.

L prompt tokens of a sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from realad_verl.backbones.base import Backbone
from realad_verl.errors import UserError

MAX_ASPECT = 100  # processors refuse narrower images (Qwen's at 200)
MIN_SIDE = 32  # of a side that short, processors cannot tell rows from colour channels


@dataclass(frozen=True)
class PromptInputs:
    """What a processor makes of one image and one prompt.

    ``input_ids`` [L]; ``token_types``: other tensors along the tokens, [L] each; ``image``: everything else, batch axis
    of length 1 kept (or the patches' axis, as the family has it).
    """

    input_ids: Tensor
    token_types: dict[str, Tensor]
    image: dict[str, Tensor]


def prepare(processor: Any, text: str, *images: Image.Image, **options: Any) -> PromptInputs:
    """Runs a processor on one prompt. ``text``: the chat template's output, with the placeholder of each image.

    A narrow or very small image is stretched along its short side first (a map of it is relative to its sides anyway).
    ``options``: the processor's own.
    """
    options = bos_once(processor.tokenizer, text) | options
    pictures = [stretched(image.convert("RGB")) for image in images]
    outputs = processor(images=pictures, text=[text], return_tensors="pt", **options)
    ids = outputs["input_ids"][0]
    types = {key: outputs[key][0] for key in ("mm_token_type_ids", "token_type_ids") if key in outputs}
    skip = {"input_ids", "attention_mask", "labels", *types}
    return PromptInputs(ids, types, {key: torch.as_tensor(outputs[key]) for key in outputs if key not in skip})


def bos_once(tokenizer: Any, text: str) -> dict[str, bool]:
    """The option that keeps a tokenizer from writing the begin-of-text token that a chat template wrote already."""
    bos = getattr(tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if bos and text.startswith(bos) else {}


def stretched(image: Image.Image) -> Image.Image:
    """The image with no side shorter than 32 pixels or a hundredth of the other."""
    shortest = max(MIN_SIDE, math.ceil(max(image.size) / MAX_ASPECT))
    size = (max(image.width, shortest), max(image.height, shortest))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def collate(
    prompts: Sequence[PromptInputs],
    responses: Sequence[Tensor],
    pad_id: int,
    side: Literal["left", "right"],
    backbone: Backbone,
) -> dict[str, Tensor]:
    """One batch of the sequences prompt + response, padded on ``side``."""
    lengths = [len(prompt.input_ids) + len(response) for prompt, response in zip(prompts, responses, strict=True)]

    def padded(rows: list[Tensor], value: int) -> Tensor:
        gaps = [max(lengths) - length for length in lengths]
        ends = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
        return torch.stack([pad(row, end, value=value) for row, end in zip(rows, ends, strict=True)])

    batch = {
        "input_ids": padded([torch.cat([p.input_ids, r]) for p, r in zip(prompts, responses, strict=True)], pad_id),
        "attention_mask": padded([torch.ones(length, dtype=torch.long) for length in lengths], 0),
    }
    for key in prompts[0].token_types:
        kind = backbone.response_type if key == "token_type_ids" else 0
        extra = [torch.full((len(response),), kind) for response in responses]
        batch[key] = padded([torch.cat([p.token_types[key], more]) for p, more in zip(prompts, extra, strict=True)], 0)
    for key in prompts[0].image:
        batch[key] = batched(backbone, key, [prompt.image[key] for prompt in prompts])
    return batch


def batched(backbone: Backbone, key: str, tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of the processor output ``key`` of several samples, as the model wants it.

    Along the first axis; other axes are filled up with zeros (tiles and pixels that models leave out again). Along the
    last where the family packs it (``Backbone.packed``).
    """
    if key in backbone.packed:
        return torch.cat(list(tensors), dim=-1)
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        gaps = [(0, want - have) for want, have in zip(shape, tensor.shape[1:], strict=True)]
        filled.append(pad(tensor, [gap for pair in reversed(gaps) for gap in pair]))
    return torch.cat(filled)


def chat_text(processor: Any, messages: list[dict]) -> str:
    """The prompt as text, by the processor's chat template; raises UserError where it has none."""
    if (
        getattr(processor, "chat_template", None) is None
        and getattr(processor.tokenizer, "chat_template", None) is None
    ):
        raise UserError("the model's processor has no chat template; an instruction-tuned model has one.")
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
