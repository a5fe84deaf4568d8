"""Backbones: for each model family, which prompt positions are image tokens and which grid they form.

A family is one small file and an entry for each of its model types in ``BACKBONES``; docs/backbones.md shows how.
"""

from typing import Any

from realad_verl.backbones.base import Backbone, Prompt
from realad_verl.backbones.gemma3 import GEMMA3, GEMMA3N, PALIGEMMA
from realad_verl.backbones.gemma4 import GEMMA4
from realad_verl.backbones.idefics import IDEFICS, SMOLVLM
from realad_verl.backbones.internvl import INTERNVL
from realad_verl.backbones.layout import ImageLayout, MultipleImagesError
from realad_verl.backbones.llava_next import LLAVA_NEXT
from realad_verl.backbones.minicpm import MINICPM
from realad_verl.backbones.pixtral import PIXTRAL
from realad_verl.backbones.qwen_vl import GLM4V, GLM4V_MOE, QWEN3_5, QWEN3_VL_MOE, QWEN_VL
from realad_verl.errors import UserError

# config.model_type -> family
BACKBONES: dict[str, Backbone] = {
    "gemma3": GEMMA3,
    "gemma3n": GEMMA3N,
    "gemma4": GEMMA4,
    "glm4v": GLM4V,
    "glm4v_moe": GLM4V_MOE,
    "idefics3": IDEFICS,
    "internvl": INTERNVL,
    "llava": PIXTRAL,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_NEXT,
    "minicpmv4_6": MINICPM,
    "mistral3": PIXTRAL,
    "paligemma": PALIGEMMA,
    "qwen2_5_vl": QWEN_VL,
    "qwen2_vl": QWEN_VL,
    "qwen3_5": QWEN3_5,
    "qwen3_vl": QWEN_VL,
    "qwen3_vl_moe": QWEN3_VL_MOE,
    "smolvlm": SMOLVLM,
}

TRAINABLE = tuple(sorted(model_type for model_type, backbone in BACKBONES.items() if not backbone.untrainable))


def backbone_for(model_config: Any) -> Backbone:
    """The family of a model, by ``model_config.model_type``; raises UserError naming the known ones."""
    model_type = getattr(model_config, "model_type", None)
    if model_type not in BACKBONES:
        raise UserError(
            f"model_type '{model_type}' has no backbone entry. Known: {', '.join(sorted(BACKBONES))}. "
            "docs/backbones.md shows how to add one."
        )
    return BACKBONES[model_type]


__all__ = ["BACKBONES", "TRAINABLE", "Backbone", "ImageLayout", "MultipleImagesError", "Prompt", "backbone_for"]
