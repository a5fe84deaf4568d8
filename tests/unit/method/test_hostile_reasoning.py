"""Reasoning of any length and any cut into tokens: a defined result, in bounded time and memory."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import compute_evidence
from realad_verl.method.spans import answer_token, parse_response, reasoning_tokens

GRID, P = (15, 15), 225
RESPONSE = "<think> a dark scratch on the rim </think><answer> yes </answer>"


def test_reasoning_of_10000_tokens():
    """Every token kept, the most costly case: the Jaccard index is over all pairs."""
    words = ["<think>", *[" scratch"] * 10_000, "</think>", "<answer>", "yes", "</answer>"]
    began = time.perf_counter()
    tokens = reasoning_tokens(words)
    assert tokens == list(range(1, 10_001)) and answer_token(words) == 10_003
    rows = torch.rand(10_000, P, generator=torch.manual_seed(0))
    everything = MethodConfig.from_dict({"scoring": {"select": "all"}})
    found = compute_evidence(rows, torch.rand(10_000), GRID, everything)
    assert (found.n_reasoning, found.n_kept, found.problem) == (10_000, 10_000, None)
    assert found.jaccard is not None and 0 <= found.jaccard <= 1
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("text", ["", "<think></think>", "<think> \n </think><answer> yes </answer>"])
def test_reasoning_of_no_token(text):
    assert reasoning_tokens(list(text)) == []
    found = compute_evidence(torch.zeros(0, P), torch.zeros(0), GRID)
    assert found.jaccard is None and found.anomaly_map_P is None and found.problem == "no_reasoning"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, len(RESPONSE) - 1), max_size=30, unique=True))
def test_any_tokenizer_finds_the_same_reasoning(cuts):
    """However a tokenizer splits the text, tags included: the tokens are those that touch the reasoning."""
    ends = [*sorted(cuts), len(RESPONSE)]
    starts = [0, *ends[:-1]]
    pieces = [RESPONSE[a:b] for a, b in zip(starts, ends, strict=True)]
    first, last = parse_response(RESPONSE).reasoning_span
    touching = [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < last and b > first]
    assert reasoning_tokens(pieces) == touching
    answer = answer_token(pieces)
    assert answer is not None and starts[answer] <= RESPONSE.index("yes") < ends[answer]


@pytest.mark.parametrize("part", ["<think>", "</think>", "<answer>yes</answer>", "<", "\u202e", "\x00", "é"])
def test_a_part_repeated_is_parsed_in_linear_time(part):
    """A quadratic parser would take minutes for these."""
    began = time.perf_counter()
    for text in (part * 200_000, f"<think>{part * 100_000}</think>{part * 100_000}"):
        parse_response(text)
    assert time.perf_counter() - began < 10
