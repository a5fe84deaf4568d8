"""Where the reasoning and the answer are in a response: first in characters, then in tokens.

A response is *well formed* when it is exactly ``<think> reasoning </think><answer> yes | no </answer>``: every tag
once, in this order, nothing but white space around and between the blocks, a reasoning that is not blank [ours]. yes
and no may be spelled in any case, with white space around them and nothing else. Where the chat template has opened the
think block already, the response starts inside it: with ``SpanConfig.opened_by_template`` the tag counts as written.

What is not well formed has a defined result as well (``problem`` names the first line that applies):

| response                                 | reasoning              | answer               | problem           |
|------------------------------------------|------------------------|----------------------|-------------------|
| nothing, or white space                  | None                   | None                 | "empty"           |
| no opening think tag                     | None                   | as found             | "no_think"        |
| think block opened, never closed         | to <answer> or the end | as found             | "unclosed_think"  |
| several opening or closing think tags    | the first block        | as found             | "several_think"   |
| blank think block                        | None                   | as found             | "empty_reasoning" |
| an answer tag inside the think block     | the block, tag and all | as found             | "answer_in_think" |
| no opening answer tag outside the block  | the block              | None                 | "no_answer"       |
| several answer tags outside the block    | the block              | None                 | "several_answers" |
| answer block opened, never closed        | the block              | as found, to the end | "unclosed_answer" |
| an answer other than yes or no           | the block              | None                 | "bad_answer"      |
| the answer before the think block        | the block              | as found             | "wrong_order"     |
| text before, between or after the blocks | the block              | as found             | "extra_text"      |

"As found" is the one answer block outside the (first) think block, if it says yes or no, else None. So two answers are
no answer, and what stands inside the think block is never one. The first block runs from the first opening tag to the
first closing tag after it: tag texts quoted by the reasoning end it or are counted, so the response is not well formed.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from realad_verl.method.config import SpanConfig

Span = tuple[int, int]


@dataclass(frozen=True)
class ParsedResponse:
    """The parts of a response; spans are [start, end) in characters, white space at both ends left out."""

    reasoning: str | None
    answer: Literal["yes", "no"] | None
    well_formed: bool
    problem: str | None
    reasoning_span: Span | None
    answer_span: Span | None


def opened_spans(cfg: SpanConfig, prompt: str) -> SpanConfig:
    """``cfg`` for responses to ``prompt`` (text, as the chat template made it): "auto" becomes True or False."""
    if cfg.opened_by_template != "auto":
        return cfg
    return replace(cfg, opened_by_template=prompt.rstrip().endswith(cfg.think_open))


def parse_response(text: str, cfg: SpanConfig = SpanConfig()) -> ParsedResponse:
    """Parse one response; every text has a result (the table at the top of this file), none raises."""
    if cfg.opened_by_template is not True or not text.strip():
        return _parse(text, cfg)
    whole = _parse(cfg.think_open + text, cfg)
    spans = (whole.reasoning_span, whole.answer_span)
    moved = [span and (span[0] - len(cfg.think_open), span[1] - len(cfg.think_open)) for span in spans]
    return replace(whole, reasoning_span=moved[0], answer_span=moved[1])


def _parse(text: str, cfg: SpanConfig) -> ParsedResponse:
    block = _think_block(text, cfg)
    reasoning = _strip(text, *block[1]) if block else None
    outer, inner = block if block else ((0, 0), (0, 0))
    opens = _outside(_find(text, cfg.answer_open), outer)
    closes = _outside(_find(text, cfg.answer_close), outer)

    answer, answer_span, answer_end = None, None, len(text)
    if len(opens) == 1 and len(closes) <= 1:
        start = opens[0] + len(cfg.answer_open)
        if closes and closes[0] >= start:
            stop, answer_end = closes[0], closes[0] + len(cfg.answer_close)
        else:
            stop = outer[0] if block and outer[0] >= start else len(text)
        word_span = _strip(text, start, stop)
        word = text[slice(*word_span)].lower() if word_span else ""
        if word_span and (word == "yes" or word == "no"):
            answer, answer_span = word, word_span

    problem = _problem(text, cfg, block, reasoning, opens, closes, answer, answer_end)
    return ParsedResponse(
        reasoning=text[slice(*reasoning)] if reasoning else None,
        answer=answer,
        well_formed=problem is None,
        problem=problem,
        reasoning_span=reasoning,
        answer_span=answer_span,
    )


def _problem(
    text: str,
    cfg: SpanConfig,
    block: tuple[Span, Span] | None,
    reasoning: Span | None,
    opens: list[int],
    closes: list[int],
    answer: str | None,
    answer_end: int,
) -> str | None:
    """The first line of the table that applies, None for a well-formed response."""
    if not text.strip():
        return "empty"
    if block is None:
        return "no_think"
    outer, inner = block
    if outer[1] == inner[1]:
        return "unclosed_think"
    if len(_find(text, cfg.think_open)) > 1 or len(_find(text, cfg.think_close)) > 1:
        return "several_think"
    if reasoning is None:
        return "empty_reasoning"
    inside = text[slice(*inner)]
    if cfg.answer_open in inside or cfg.answer_close in inside:
        return "answer_in_think"
    if not opens:
        return "no_answer"
    if len(opens) > 1 or len(closes) > 1:
        return "several_answers"
    if not closes or closes[0] < opens[0]:
        return "unclosed_answer"
    if answer is None:
        return "bad_answer"
    if opens[0] < outer[0]:
        return "wrong_order"
    around = text[: outer[0]] + text[outer[1] : opens[0]] + text[answer_end:]
    return "extra_text" if around.strip() else None


def _think_block(text: str, cfg: SpanConfig) -> tuple[Span, Span] | None:
    """(span with tags, span inside the tags) of the first think block; an unclosed one ends before <answer>."""
    start = text.find(cfg.think_open)
    if start < 0:
        return None
    inner = start + len(cfg.think_open)
    stop = text.find(cfg.think_close, inner)
    if stop >= 0:
        return (start, stop + len(cfg.think_close)), (inner, stop)
    stop = text.find(cfg.answer_open, inner)
    stop = stop if stop >= 0 else len(text)
    return (start, stop), (inner, stop)


def _find(text: str, tag: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(tag), text)]


def _outside(starts: list[int], span: Span) -> list[int]:
    return [start for start in starts if not span[0] <= start < span[1]]


def _strip(text: str, start: int, stop: int) -> Span | None:
    """The span without white space at its ends, None if nothing is left."""
    inside = text[start:stop]
    stripped = inside.strip()
    if not stripped:
        return None
    start += len(inside) - len(inside.lstrip())
    return start, start + len(stripped)


def reasoning_tokens(pieces: Sequence[str], cfg: SpanConfig = SpanConfig()) -> list[int]:
    """Indices of the response tokens wholly or partly inside the reasoning, in order; empty where there is none.

    ``pieces``: the text of each response token; joined they are the response. A token that holds the end of a tag and
    the start of the reasoning counts. A piece without text (part of a character) counts where it stands inside.
    """
    return _overlapping(pieces, [parse_response("".join(pieces), cfg).reasoning_span])


def answer_token(pieces: Sequence[str], cfg: SpanConfig = SpanConfig()) -> int | None:
    """Index of the response token that holds the first letter of the answer word; None where there is no answer."""
    span = parse_response("".join(pieces), cfg).answer_span
    if span is None:
        return None
    return bisect_right(list(accumulate(map(len, pieces))), span[0])


def word_tokens(pieces: Sequence[str], words: Iterable[str]) -> list[int]:
    """Indices of the tokens that spell any of the words, every piece of a split word included.

    Whole words only, case does not count: "defect" is found in "Defect?" but not in "defective".
    """
    alternatives = "|".join(re.escape(word) for word in words)
    if not alternatives:
        return []
    text = "".join(pieces)
    matches = re.finditer(rf"(?<!\w)(?:{alternatives})(?!\w)", text, flags=re.IGNORECASE)
    return _overlapping(pieces, [match.span() for match in matches])


def _overlapping(pieces: Sequence[str], spans: Sequence[Span | None]) -> list[int]:
    """Indices of the pieces that share a character with a span; an empty piece, if it stands at or after its start."""
    ends = list(accumulate(map(len, pieces)))
    found = []
    for span in spans:
        if span is None:
            continue
        start, stop = span
        index = bisect_right(ends, start - 1) if start else 0
        while index < len(pieces) and ends[index] - len(pieces[index]) < stop:
            if ends[index] > start or (not pieces[index] and ends[index] >= start):
                found.append(index)
            index += 1
    return sorted(set(found))
