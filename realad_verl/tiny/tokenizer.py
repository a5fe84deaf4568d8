"""The tiny backbone's tokenizer and chat template: byte-level BPE over the words it needs, Qwen2.5-VL's special tokens.

Byte-level, so any text encodes and decodes back to itself; the words of the prompt and of the procedural captions are
one token each, and anything else falls apart into shorter pieces.
"""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from realad_verl.data.procedural.captions import vocabulary_texts
from realad_verl.data.prompts import prompt_text

# Control tokens: removed by skip_special_tokens.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# One token each, yet ordinary text: they must survive decoding, since rewards and spans read them.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Qwen2's pre-tokenizer pattern.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words that a changed question or a user's text may hold; each is one token too.
EXTRA_WORDS = (
    "abnormal normal anomaly anomalies defect defects defective damage damaged broken flaw flaws object "
    "product surface texture part parts image picture yes no is are was a an the of in on at to and or not it "
    "its this that these those with without from for by near here there any all some look looks see shows show "
    "check clean dirty bent color shape edge corner middle upper lower side area region question answer reason "
    "reasoning please think describe where what"
)

# Qwen2.5-VL's turn format; without its default system turn, which would only lengthen the prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def known_words() -> list[str]:
    """Every pre-token (leading space included) that is one token."""
    tags = "|".join(re.escape(tag) for tag in TAGS)
    texts = [re.sub(tags, " ", text) for text in (f" {prompt_text()}", prompt_text(), *vocabulary_texts())]
    texts.append(" user assistant system\nuser\nassistant\nsystem ")
    texts += [f" {word} {word.capitalize()}" for word in EXTRA_WORDS.split()]
    splitter = pre_tokenizers.Split(_regex(), "isolated")
    return sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same on every call. ``len(tokenizer)`` is the model's vocabulary size."""
    vocab, merges = _vocabulary(known_words())
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_regex(), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _regex():
    from tokenizers import Regex

    return Regex(PATTERN)


def _vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte alphabet, then each word built left to right from its shortest prefixes: one merge a new prefix."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = "".join(piece for piece, _ in byte_level.pre_tokenize_str(word))
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocab:
                vocab[symbols[:end]] = len(vocab)
                merges.append((symbols[: end - 1], symbols[end - 1]))
    return vocab, merges
