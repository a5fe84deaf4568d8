"""Localizer on tiny random models: teacher-forced evidence, scores, batches, and every kind of response."""

import dataclasses

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from realad_verl.backbones.answers import answer_ids, yes_share
from realad_verl.backbones.inputs import stretched
from realad_verl.errors import UserError
from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig

GOOD = "<think> a scratch on the left side, no other defect </think><answer> yes </answer>"


def picture(width=120, height=90, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def localizer():
    tiny = tiny_models.build("qwen2_5_vl")
    return Localizer(tiny.model, tiny.processor, max_new_tokens=12)


def ids(localizer, text, end=True):
    return localizer.tokenizer.encode(text, add_special_tokens=False) + [localizer.tokenizer.eos_token_id] * end


def explain(localizer, text, image=None):
    return localizer.explain([image or picture()], [ids(localizer, text)])[0]


def test_well_formed_response(localizer):
    result = explain(localizer, GOOD)
    assert (result.answer, result.pred_label, result.well_formed, result.problem) == ("yes", 1, True, None)
    assert result.response == GOOD and result.reasoning == "a scratch on the left side, no other defect"
    assert result.anomaly_map.shape == result.image_size == (90, 120) and result.anomaly_map.dtype == np.float32
    assert result.grid_map.shape == (3, 4)
    assert "".join(token.text for token in result.tokens).strip() == result.reasoning
    assert sum(token.kept for token in result.tokens) == result.n_kept > 0
    assert 0 <= result.jaccard <= 1


def test_map_and_weights_are_those_of_eager_attention(localizer):
    """The whole path against output_attentions, with the map's formula written out."""
    response = ids(localizer, GOOD)
    result = explain(localizer, GOOD)
    text, tokenizer = localizer.text, localizer.tokenizer
    outputs = localizer.processor(images=[picture()], text=[text], return_tensors="pt")
    prompt = outputs["input_ids"][0]
    sequence = torch.cat([prompt, torch.tensor(response)])[None]
    types = torch.cat([outputs["mm_token_type_ids"], torch.zeros(1, len(response), dtype=torch.long)], 1)
    localizer.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = localizer.model(
            input_ids=sequence,
            mm_token_type_ids=types,
            pixel_values=outputs["pixel_values"],
            image_grid_thw=outputs["image_grid_thw"],
            output_attentions=True,
        ).attentions
    localizer.model.set_attn_implementation("sdpa")
    mean = torch.stack(list(attentions)).mean(dim=(0, 2))[0]
    first = len(tokenizer.encode("<think> ", add_special_tokens=False)) + len(prompt)
    queries = torch.arange(first, first + len(result.tokens))
    rows = mean[queries][:, : len(prompt)][:, prompt == tiny_models.token_id("<image>")]
    kept = torch.tensor([token.kept for token in result.tokens])
    weights = torch.tensor([token.weight for token in result.tokens])[kept]
    expected = (weights[:, None] * rows[kept]).sum(0) / weights.sum()
    assert np.abs(result.grid_map.flatten() - expected.numpy()).max() <= 1e-6
    pieces = [tokenizer.decode([i]) for i in prompt]
    words = [
        i
        for word in (" defects", " anomalies")
        for i in range(len(pieces))
        for n in range(1, 10)
        if "".join(pieces[i : i + n]) == word
        for i in range(i, i + n)
    ]
    assert len(words) > 2, "each word takes several tokens"
    s_t = [token.s_t for token in result.tokens]
    assert s_t == pytest.approx(mean[queries][:, words].sum(1).tolist(), abs=1e-6)


def test_score_is_the_share_of_yes_where_the_answer_begins(localizer):
    response = ids(localizer, GOOD)
    outputs = localizer.processor(images=[picture()], text=[localizer.text], return_tensors="pt")
    before = localizer.tokenizer.encode(GOOD[: GOOD.index(" yes")], add_special_tokens=False)
    assert response[: len(before)] == before
    length = outputs["input_ids"].shape[1] + len(before)
    outputs["input_ids"] = torch.cat([outputs["input_ids"], torch.tensor([before])], 1)
    outputs["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    outputs["mm_token_type_ids"] = torch.nn.functional.pad(outputs["mm_token_type_ids"], (0, len(before)))
    with torch.no_grad():
        probabilities = localizer.model(**outputs).logits[0, -1].softmax(0)
    yes, no = (probabilities[part].sum() for part in answer_ids(localizer.tokenizer))
    assert explain(localizer, GOOD).pred_score == pytest.approx(float(yes / (yes + no)), abs=1e-6)


@pytest.mark.parametrize(
    "text, problem, format_problem",
    [
        ("", "no_reasoning", "empty"),
        ("no idea", "no_reasoning", "no_think"),
        ("<think></think><answer> no </answer>", "no_reasoning", "empty_reasoning"),
        ("<think> looks clean and even", None, "unclosed_think"),
        ("<think> ok </think><answer> no </answer>", "too_few_tokens", None),
        ("<think> looks clean and even </think>", None, "no_answer"),
        (GOOD + " and more", None, "extra_text"),
    ],
)
def test_every_kind_of_response_has_a_result(localizer, text, problem, format_problem):
    result = explain(localizer, text)
    assert (result.problem, result.format_problem) == (problem, format_problem)
    assert 0 <= result.pred_score <= 1
    assert (result.anomaly_map is None) == (problem == "no_reasoning")


def test_score_without_an_answer_is_that_of_the_opened_answer(localizer):
    without, opened = "<think> looks clean and even", "<think> looks clean and even</think><answer>"
    yes, no = answer_ids(localizer.tokenizer)
    outputs = localizer.processor(images=[picture()], text=[localizer.text + opened], return_tensors="pt")
    with torch.no_grad():
        logits = localizer.model(**outputs).logits[0, -1]
    assert explain(localizer, without).pred_score == pytest.approx(yes_share(logits, (yes, no)), abs=1e-6)


def test_batch_equals_one_by_one(localizer):
    images = [picture(120, 90), picture(60, 200, seed=1), picture(300, 200, seed=2)]
    responses = [ids(localizer, text) for text in (GOOD, "<think> looks clean and even </think>", "no")]
    for image, response, batched in zip(images, responses, localizer.explain(images, responses), strict=True):
        alone = localizer.explain([image], [response])[0]
        assert batched.pred_score == pytest.approx(alone.pred_score, abs=1e-5)
        assert (batched.response, batched.problem) == (alone.response, alone.problem)
        if alone.grid_map is not None:
            assert np.abs(batched.grid_map - alone.grid_map).max() < 1e-6


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_every_family_in_batches(family):
    tiny = tiny_models.build(family)
    localizer = Localizer(tiny.model, tiny.processor, max_new_tokens=4)
    images = [picture(120, 90), picture(60, 210, seed=1)]
    responses = [ids(localizer, GOOD), ids(localizer, "<think> looks clean and even </think>")]
    assert len(localizer(images)) == 2
    for image, response, batched in zip(images, responses, localizer.explain(images, responses), strict=True):
        alone = localizer.explain([image], [response])[0]
        assert batched.pred_score == pytest.approx(alone.pred_score, abs=1e-5)
        assert np.abs(batched.grid_map - alone.grid_map).max() < 1e-6
        assert batched.anomaly_map.shape == (image.height, image.width)


def test_generation_is_greedy_and_the_same_in_a_batch(localizer):
    images = [picture(120, 90), picture(60, 200, seed=1)]
    batched = localizer(images)
    assert [result.response for result in batched] == [localizer(image).response for image in images]
    assert localizer([]) == []


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, len(tiny_models.tokenizer()) - 1), max_size=12))
def test_no_response_raises(localizer, response):
    """Image placeholders, end tokens and broken bytes included."""
    result = localizer.explain([picture()], [response])[0]
    assert result.pred_score is not None and result.problem in (None, "no_reasoning", "too_few_tokens")


def test_sampled_image_token_is_no_image_column(localizer):
    image_id = tiny_models.token_id("<image>")
    cut = len(ids(localizer, "<think> a scratch", end=False))
    response = ids(localizer, GOOD)
    result = localizer.explain([picture()], [response[:cut] + [image_id] * 3 + response[cut:]])[0]
    assert result.grid_map.shape == (3, 4) and result.problem is None


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 5)])
def test_any_size_of_image(localizer, size):
    result = explain(localizer, GOOD, picture(*size))
    assert result.anomaly_map.shape == (size[1], size[0]) and np.isfinite(result.anomaly_map).all()


def test_stretching_touches_narrow_images_only():
    assert stretched(picture(120, 90)).size == (120, 90)
    assert stretched(picture(1, 10000)).size == (100, 10000)


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_loads_what_it_saved(tmp_path, family):
    tiny = tiny_models.build(family)
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = Localizer.from_pretrained(tmp_path, max_new_tokens=12)
    # The loaded processor for both: transformers picks another resize for some families when it loads one.
    expected, found = explain(Localizer(tiny.model, loaded.processor), GOOD), explain(loaded, GOOD)
    np.testing.assert_allclose(found.grid_map, expected.grid_map, atol=1e-7)
    assert found.pred_score == pytest.approx(expected.pred_score, abs=1e-6)


def test_mistakes_are_named(tmp_path, localizer):
    with pytest.raises(UserError, match="cannot load a model from"):
        Localizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="device = 'gpu'"):
        Localizer.from_pretrained(tmp_path, device="gpu")
    with pytest.raises(UserError, match="1 images but 2 responses"):
        localizer.explain([picture()], [[], []])
    with pytest.raises(UserError, match="max_new_tokens"):
        Localizer(localizer.model, localizer.processor, max_new_tokens=0)
    layers = MethodConfig.from_dict({"readout": {"layers": [7]}})
    with pytest.raises(UserError, match="layer 7 does not exist"):
        Localizer(localizer.model, localizer.processor, method=layers)


def test_settings_reach_the_method(localizer):
    everything = MethodConfig.from_dict({"scoring": {"select": "all"}})
    other = Localizer(localizer.model, localizer.processor, method=everything)
    result = explain(other, GOOD)
    assert result.n_kept == len(result.tokens) and {token.weight for token in result.tokens} == {1.0}
    assert dataclasses.is_dataclass(result)
