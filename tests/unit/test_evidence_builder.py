"""EvidenceBuilder: the rows and columns it asks for, how it reduces them, what it says where evidence is missing."""

import pytest
import tiny_models
import torch

from realad_verl.errors import UserError
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import compute_evidence

TOKENIZER = tiny_models.tokenizer()
IMAGE = tiny_models.token_id("<image>")
GRID = {"image_grid_thw": torch.tensor([[1, 4, 6]])}  # 2 x 3 tokens
QUESTION = " any defects or anomalies?"
RESPONSE = "<think> a scratch on the left side </think><answer> yes </answer>"


@pytest.fixture(scope="module")
def config():
    return tiny_models.build("qwen2_5_vl").model.config


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def plan(config, response=RESPONSE, question=QUESTION, images=6, outputs=GRID, settings=None, **place):
    builder = EvidenceBuilder(config, TOKENIZER, MethodConfig.from_dict(settings))
    prompt = encode("see ") + [IMAGE] * images + encode(question)
    ids = prompt + encode(response) + [TOKENIZER.eos_token_id]
    return builder, builder.plan(torch.tensor(ids), len(prompt), outputs, **place), ids, len(prompt)


def text_at(ids, positions):
    return TOKENIZER.decode([ids[i] for i in positions])


def test_queries_are_the_reasoning_and_columns_the_image_then_the_words(config):
    _, found, ids, prompt_length = plan(config, batch_row=3, offset=7)
    request = found.request
    assert (request.batch_row, request.offset, request.length) == (3, 7, len(ids))
    assert text_at(ids, request.queries).strip() == "a scratch on the left side"
    assert [prompt_length + r for r in found.reasoning] == request.queries.tolist()
    columns = request.columns.tolist()
    first = len(encode("see "))
    assert columns[:6] == list(range(first, first + 6)) and found.layout.grid == (2, 3)
    assert found.n_words == len(columns) - 6
    assert text_at(ids, columns[6:]).split() == ["defects", "anomalies"]
    assert found.problem is None


def test_query_before_is_one_position_earlier(config):
    _, at, _, _ = plan(config)
    _, before, _, _ = plan(config, settings={"readout": {"query": "before"}})
    assert (at.request.queries - before.request.queries).unique().tolist() == [1]
    assert at.reasoning == before.reasoning


def test_rows_are_reduced_by_the_method(config):
    """The builder adds nothing to the method: S_T is the sum over word columns, the rest are the map's rows."""
    builder, found, _, _ = plan(config)
    rows = torch.rand(len(found.reasoning), len(found.request.columns), generator=torch.manual_seed(0))
    (evidence,) = builder.reduce([found], [rows])
    expected = compute_evidence(rows[:, :6], rows[:, 6:].sum(1), (2, 3), builder.cfg)
    torch.testing.assert_close(evidence.anomaly_map_P, expected.anomaly_map_P)
    torch.testing.assert_close(evidence.s_t_R, rows[:, 6:].sum(1))
    assert (evidence.jaccard, evidence.n_kept, evidence.problem) == (expected.jaccard, expected.n_kept, None)


def test_results_keep_the_order_of_plans_with_and_without_rows(config):
    builder, good, _, _ = plan(config)
    _, bad, _, _ = plan(config, response="no idea")
    short = plan(config, response="<think> clean </think>")[1]
    rows = [torch.rand(len(p.reasoning), len(p.request.columns)) for p in (good, short)]
    found = builder.reduce([bad, good, bad, short], rows)
    assert [e.problem for e in found] == ["no_reasoning", None, "no_reasoning", "too_few_tokens"]
    assert found[0].anomaly_map_P is None and found[0].jaccard is None and found[0].grid == (2, 3)
    assert found[3].anomaly_map_P is not None and found[3].jaccard is None
    assert builder.reduce([], []) == []
    with pytest.raises(ValueError):
        builder.reduce([good], [])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"response": "<think></think><answer> no </answer>"}, "no_reasoning"),
        ({"response": ""}, "no_reasoning"),
        ({"images": 0, "outputs": {}}, "no_image"),
        ({"images": 2, "outputs": {"image_grid_thw": torch.tensor([[1, 2, 2]] * 2)}}, "multiple_images"),
        ({"question": " well?"}, "no_words"),
        ({"question": " well?", "settings": {"scoring": {"select": "text"}}}, "no_words"),
        ({"question": " well?", "settings": {"scoring": {"select": "image"}}}, None),
        ({"question": " well?", "settings": {"scoring": {"select": "all"}}}, None),
        ({"images": 0, "outputs": {}, "response": ""}, "no_image"),
    ],
)
def test_missing_parts_are_named_in_the_order_of_the_table(config, changes, problem):
    _, found, _, _ = plan(config, **changes)
    assert found.problem == problem
    assert (found.request is None) == (problem is not None)


def test_rows_that_are_not_finite_are_named(config):
    builder, found, _, _ = plan(config)
    rows = torch.rand(len(found.reasoning), len(found.request.columns))
    rows[2, 1] = float("nan")
    assert builder.reduce([found], [rows])[0].problem == "non_finite"


def test_image_tokens_of_the_response_are_no_columns(config):
    builder = EvidenceBuilder(config, TOKENIZER, MethodConfig())
    prompt = [IMAGE] * 6 + encode(QUESTION)
    response = encode("<think> a scratch") + [IMAGE] * 2 + encode(" on the left </think>")
    found = builder.plan(torch.tensor(prompt + response), len(prompt), GRID)
    assert found.request.columns[:6].tolist() == list(range(6)) and found.layout.grid == (2, 3)
    assert found.problem is None


def test_settings_of_words_and_spans_are_used(config):
    settings = {"readout": {"words": ["see"]}, "spans": {"think_open": "<r>", "think_close": "</r>"}}
    _, found, ids, _ = plan(config, response="<r> a scratch on it </r>", settings=settings)
    assert text_at(ids, found.request.columns[6:]).strip() == "see"
    assert text_at(ids, found.request.queries).strip() == "a scratch on it"


def test_a_prompt_that_does_not_fit_its_image_raises(config):
    with pytest.raises(UserError, match="holds 5 image tokens"):
        plan(config, images=5)
