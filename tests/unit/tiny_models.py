"""Tiny random models of every backbone family with their real processors, built from classes, without a download.

``build(family)`` returns a ``Tiny``: fp32 model in eval mode and a processor whose chat template works offline. The
tokenizer is a byte-level BPE trained here on the prompt; one tokenizer serves all families.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from realad_verl.data.prompts import prompt_text

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_break|>",
    "<start_of_image>",
    "<end_of_image>",
    "<fake_token_around_image>",
    "<global-img>",
    *[f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)],
]
TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Tiny:
    """A model and its processor."""

    model: Any
    processor: Any


@lru_cache(maxsize=1)
def _trained() -> str:
    """A byte-level BPE of about 400 tokens, as JSON; "defects" and "anomalies" take several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    core.train_from_iterator([prompt_text(), "the surface looks clean and even, no scratch, yes no"] * 4, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return core.to_str()


def tokenizer() -> Any:
    """A fresh tokenizer (some processors add tokens to the one they get)."""
    extra = {
        "image_token": "<image>",
        "video_token": "<video>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "start_image_token": "<|vision_start|>",
        "end_image_token": "<|vision_end|>",
        "context_image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<|im_end|>",
        # Names that only some processors ask for; any special token will do.
        "audio_token": "<video>",
        "boa_token": "<|vision_start|>",
        "eoa_token": "<|vision_end|>",
        "image_start_token": "<start_of_image>",
        "image_end_token": "<end_of_image>",
        "slice_start_token": "<row_1_col_1>",
        "slice_end_token": "<row_1_col_2>",
        "image_id_start_token": "<row_1_col_3>",
        "image_id_end_token": "<row_1_col_4>",
    }
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        extra_special_tokens=extra,
    )


@lru_cache
def token_id(token: str) -> int:
    """The id of a special token."""
    return Tokenizer.from_str(_trained()).token_to_id(token)


def _text(**more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": token_id("<|im_end|>"), "pad_token_id": token_id("<|endoftext|>"), "bos_token_id": None}
    return {"vocab_size": len(tokenizer()), **TEXT_SIZES, **ids, **more}


def _template(image: str) -> str:
    return CHAT_TEMPLATE.replace("IMAGE", image)


def _image_ids() -> dict[str, int]:
    return {
        "image_token_id": token_id("<image>"),
        "video_token_id": token_id("<video>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }


QWEN_IMAGE = "<|vision_start|><image><|vision_end|>"
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
VISION_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}

DEEP_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}


def qwen2_5_vl() -> Tiny:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = hf.Qwen2_5_VLConfig(text_config=_text(rope_parameters=MROPE), vision_config=vision, **_image_ids())
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 64),
        tokenizer=tokenizer(),
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=_template(QWEN_IMAGE),
    )
    return Tiny(_model(hf.Qwen2_5_VLForConditionalGeneration, config), processor)


def qwen2_vl() -> Tiny:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}
    config = hf.Qwen2VLConfig(text_config=_text(rope_parameters=MROPE), vision_config=vision, **_image_ids())
    processor = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 64),
        tokenizer=tokenizer(),
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=_template(QWEN_IMAGE),
    )
    return Tiny(_model(hf.Qwen2VLForConditionalGeneration, config), processor)


def qwen3_vl() -> Tiny:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    rope = MROPE | {"mrope_interleaved": True}
    config = hf.Qwen3VLConfig(text_config=_text(rope_parameters=rope, head_dim=8), vision_config=vision, **_image_ids())
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 64),
        tokenizer=tokenizer(),
        video_processor=hf.Qwen3VLVideoProcessor(),
        chat_template=_template(QWEN_IMAGE),
    )
    return Tiny(_model(hf.Qwen3VLForConditionalGeneration, config), processor)


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


def qwen3_vl_moe() -> Tiny:
    vision = {**DEEP_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    rope = MROPE | {"mrope_interleaved": True}
    text = _text(rope_parameters=rope, head_dim=8, num_experts=4, **EXPERTS)
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_image_ids())
    return Tiny(_model(hf.Qwen3VLMoeForConditionalGeneration, config), qwen3_vl().processor)


def qwen3_5() -> Tiny:
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    rope = MROPE | {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    text = _text(rope_parameters=rope, head_dim=16, **linear)
    text["layer_types"] = ["linear_attention", "full_attention", "full_attention"]
    vision = {**DEEP_VISION, "num_position_embeddings": 64}
    config = hf.Qwen3_5Config(text_config=text, vision_config=vision, **_image_ids())
    return Tiny(_model(hf.Qwen3_5ForConditionalGeneration, config), qwen3_vl().processor)


def minicpmv4_6() -> Tiny:
    text = qwen3_5().model.config.text_config
    # The vision tower merges 2 x 2 patches after its first layer, the projector 2 x 2 of what is left.
    vision = {**VISION_SIZES, "image_size": 112, "patch_size": 14}
    ids = {"image_token_id": token_id("<image>"), "video_token_id": token_id("<video>")}
    config = hf.MiniCPMV4_6Config(text_config=text.to_dict(), vision_config=vision, insert_layer_id=0, **ids)
    sizes = {"scale_resolution": 112, "patch_size": 14}
    processor = hf.MiniCPMV4_6Processor(
        image_processor=hf.MiniCPMV4_6ImageProcessor(**sizes),
        video_processor=hf.MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer=tokenizer(),
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.MiniCPMV4_6ForConditionalGeneration, config), processor)


def glm4v_moe() -> Tiny:
    ids = {"image_token_id": token_id("<image>"), "video_token_id": token_id("<video>")}
    rope = MROPE | {"partial_rotary_factor": 1.0}
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    text = _text(rope_parameters=rope, head_dim=8, **experts, **EXPERTS)
    vision = {**DEEP_VISION, "image_size": 112}
    config = hf.Glm4vMoeConfig(text_config=text, vision_config=vision, **ids)
    return Tiny(_model(hf.Glm4vMoeForConditionalGeneration, config), glm4v().processor)


def gemma4() -> Tiny:
    text = _text(head_dim=8, global_head_dim=8, sliding_window=64, hidden_size_per_layer_input=0)
    text["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
    vision = {**VISION_SIZES, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14, "pooling_kernel_size": 2}
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision | {"position_embedding_size": 64},
        audio_config=None,
        boi_token_id=token_id("<start_of_image>"),
        eoi_token_id=token_id("<end_of_image>"),
        image_token_id=token_id("<image>"),
        video_token_id=token_id("<video>"),
    )
    sizes = {"patch_size": 14, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(**sizes),
        tokenizer=tokenizer(),
        video_processor=hf.Gemma4VideoProcessor(),
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.Gemma4ForConditionalGeneration, config), processor)


def glm4v() -> Tiny:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "image_size": 112,
    }
    ids = {"image_token_id": token_id("<image>"), "video_token_id": token_id("<video>")}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = hf.Glm4vConfig(text_config=_text(rope_parameters=rope), vision_config=vision, **ids)
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 2 * 28 * 28 * 64}),
        tokenizer=tokenizer(),
        video_processor=hf.Glm4vVideoProcessor(),
        chat_template=_template(QWEN_IMAGE),
    )
    return Tiny(_model(hf.Glm4vForConditionalGeneration, config), processor)


def internvl() -> Tiny:
    vision = {**VISION_SIZES, "image_size": (56, 56), "patch_size": (14, 14)}
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_text()),
        vision_config=vision,
        image_token_id=token_id("<image>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True),
        tokenizer=tokenizer(),
        video_processor=hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.InternVLForConditionalGeneration, config), processor)


PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112], [56, 168], [168, 56], [224, 224]]


def llava_onevision() -> Tiny:
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**_text()),
        vision_config=hf.SiglipVisionConfig(**VISION_SIZES, image_size=56, patch_size=14, vision_use_head=False),
        image_token_index=token_id("<image>"),
        video_token_index=token_id("<video>"),
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer(),
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.LlavaOnevisionForConditionalGeneration, config), processor)


def llava_next() -> Tiny:
    config = hf.LlavaNextConfig(
        text_config=hf.LlamaConfig(**_text()),
        vision_config=hf.CLIPVisionConfig(**VISION_SIZES, image_size=56, patch_size=14),
        image_token_index=token_id("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.LlavaNextForConditionalGeneration, config), processor)


def gemma3() -> Tiny:
    text = _text(head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    config = hf.Gemma3Config(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        vision_config={**VISION_SIZES, "image_size": 112, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=token_id("<image>"),
        boi_token_index=token_id("<start_of_image>"),
        eoi_token_index=token_id("<end_of_image>"),
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 112, "width": 112}),
        tokenizer=tokenizer(),
        image_seq_length=16,
        chat_template=_template("<start_of_image>"),
    )
    return Tiny(_model(hf.Gemma3ForConditionalGeneration, config), processor)


def gemma3n() -> Tiny:
    text = _text(head_dim=8, sliding_window=16, hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=1)
    text |= {"vocab_size_per_layer_input": text["vocab_size"]}
    layer_types = ["sliding_attention", "full_attention", "full_attention"]
    audio = {"hidden_size": 16, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2}
    config = hf.Gemma3nConfig(
        text_config=text | {"layer_types": layer_types},
        # Of timm's architectures the smallest without attention over the whole image: 32 x 32 pixels a token.
        vision_config={"architecture": "test_resnet", "hidden_size": 96, "vocab_offset": text["vocab_size"]},
        audio_config=audio | {"sscp_conv_channel_size": (4, 4), "vocab_offset": text["vocab_size"] + 128},
        vision_soft_tokens_per_image=25,
        image_token_id=token_id("<image>"),
        audio_token_id=token_id("<video>"),
    )
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(),
        image_processor=hf.SiglipImageProcessor(size={"height": 160, "width": 160}),
        tokenizer=tokenizer(),
        image_seq_length=25,
        chat_template=_template("<image>"),
    )
    return Tiny(_model(hf.Gemma3nForConditionalGeneration, config), processor)


def paligemma() -> Tiny:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**_text(head_dim=8)),
        vision_config=hf.SiglipVisionConfig(
            **VISION_SIZES, image_size=56, patch_size=14, vision_use_head=False, projection_dim=32
        ),
        image_token_index=token_id("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    image_processor = hf.SiglipImageProcessor(size={"height": 56, "width": 56})
    image_processor.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor, tokenizer(), chat_template=_template("<image>"))
    return Tiny(_model(hf.PaliGemmaForConditionalGeneration, config), processor)


def _idefics(config_class: type, model_class: type, image_processor: Any) -> Tiny:
    config = config_class(
        text_config=hf.LlamaConfig(**_text()),
        vision_config={**VISION_SIZES, "image_size": 56, "patch_size": 14},
        scale_factor=2,
        image_token_id=token_id("<image>"),
        pad_token_id=token_id("<|endoftext|>"),
    )
    # Idefics3's processor serves SmolVLM too: the same prompt, and SmolVLM's own needs a package for videos.
    processor = hf.Idefics3Processor(image_processor, tokenizer(), image_seq_len=4, chat_template=_template("<image>"))
    return Tiny(_model(model_class, config), processor)


def idefics3() -> Tiny:
    sizes = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}
    image_processor = hf.Idefics3ImageProcessor(**sizes)
    return _idefics(hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, image_processor)


def smolvlm() -> Tiny:
    sizes = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}
    image_processor = hf.SmolVLMImageProcessor(**sizes)
    return _idefics(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, image_processor)


def _pixtral(config_class: type, model_class: type, merge: int, text: Any, **more: Any) -> Tiny:
    config = config_class(
        text_config=text,
        vision_config=hf.PixtralVisionConfig(**VISION_SIZES, image_size=224, patch_size=14),
        image_token_index=token_id("<image>"),
        **more,
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(patch_size=14, size={"longest_edge": 112 * merge}),
        tokenizer=tokenizer(),
        patch_size=14,
        spatial_merge_size=merge,
        image_token="<image>",
        image_break_token="<|image_break|>",
        image_end_token="<|vision_end|>",
        chat_template=_template("<image>"),
    )
    return Tiny(_model(model_class, config), processor)


def mistral3() -> Tiny:
    text = hf.MistralConfig(**_text(head_dim=8, sliding_window=None))
    return _pixtral(hf.Mistral3Config, hf.Mistral3ForConditionalGeneration, 2, text, spatial_merge_size=2)


def llava_pixtral() -> Tiny:
    strategy = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    text = hf.LlamaConfig(**_text())
    return _pixtral(hf.LlavaConfig, hf.LlavaForConditionalGeneration, 1, text, **strategy)


def _model(model_class: type, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = model_class(config).eval()
    # Random attention of freshly initialised weights is nearly uniform; larger ones make it differ from place to place.
    # The vision tower stays as it is, so that a token shows little beside its own pixels.
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        for name, parameter in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):  # Gemma 3 initialises it with zeros, hiding the image
                parameter.normal_(std=0.1)
            if "vision" in name and name.endswith("out_proj.weight"):  # SigLIP's initial attention mixes all patches
                parameter.mul_(0.1)
    return model


FAMILIES: dict[str, Callable[[], Tiny]] = {
    "gemma3": gemma3,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava": llava_pixtral,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "minicpmv4_6": minicpmv4_6,
    "mistral3": mistral3,
    "paligemma": paligemma,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_5": qwen3_5,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "smolvlm": smolvlm,
}


def build(family: str) -> Tiny:
    """A fresh tiny model of ``family`` (a key of ``FAMILIES``, the config's model_type)."""
    return FAMILIES[family]()
