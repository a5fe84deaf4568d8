"""Builders of tiny random models, one a family: its architecture, its processor, its placeholders and begin-of-text.

Sizes are such that vLLM's CPU attention takes them (heads of 32). Each returns (model, processor).
"""

from collections.abc import Callable
from typing import Any

import transformers as hf
from tokenizers import AddedToken

from realad_verl.tiny.tokenizer import build_tokenizer

MARKERS = (
    *("<|observation|>", "<|user|>"),  # verl's boundaries of GLM's turns
    *("<image>", "<video>", "<img>", "</img>", "<|image_break|>", "<start_of_image>", "<end_of_image>", "<bos>"),
    *("<fake_token_around_image>", "<global-img>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
)
# Processors write these around their placeholders; a tokenizer that has none would spell them out.
NEWLINES = ("\n\n", "\n\n\n", "\n\n\n\n")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def tokenizer(image: str = "<image>", written: str = "<image>", bos: bool = False, **names: str) -> Any:
    """The tiny backbone's tokenizer with every family's markers; the chat template puts ``written`` for an image."""
    base = build_tokenizer()
    core = base.backend_tokenizer
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MARKERS])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*["\n"] * bos, *NEWLINES)])
    known = {
        "image_token": image,
        "video_token": "<video>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": image,
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<|im_end|>",
    }
    assert QWEN_IMAGE in base.chat_template
    template = base.chat_template.replace(QWEN_IMAGE, written)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
        chat_template="{{ '<bos>' }}" * bos + template,
        extra_special_tokens=known | names,
        **({"bos_token": "<bos>"} if bos else {}),
    )


def text(tok: Any, **more: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": len(tok),  # equal, or verl masks the rest in vLLM alone
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,  # attention then differs from place to place
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    return sizes | more


def _qwen_ids(tok: Any) -> dict[str, Any]:
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in names.items()}
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    return ids | ends | {"tie_word_embeddings": False}


VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
DEEP_VISION: dict[str, Any] = {"depth": 2, "hidden_size": 64, "num_heads": 2, "initializer_range": 0.1}
PINPOINTS = [[112, 112], [112, 224], [224, 112], [224, 224], [112, 336], [336, 112]]


def qwen2_vl() -> tuple[Any, Any]:
    tok = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    vision = {**DEEP_VISION, "embed_dim": 64, "mlp_ratio": 2}
    config = hf.Qwen2VLConfig(text_config=text(tok, rope_parameters=rope), vision_config=vision, **_qwen_ids(tok))
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}
    processor = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**pixels),
        tokenizer=tok,
        video_processor=hf.Qwen2VLVideoProcessor(**pixels),
        chat_template=tok.chat_template,
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    tok = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    windows = {"fullatt_block_indexes": [1], "window_size": 112}
    vision = {**DEEP_VISION, "intermediate_size": 96, "out_hidden_size": 64, **windows}
    config = hf.Qwen2_5_VLConfig(text_config=text(tok, rope_parameters=rope), vision_config=vision, **_qwen_ids(tok))
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**pixels),
        tokenizer=tok,
        video_processor=hf.Qwen2VLVideoProcessor(**pixels),
        chat_template=tok.chat_template,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    tok = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    grid = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    vision = {**DEEP_VISION, "intermediate_size": 96, "out_hidden_size": 64, **grid}
    sizes = text(tok, rope_parameters=rope, head_dim=32)
    config = hf.Qwen3VLConfig(text_config=sizes, vision_config=vision, **_qwen_ids(tok))
    return hf.Qwen3VLForConditionalGeneration(config), _qwen3_processor(tok)


def _qwen3_processor(tok: Any) -> Any:
    pixels = {"size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512}}
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=16, **pixels),
        tokenizer=tok,
        video_processor=hf.Qwen3VLVideoProcessor(),
        chat_template=tok.chat_template,
    )


def glm4v() -> tuple[Any, Any]:
    tok = tokenizer("<|image|>", "<|begin_of_image|><|image|><|end_of_image|>", video_token="<|video|>")
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    vision = {**DEEP_VISION, "intermediate_size": 96, "out_hidden_size": 64, "image_size": 112}
    ids = {f"{kind}_token_id": tok.convert_tokens_to_ids(f"<|{kind}|>") for kind in ("image", "video")}
    for kind in ("image", "video"):
        ids[f"{kind}_start_token_id"] = tok.convert_tokens_to_ids(f"<|begin_of_{kind}|>")
        ids[f"{kind}_end_token_id"] = tok.convert_tokens_to_ids(f"<|end_of_{kind}|>")
    # vLLM takes attention biases from this key, transformers has them always.
    sizes = text(tok, rope_parameters=rope, attention_bias=True)
    config = hf.Glm4vConfig(text_config=sizes, vision_config=vision, **ids, tie_word_embeddings=False)
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 2 * 28 * 28 * 64}
    processor = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size=pixels),
        tokenizer=tok,
        video_processor=hf.Glm4vVideoProcessor(),
        chat_template=tok.chat_template,
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    tok = tokenizer()
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text(tok)),
        vision_config={**VISION, "image_size": (112, 112), "patch_size": (14, 14)},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    tiles = {"size": {"height": 112, "width": 112}, "crop_to_patches": True, "min_patches": 1, "max_patches": 6}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(**tiles),
        tokenizer=tok,
        video_processor=hf.InternVLVideoProcessor(),
        image_seq_length=16,
        chat_template=tok.chat_template,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    tok = tokenizer()
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text(tok)),
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=112, patch_size=14, vision_use_head=False),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    size = {"height": 112, "width": 112}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tok,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=tok.chat_template,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    tok = tokenizer()
    config = hf.LlavaNextConfig(
        text_config=hf.LlamaConfig(**text(tok)),
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=112, patch_size=14),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    sizes = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=PINPOINTS),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    tok = tokenizer("<image>", "<start_of_image>", bos=True)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = text(tok, head_dim=32, sliding_window=64, query_pre_attn_scalar=32, layer_types=layers)
    config = hf.Gemma3Config(
        text_config=sizes,
        vision_config={**VISION, "image_size": 112, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 112, "width": 112}),
        tokenizer=tok,
        image_seq_length=16,
        chat_template=tok.chat_template,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=0.1)  # zeros would hide the image
    return model, processor


def _idefics(config_class: type, model_class: type, processor_class: type, image_processor: Any) -> tuple[Any, Any]:
    tok = tokenizer()
    config = config_class(
        text_config=hf.LlamaConfig(**text(tok)),
        vision_config={**VISION, "image_size": 112, "patch_size": 14},
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=False,
    )
    more = {"video_processor": hf.SmolVLMVideoProcessor()} if processor_class is hf.SmolVLMProcessor else {}
    processor = processor_class(image_processor, tok, image_seq_len=16, chat_template=tok.chat_template, **more)
    return model_class(config), processor


TILES: dict[str, Any] = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}}


def idefics3() -> tuple[Any, Any]:
    classes = (hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, hf.Idefics3Processor)
    return _idefics(*classes, hf.Idefics3ImageProcessor(**TILES))


def smolvlm() -> tuple[Any, Any]:
    classes = (hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, hf.SmolVLMProcessor)
    return _idefics(*classes, hf.SmolVLMImageProcessor(**TILES))


def _pixtral(config_class: type, model_class: type, merge: int, sizes: Any, tok: Any, **more: Any) -> tuple[Any, Any]:
    config = config_class(
        text_config=sizes,
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=224, patch_size=14),
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
        tie_word_embeddings=False,
        **more,
    )
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(patch_size=14, size={"longest_edge": 224}),
        tokenizer=tok,
        patch_size=14,
        spatial_merge_size=merge,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        chat_template=tok.chat_template,
    )
    return model_class(config), processor


def mistral3() -> tuple[Any, Any]:
    tok = tokenizer("[IMG]", "[IMG]")
    sizes = hf.MistralConfig(**text(tok, head_dim=32, sliding_window=None))
    return _pixtral(hf.Mistral3Config, hf.Mistral3ForConditionalGeneration, 2, sizes, tok, spatial_merge_size=2)


def llava() -> tuple[Any, Any]:
    tok = tokenizer("[IMG]", "[IMG]")
    features = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    sizes = hf.MistralConfig(**text(tok, head_dim=32, sliding_window=None))
    return _pixtral(hf.LlavaConfig, hf.LlavaForConditionalGeneration, 1, sizes, tok, **features)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    builder.__name__: builder
    for builder in (
        *(gemma3, glm4v, idefics3, internvl, llava, llava_next, llava_onevision),
        *(mistral3, qwen2_5_vl, qwen2_vl, qwen3_vl, smolvlm),
    )
}
