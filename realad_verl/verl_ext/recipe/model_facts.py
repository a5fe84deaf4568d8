"""Sizes of a model, read from its local ``config.json`` or, for the recipes' own models, from a table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realad_verl.errors import UserError


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a vision-language model.

    ``parameters``: of the whole model. ``vision_parameters``: of its vision encoder. ``image_tokens``: of one
    420 x 420 image in the prompt, None where that depends on more than these sizes.
    """

    model_type: str
    parameters: float
    vision_parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    intermediate: int
    max_positions: int | None = None
    image_tokens: int | None = None


# Sizes as the published configs state them; parameters as the checkpoints count them, to two or three digits.
KNOWN: dict[str, ModelFacts] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelFacts(
        "qwen2_5_vl", 3.75e9, 0.67e9, 36, 2048, 16, 2, 128, 151936, 11008, 128000, 225
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelFacts(
        "qwen2_5_vl", 8.29e9, 0.68e9, 28, 3584, 28, 4, 128, 152064, 18944, 128000, 225
    ),
    "Qwen/Qwen2-VL-7B-Instruct": ModelFacts(
        "qwen2_vl", 8.29e9, 0.68e9, 28, 3584, 28, 4, 128, 152064, 18944, 32768, 225
    ),
    "Qwen/Qwen3-VL-8B-Instruct": ModelFacts(
        "qwen3_vl", 8.77e9, 0.58e9, 36, 4096, 32, 8, 128, 151936, 12288, 262144, 169
    ),
    "OpenGVLab/InternVL3-8B-hf": ModelFacts(
        "internvl", 7.94e9, 0.30e9, 28, 3584, 28, 4, 128, 151674, 18944, 32768, 256
    ),
    "zai-org/GLM-4.1V-9B-Thinking": ModelFacts(
        "glm4v", 10.3e9, 0.89e9, 40, 4096, 32, 2, 128, 151552, 13696, 65536, 225
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": ModelFacts(
        "llava_onevision", 8.03e9, 0.40e9, 28, 3584, 28, 4, 128, 152128, 18944, 32768, 3699
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": ModelFacts(
        "llava_next", 7.57e9, 0.32e9, 32, 4096, 32, 8, 128, 32064, 14336, 32768, 2928
    ),
    "google/gemma-3-12b-it": ModelFacts("gemma3", 12.2e9, 0.42e9, 48, 3840, 16, 8, 256, 262208, 15360, 131072, 256),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": ModelFacts(
        "mistral3", 24.0e9, 0.44e9, 40, 5120, 32, 8, 128, 131072, 32768, 131072, 240
    ),
    "mistral-community/pixtral-12b": ModelFacts(
        "llava", 12.7e9, 0.43e9, 40, 5120, 32, 8, 128, 131072, 14336, 131072, 756
    ),
    # Seventeen tiles, with their markers.
    "HuggingFaceM4/Idefics3-8B-Llama3": ModelFacts(
        "idefics3", 8.46e9, 0.43e9, 32, 4096, 32, 8, 128, 128259, 14336, 131072, 2960
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": ModelFacts(
        "smolvlm", 2.25e9, 0.43e9, 24, 2048, 32, 32, 64, 49280, 8192, 8192, 1450
    ),
}
# Image tokens = (side / patch / merge)^2 for families whose grid follows the pixels.
PIXEL_GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
IMAGE_SIDE = 420


def local_model(path: str) -> Path | None:
    """The folder that ``path`` means, or None for a hub id. Raises UserError for a folder that cannot be a model."""
    folder = Path(path).expanduser()
    looks_local = path.startswith(("/", "~", ".")) or folder.exists()
    if not looks_local or "://" in path:
        return None
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json")
    return folder


def model_facts(path: str) -> ModelFacts | None:
    """Sizes of the model at ``path``; None where it is neither local nor in the table.

    Raises UserError where ``path`` is local and its config cannot be read.
    """
    folder = local_model(path)
    if folder is None:
        return KNOWN.get(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _from_config(config, _weight_bytes(folder), _max_pixels(folder))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json is not a readable model config ({error!r})") from error


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _max_pixels(folder: Path) -> int | None:
    """The largest number of pixels that the folder's image processor keeps, where it has such a limit."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
            return settings.get("max_pixels") or (settings.get("size") or {}).get("longest_edge")
    return None


def _from_config(config: dict[str, Any], weight_bytes: int, max_pixels: int | None) -> ModelFacts:
    text = config.get("text_config") or config
    heads, hidden, layers = text["num_attention_heads"], text["hidden_size"], text["num_hidden_layers"]
    kv_heads = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or hidden // heads
    vocabulary, intermediate = text["vocab_size"], text["intermediate_size"]
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * intermediate
    vision = _vision_parameters(config.get("vision_config") or {})
    counted = layers * layer + vocabulary * hidden * (1 if tied else 2) + vision
    dtype_bytes = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
    return ModelFacts(
        config["model_type"],
        weight_bytes / dtype_bytes if weight_bytes else counted,
        vision,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        vocabulary,
        intermediate,
        text.get("max_position_embeddings"),
        _image_tokens(config, max_pixels),
    )


def _vision_parameters(vision: dict[str, Any]) -> float:
    """Rough: attention and feed-forward weights of the encoder's layers."""
    layers = vision.get("depth") or vision.get("num_hidden_layers") or 0
    hidden = vision.get("hidden_size") or 0
    return layers * (4 * hidden * hidden + 3 * hidden * (vision.get("intermediate_size") or 4 * hidden))


def _image_tokens(config: dict[str, Any], max_pixels: int | None) -> int | None:
    vision = config.get("vision_config") or {}
    if config["model_type"] not in PIXEL_GRID or not vision.get("patch_size"):
        return config.get("mm_tokens_per_image") or config.get("image_seq_length")
    cell = vision["patch_size"] * vision.get("spatial_merge_size", 2)
    return round(min(IMAGE_SIDE, (max_pixels or IMAGE_SIDE**2) ** 0.5) / cell) ** 2
