"""Chat templates that end a prompt with <think>: the tag counts as written, in rewards, evidence and localize alike."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from realad_verl.errors import UserError
from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig, SpanConfig
from realad_verl.method.spans import answer_token, opened_spans, parse_response, reasoning_tokens
from realad_verl.tiny import tiny_model_dir
from reward_fns.compose import compute_score

OPENED = SpanConfig(opened_by_template=True)
REPLY = "A bright scratch lies near the top left.\n</think><answer>yes</answer>"


def test_the_tag_counts_as_written():
    parsed = parse_response(REPLY, OPENED)
    assert parsed.well_formed and parsed.answer == "yes"
    assert parsed.reasoning == "A bright scratch lies near the top left."
    assert parsed.reasoning_span == (0, 40) and REPLY[slice(*parsed.answer_span or (0, 0))] == "yes"
    assert not parse_response(REPLY).well_formed
    assert parse_response("<think>again</think><answer>no</answer>", OPENED).problem == "several_think"
    assert (
        parse_response("", OPENED).problem == "empty" and parse_response("A dent", OPENED).problem == "unclosed_think"
    )


@settings(max_examples=200)
@given(
    st.text(alphabet="ab <>/\n", max_size=30), st.sampled_from(["</think>", ""]), st.text(alphabet="y es", max_size=5)
)
def test_it_is_the_parse_of_the_whole_text(reasoning, close, answer):
    text = f"{reasoning}{close}<answer>{answer}</answer>"
    ours, whole = parse_response(text, OPENED), parse_response("<think>" + text)
    assert (ours.reasoning, ours.answer, ours.problem) == (whole.reasoning, whole.answer, whole.problem)
    if ours.reasoning_span:
        assert text[slice(*ours.reasoning_span)] == ours.reasoning
    pieces = list(text)
    assert [pieces[i] for i in reasoning_tokens(pieces, OPENED)] == list(ours.reasoning or "")
    place = answer_token(pieces, OPENED)
    assert place is None or text[place:].lower().startswith(ours.answer or "?")


@pytest.mark.parametrize(
    ("prompt", "opens"), [("assistant\n<think>\n", True), ("assistant\n", False), ("<think> x", False)]
)
def test_auto_looks_at_the_prompt(prompt, opens):
    assert opened_spans(SpanConfig(), prompt).opened_by_template is opens
    assert opened_spans(OPENED, prompt) is OPENED, "a setting is not looked up"


def test_wrong_setting():
    with pytest.raises(UserError, match="spans.opened_by_template = 'yes'"):
        SpanConfig(opened_by_template="yes")  # type: ignore[arg-type]


def test_rewards():
    score = compute_score("x", REPLY, "yes", spans={"opened_by_template": True})
    assert (score["score"], score["format_reward"]) == (2.0, 1.0)
    assert compute_score("x", REPLY, "yes")["format_reward"] == 0.0


def test_localize_reads_evidence_of_an_opened_block(tmp_path):
    """The evidence is that of the same tokens, wherever the tag stands: as the template's or as the response's."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir(), model)
    template, before = model / "chat_template.jinja", "<|im_start|>assistant\n{% endif %}"
    plain = Localizer.from_pretrained(model)
    template.write_text(template.read_text().replace(before, "<|im_start|>assistant\n<think>{% endif %}"))
    opened = Localizer.from_pretrained(model, method=MethodConfig())
    assert opened.method.spans.opened_by_template is True and plain.method.spans.opened_by_template is False
    image = Image.effect_noise((84, 84), 60).convert("RGB")
    ids = opened.tokenizer.encode(REPLY, add_special_tokens=False)
    (found,) = opened.explain([image], [ids])
    tag = opened.tokenizer.encode("<think>", add_special_tokens=False)
    (expected,) = plain.explain([image], [tag + ids])
    assert found.well_formed and found.answer == "yes" and found.reasoning == expected.reasoning
    assert found.pred_score == pytest.approx(expected.pred_score, abs=1e-6) and found.anomaly_map is not None
    assert found.anomaly_map == pytest.approx(expected.anomaly_map, abs=1e-6)
    assert [t.text for t in found.tokens] == [t.text for t in expected.tokens]
    (empty,) = opened.explain([image], [[]])
    assert empty.format_problem == "empty" and empty.pred_score is not None
