"""What is read while a model generates is what a teacher-forced forward over the same response reads."""

import functools
import math

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from test_localize import GOOD, ids, picture
from transformers import LogitsProcessor

from realad_verl.attention import flash_reference
from realad_verl.backbones.answers import GenerationScores
from realad_verl.backbones.inputs import prepare
from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir

SHORT = "<think> no defect at all in this one </think><answer> no </answer>"
NO_ANSWER = "<think> a stain near the top, then nothing"


class Dictated(LogitsProcessor):
    """Makes a random model say these responses."""

    def __init__(self, responses, width):
        self.responses, self.width = responses, width

    def __call__(self, input_ids, scores):
        scores, step = torch.full_like(scores, -1e9), input_ids.shape[1] - self.width
        for row, response in enumerate(self.responses):
            scores[row, response[min(step, len(response) - 1)]] = 0.0
        return scores


def dictate(localizer, monkeypatch, texts):
    """Localizer calls now end in these responses; returns the list of the widths of all forwards."""
    responses, generate, widths = [ids(localizer, text) for text in texts], localizer.model.generate, []

    @functools.wraps(generate)
    def dictated(*args, logits_processor=(), **kwargs):
        voice = Dictated(responses, kwargs["input_ids"].shape[1])
        return generate(*args, logits_processor=[*logits_processor, voice], **kwargs)

    decoder = localizer.model.get_decoder()
    count = lambda _, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1])  # noqa: E731
    monkeypatch.setattr(localizer.model, "generate", dictated)
    handle = decoder.register_forward_pre_hook(count, with_kwargs=True)
    monkeypatch.setattr(localizer, "max_new_tokens", max(map(len, responses)))
    return responses, widths, handle


def same(got, want, within=1e-5):
    assert (got.response, got.answer, got.problem, got.n_kept) == (
        want.response,
        want.answer,
        want.problem,
        want.n_kept,
    )
    assert got.pred_score == pytest.approx(want.pred_score, abs=within)
    assert got.jaccard == (want.jaccard and pytest.approx(want.jaccard, abs=within))
    assert (got.grid_map is None) == (want.grid_map is None)
    if want.grid_map is not None:
        assert want.grid_map.max() > 1e-3
        assert np.abs(got.grid_map - want.grid_map).max() <= within
    for one, other in zip(got.tokens, want.tokens, strict=True):
        assert (one.text, one.kept) == (other.text, other.kept)
        assert (one.s_t, one.s_i) == pytest.approx((other.s_t, other.s_i), abs=within)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "glm4v", "internvl", "mistral3"])
def test_equals_the_teacher_forced_pass_without_a_second_one(family, monkeypatch):
    tiny = tiny_models.build(family)
    localizer = Localizer(tiny.model, tiny.processor)
    images = [picture(), picture(200, 60, seed=1), picture(seed=2)]
    responses, widths, handle = dictate(localizer, monkeypatch, [GOOD, SHORT, GOOD])
    got = localizer(images)
    handle.remove()
    assert len(widths) == max(map(len, responses)) and set(widths[1:]) == {1}  # the prompt, then a token at a time
    for one, other in zip(got, localizer.explain(images, responses), strict=True):
        assert one.answer is not None
        same(one, other)


@pytest.mark.parametrize("readout", [{"query": "before"}, {"heads": [[0, 1], [1, 0]]}, {"layers": [-1]}])
def test_every_setting_of_the_readout(readout, monkeypatch):
    tiny = tiny_models.build("qwen2_5_vl")
    localizer = Localizer(tiny.model, tiny.processor, method=MethodConfig.from_dict({"readout": readout}))
    responses, _, _ = dictate(localizer, monkeypatch, [SHORT, GOOD])
    for one, other in zip(
        localizer([picture(), picture()]), localizer.explain([picture()] * 2, responses), strict=True
    ):
        same(one, other)


@pytest.mark.parametrize(("attention", "forwards"), [("flash_attention_2", 1), ("sdpa", 1), ("eager", 2)])
def test_every_kernel(attention, forwards, monkeypatch):
    """flash-attn is not told whose call it is; eager's probabilities of one step are not those of all keys."""
    tiny = tiny_models.build("qwen2_5_vl")
    with flash_reference.as_flash_attention_2():
        config = tiny.model.config
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            part._attn_implementation = attention  # its setter would ask for the flash-attn package
        localizer = Localizer(tiny.model, tiny.processor)
        responses, widths, handle = dictate(localizer, monkeypatch, [GOOD])
        got = localizer([picture()])
        handle.remove()
        assert sum(width > 1 for width in widths) == forwards
        same(got[0], localizer.explain([picture()], responses)[0])


def test_a_placeholder_without_a_logit_is_no_error():
    scores = GenerationScores([1, 9], ([2], [3]))
    logits = torch.tensor([[0.0, 5.0, 2.0, 1.0]])
    assert scores(torch.tensor([[0]]), logits).tolist() == [[0.0, float("-inf"), 2.0, 1.0]]
    assert scores.share(0, 0) == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_a_response_without_an_answer_gets_a_forward_of_its_own(monkeypatch):
    tiny = tiny_models.build("qwen2_5_vl")
    localizer = Localizer(tiny.model, tiny.processor)
    responses, widths, _ = dictate(localizer, monkeypatch, [GOOD, NO_ANSWER])
    got = localizer([picture(), picture(seed=3)])
    assert sum(width > 1 for width in widths) == 2
    assert [one.answer for one in got] == ["yes", None]
    for one, other in zip(got, localizer.explain([picture(), picture(seed=3)], responses), strict=True):
        same(one, other)


def test_a_cache_that_drops_keys_is_noticed(monkeypatch):
    """A sliding window shorter than the prompt: the steps cannot tell, so a forward does."""
    tiny = tiny_models.build("gemma3")
    config = tiny.model.config.text_config
    windows = [module for module in tiny.model.modules() if getattr(module, "sliding_window", None) is not None]
    assert windows and "sliding_attention" in config.layer_types
    monkeypatch.setattr(config, "sliding_window", 8)
    for module in windows:
        monkeypatch.setattr(module, "sliding_window", 8)
    localizer = Localizer(tiny.model, tiny.processor)
    responses, widths, handle = dictate(localizer, monkeypatch, [GOOD])
    got = localizer([picture()])
    handle.remove()
    assert sum(width > 1 for width in widths) == 2
    same(got[0], localizer.explain([picture()], responses)[0])


def test_the_shipped_backbone():
    localizer = Localizer.from_pretrained(tiny_model_dir(), max_new_tokens=64)
    images = [picture(168, 168, seed) for seed in range(3)]
    said = localizer._generate([prepare(localizer.processor, localizer.text, image) for image in images])
    for one, other in zip(localizer(images), localizer.explain(images, said), strict=True):
        same(one, other)


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_each_sample_sees_its_own_image(family):
    """Samples of several images in one batch: what the language model gets is what it gets for the image alone."""
    tiny = tiny_models.build(family)
    localizer = Localizer(tiny.model, tiny.processor, max_new_tokens=1)
    noise = np.random.default_rng(0).integers(0, 255, (260, 260, 3), dtype=np.uint8)
    images = [Image.fromarray(noise[:h, :w]) for h, w in ((190, 260), (90, 120))]
    seen = []
    hook = tiny.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    localizer.sample(images, 2)
    together = seen.pop(0)
    for i, image in enumerate(images):
        seen.clear()
        localizer.sample([image], 1)
        alone = seen[0][0]
        for copy in together[2 * i : 2 * i + 2]:
            assert (copy[-len(alone) :] - alone).abs().max() <= 1e-5
    hook.remove()
