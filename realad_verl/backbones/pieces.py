"""The exact text of every token, so that spans found in the text can be told in tokens."""

import codecs
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from realad_verl.errors import UserError

REPLACEMENT = "\ufffd"


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds: ``"".join(pieces)`` is the decoded text, special tokens included.

    A character whose bytes are spread over several tokens belongs to the token that completes it; the tokens before
    add "". Bytes that are no valid UTF-8 become U+FFFD. Byte-level BPE is done from the bytes, any other tokenizer by
    decoding a growing window. Raises UserError where a tokenizer's decoding of a text depends on the tokens after it.
    """
    ids = [int(i) for i in ids]
    if _is_byte_level(tokenizer):
        return _byte_level_pieces(tokenizer.convert_ids_to_tokens(ids))
    return _windowed_pieces(tokenizer, ids)


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

    # The window begins with the last token whose text is known, since decoders strip a leading space.
    pieces, start, known = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, after = decode(ids[start:known]), decode(ids[start:end])
        if after.endswith(REPLACEMENT) and end < len(ids):
            pieces.append("")  # perhaps the beginning of a character
            continue
        pieces.append(after[len(before) :])
        start, known = known, end
    if "".join(pieces) != decode(ids):
        raise UserError(f"the text of single tokens cannot be told with {type(tokenizer).__name__}.")
    return pieces
