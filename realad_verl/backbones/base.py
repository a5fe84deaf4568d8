"""What a backbone family has to say: where its image tokens are and which cells of the image they cover."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from realad_verl.backbones.layout import ImageLayout, MultipleImagesError
from realad_verl.errors import UserError

VIDEO_KEYS = ("pixel_values_videos", "video_grid_thw")


@dataclass(frozen=True)
class Prompt:
    """One sample's prompt. ``outputs``: what its processor made of the image (``image_grid_thw``, ...)."""

    input_ids: Tensor
    config: Any
    outputs: Mapping[str, Any]
    tokenizer: Any

    def output(self, key: str) -> Tensor:
        """The processor output ``key``; raises where the sample lacks it."""
        if self.outputs.get(key) is None:
            have = ", ".join(sorted(self.outputs)) or "nothing"
            raise UserError(f"model_type '{self.config.model_type}' needs the processor output '{key}', got: {have}.")
        return torch.as_tensor(self.outputs[key])

    def one_row(self, key: str) -> Tensor:
        """Row 0 of an output that has a row per image; raises MultipleImagesError where there are more rows."""
        value = self.output(key)
        if len(value) != 1:
            raise MultipleImagesError(f"the prompt holds {len(value)} images ('{key}'); an anomaly map is of one.")
        return value[0]


@dataclass(frozen=True)
class Backbone:
    """A family of models.

    ``layout`` gets the positions [N] of all image tokens (N > 0) and the prompt. ``beside``: names of the modules
    beside the language model (vision encoder, projector), to keep LoRA off them. The rest is for families that need it:

    ``response_type``: the value of ``token_type_ids`` at response tokens, for processors that make them.
    ``packed``: processor outputs that hold the images of a batch side by side along the last axis, not the first.
    ``both_ways``: image tokens see each other both ways, which the model is told by ``token_type_ids`` of 1 there.
    ``keep_forward``: transformers' classes whose forward verl replaces by one that does not fit.
    ``packages``: what its processor imports beyond transformers.
    ``not_run``: what of its training was never run.
    ``untrainable``: why it cannot be trained, in words that end a sentence.
    """

    name: str
    layout: Callable[[Tensor, Prompt], ImageLayout]
    beside: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    response_type: int = 0
    packed: tuple[str, ...] = ()
    both_ways: bool = False
    keep_forward: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    not_run: str | None = None
    untrainable: str | None = None

    def image_layout(
        self, input_ids: Tensor, model_config: Any, processor_outputs: Mapping[str, Any], tokenizer: Any
    ) -> ImageLayout | None:
        """The image tokens of one prompt; None where it has none.

        ``input_ids`` [L]: the unpadded *prompt*, without the response (a response may sample the image token's id).
        ``processor_outputs``: of this one sample. Raises MultipleImagesError for several images, UserError for
        videos and for outputs that do not fit the prompt.
        """
        _refuse_videos(input_ids, model_config, processor_outputs)
        columns = torch.nonzero(input_ids == image_token_id(model_config))[:, 0].cpu()
        if len(columns) == 0:
            return None
        return self.layout(columns, Prompt(input_ids, model_config, processor_outputs, tokenizer))


def image_token_id(model_config: Any) -> int:
    """The id of the placeholder that stands where an image feature goes."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(model_config, name, None)
        if value is not None:
            return int(value)
    raise UserError(f"the config of model_type '{model_config.model_type}' has no image_token_id.")


def placeholder_ids(model_config: Any) -> set[int]:
    """The ids that a model replaces by image or video features wherever they stand."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {int(value) for value in (getattr(model_config, name, None) for name in names) if value is not None}


def _refuse_videos(input_ids: Tensor, config: Any, outputs: Mapping[str, Any]) -> None:
    video_id = getattr(config, "video_token_id", None)
    in_prompt = video_id is not None and video_id != image_token_id(config) and bool((input_ids == video_id).any())
    if in_prompt or any(outputs.get(key) is not None for key in VIDEO_KEYS):
        raise UserError("the prompt holds a video; only one still image is supported.")
