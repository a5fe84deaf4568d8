"""Pieces of single tokens: joined, they are the decoded text, for every kind of tokenizer."""

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from realad_verl.backbones import pieces
from realad_verl.backbones.pieces import token_pieces

BYTE_LEVEL = tiny_models.tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_like():
    """Leading-space markers and byte fallback, as in Llama's and Gemma's tokenizers."""
    words = ["<unk>", "</s>", "▁the", "▁defect", "s", "▁", "▁no", "é", "."]
    vocab = {token: i for i, token in enumerate(words + [f"<0x{byte:02X}>" for byte in range(256)])}
    core = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def byte_ids(text):
    return BYTE_LEVEL.convert_tokens_to_ids(list(map(chr_of_byte, text.encode())))


def chr_of_byte(byte):
    return {value: char for char, value in pieces._byte_of_char().items()}[byte]


def test_each_token_has_its_text():
    ids = BYTE_LEVEL.encode("<think> no defects</think>")
    texts = token_pieces(BYTE_LEVEL, ids)
    assert "".join(texts) == "<think> no defects</think>"
    assert len(texts) == len(ids) and all(texts)


def test_split_character_belongs_to_the_token_that_completes_it():
    assert token_pieces(BYTE_LEVEL, byte_ids("aé€")) == ["a", "", "é", "", "", "€"]


def test_unfinished_character_at_the_end_is_replaced():
    assert token_pieces(BYTE_LEVEL, byte_ids("a€")[:-1]) == ["a", "", "\ufffd"]


def test_special_tokens_are_kept():
    ids = [tiny_models.token_id("<image>"), *BYTE_LEVEL.encode("yes"), BYTE_LEVEL.eos_token_id]
    texts = token_pieces(BYTE_LEVEL, ids)
    assert texts[0] == "<image>" and texts[-1] == "<|im_end|>" and "".join(texts[1:-1]) == "yes"


def test_sentencepiece_spaces_and_bytes(sentencepiece_like):
    tokens = ["▁the", "▁defect", "s", "▁", "<0xE2>", "<0x82>", "<0xAC>", "▁no", "</s>"]
    ids = sentencepiece_like.convert_tokens_to_ids(tokens)
    texts = token_pieces(sentencepiece_like, ids)
    assert "".join(texts) == decoded(sentencepiece_like, ids) == "the defects € no</s>"
    assert texts == ["the", " defect", "s", " ", "", "", "€", " no", "</s>"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=30))
def test_any_byte_level_ids_join_to_the_text(ids):
    texts = token_pieces(BYTE_LEVEL, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == decoded(BYTE_LEVEL, ids)


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 264), max_size=20))
def test_any_sentencepiece_ids_join_to_the_text(sentencepiece_like, ids):
    texts = token_pieces(sentencepiece_like, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == decoded(sentencepiece_like, ids)
