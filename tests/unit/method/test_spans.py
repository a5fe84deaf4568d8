"""Every line of the table in spans.py, token spans, and that no text raises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realad_verl.method.spans import answer_token, parse_response, reasoning_tokens, word_tokens

TABLE = [
    # response, reasoning, answer, problem
    ("<think>a dent</think><answer>yes</answer>", "a dent", "yes", None),
    (" \n<think>\n a dent </think>\n\n<answer> No\n</answer>\n", "a dent", "no", None),
    ("<think>x</think><answer>YES</answer>", "x", "yes", None),
    ("", None, None, "empty"),
    (" \n\t", None, None, "empty"),
    ("yes", None, None, "no_think"),
    ("<answer>yes</answer>", None, "yes", "no_think"),
    ("a dent</think><answer>yes</answer>", None, "yes", "no_think"),
    ("<Think>x</Think><answer>yes</answer>", None, "yes", "no_think"),
    ("<think>a dent", "a dent", None, "unclosed_think"),
    ("<think>", None, None, "unclosed_think"),
    ("<think>a dent <answer>yes</answer>", "a dent", "yes", "unclosed_think"),
    ("<think>a</think><think>b</think><answer>yes</answer>", "a", "yes", "several_think"),
    ("<think>say <think> now</think><answer>yes</answer>", "say <think> now", "yes", "several_think"),
    ("<think>say </think> now</think><answer>yes</answer>", "say", "yes", "several_think"),
    ("<think></think><answer>yes</answer>", None, "yes", "empty_reasoning"),
    ("<think> \n </think><answer>yes</answer>", None, "yes", "empty_reasoning"),
    ("<think>a<answer>yes</answer></think>", "a<answer>yes</answer>", None, "answer_in_think"),
    ("<think><answer>yes</answer></think><answer>no</answer>", "<answer>yes</answer>", "no", "answer_in_think"),
    ("<think>a</think>", "a", None, "no_answer"),
    ("<think>a</think> yes", "a", None, "no_answer"),
    ("<think>a</think>yes</answer>", "a", None, "no_answer"),
    ("<think>a</think><answer>yes</answer><answer>no</answer>", "a", None, "several_answers"),
    ("<think>a</think><answer>yes</answer><answer>yes</answer>", "a", None, "several_answers"),
    ("<think>a</think><answer>yes</answer></answer>", "a", None, "several_answers"),
    ("<think>a</think><answer> yes", "a", "yes", "unclosed_answer"),
    ("<think>a</think><answer> yes, I", "a", None, "unclosed_answer"),
    ("<think>a</think><answer>yes.</answer>", "a", None, "bad_answer"),
    ("<think>a</think><answer>yes no</answer>", "a", None, "bad_answer"),
    ("<think>a</think><answer></answer>", "a", None, "bad_answer"),
    ("<answer>no</answer><think>a</think>", "a", "no", "wrong_order"),
    ("<think>a</think><answer>no</answer> done", "a", "no", "extra_text"),
    ("Well: <think>a</think><answer>no</answer>", "a", "no", "extra_text"),
    ("<think>a</think> so <answer>no</answer>", "a", "no", "extra_text"),
]


@pytest.mark.parametrize(("text", "reasoning", "answer", "problem"), TABLE)
def test_table(text, reasoning, answer, problem):
    parsed = parse_response(text)
    assert (parsed.reasoning, parsed.answer, parsed.problem) == (reasoning, answer, problem)
    assert parsed.well_formed == (problem is None)
    if parsed.reasoning_span:
        assert text[slice(*parsed.reasoning_span)] == reasoning
    if parsed.answer_span:
        assert text[slice(*parsed.answer_span)].lower() == answer


def test_tokens():
    pieces = ["<", "think", ">a", " dent", " </", "think", "><", "answer", ">", " ye", "s", "</answer>"]
    assert reasoning_tokens(pieces) == [2, 3]
    assert answer_token(pieces) == 9
    assert reasoning_tokens([]) == [] and answer_token([]) is None
    assert reasoning_tokens(["<think>", " \n", "</think>"]) == []


def test_pieces_without_text_count_where_they_stand():
    assert reasoning_tokens(["<think>", "", "é", " x", "</think>", ""]) == [1, 2, 3]


def test_the_whole_block_in_one_token():
    pieces = ["<think>a</think><answer>no</answer>"]
    assert reasoning_tokens(pieces) == [0] and answer_token(pieces) == 0


def test_word_tokens():
    pieces = ["Any", " DEF", "ects", " or", " anomal", "ies", "?", " defective", " un", "defect", " defect"]
    assert word_tokens(pieces, ("defect", "defects", "anomalies")) == [1, 2, 4, 5, 10]
    assert word_tokens(pieces, ()) == [] and word_tokens([], ("defect",)) == []
    assert word_tokens(["a.b", "aXb"], ("a.b",)) == []  # a letter follows: no whole word
    assert word_tokens(["a.b", " aXb"], ("a.b",)) == [0]


PARTS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "yes", "no", "Yes", " ", "\n", "<", ">", "", "é", "defect"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(PARTS, st.text(max_size=4)), max_size=14))
def test_no_pieces_raise_and_spans_agree(pieces):
    text = "".join(pieces)
    parsed = parse_response(text)
    assert parsed.well_formed == (parsed.problem is None)
    tokens = reasoning_tokens(pieces)
    assert tokens == sorted(set(tokens)) and all(0 <= i < len(pieces) for i in tokens)
    assert bool(tokens) == (parsed.reasoning is not None)
    if parsed.reasoning is not None:
        assert parsed.reasoning in "".join(pieces[tokens[0] : tokens[-1] + 1])
    index = answer_token(pieces)
    assert (index is None) == (parsed.answer is None)
    if parsed.well_formed:
        assert parsed.answer and parsed.reasoning
        assert all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    words = word_tokens(pieces, ("defect", "yes"))
    assert words == sorted(set(words)) and all(0 <= i < len(pieces) for i in words)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_raises(text):
    parse_response(text)
    assert parse_response(f"<think>{text}</think><answer>yes</answer>").answer in ("yes", None)
