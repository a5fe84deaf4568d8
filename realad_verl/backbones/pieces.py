"""The exact text of every token, so that spans found in the text can be told in tokens."""

import codecs
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from realad_verl.errors import UserError

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")  # sentencepiece's byte fallback


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds: ``"".join(pieces)`` is the decoded text, special tokens included.

    A character whose bytes are spread over several tokens belongs to the token that completes it; the tokens before
    add "". Bytes that are no valid UTF-8 become U+FFFD. Byte-level BPE is done from the bytes, any other tokenizer by
    decoding a short window. Raises UserError where a tokenizer's decoding of a text depends on the tokens after it.
    """
    ids = [int(i) for i in ids]
    if _is_byte_level(tokenizer):
        return _byte_level_pieces(tokenizer.convert_ids_to_tokens(ids))
    return _windowed_pieces(tokenizer, ids)


def response_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """``token_pieces`` of a response: special tokens (end of turn, padding, a sampled image token) add "".

    ``"".join(pieces)`` is what decoding with ``skip_special_tokens=True`` gives: the text that rewards see.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = iter(token_pieces(tokenizer, [i for i in ids if int(i) not in special]))
    return ["" if int(i) in special else next(texts) for i in ids]


@lru_cache(maxsize=16)
def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    return json.loads(backend.decoder.__getstate__()).get("type") == "ByteLevel"


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others for U+0100 upwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level_pieces(tokens: list[str | None]) -> list[str]:
    alphabet = _byte_of_char()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    for token in tokens:
        token = token or ""  # an id that the vocabulary lacks (a padded embedding) decodes to nothing
        # An added token may hold characters outside the alphabet; it is then its own text.
        raw = bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
        pieces.append(decoder.decode(raw))
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces


def _windowed_pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(ids)]
    # The window begins with the last text known, since decoders strip a leading space. What a byte token adds depends
    # on its neighbours, so a run of them is decoded together.
    pieces, start, known = [], 0, 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and _is_byte(tokens[end - 1]) and _is_byte(tokens[end]):
            continue
        text = decode(ids[start:end])[len(decode(ids[start:known])) :]
        pieces += _spread_over_bytes(text, tokens[known:end]) if end - known > 1 else [text]
        start, known = known, end
    if "".join(pieces) != decode(ids):
        raise UserError(f"the text of single tokens cannot be told with {type(tokenizer).__name__}.")
    return pieces


def _is_byte(token: str) -> bool:
    return BYTE_TOKEN.fullmatch(token) is not None


def _spread_over_bytes(text: str, tokens: list[str]) -> list[str]:
    """Each character of a run of byte tokens to the token that completes it; where that cannot be told, to the last."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(bytes([int(token[3:5], 16)])) for token in tokens]
    if "".join(pieces) == text:
        return pieces
    if len(text) == len(tokens):  # an invalid run: decoders put one U+FFFD for each byte
        return list(text)
    return [""] * (len(tokens) - 1) + [text]
