"""A response in which the model sampled an image token: cut by our agent loop, so that verl's worker can take it."""

import pytest
from engine_rank import RESPONSES, make_samples

from realad_verl.tiny import tiny_model_dir

IMAGE = "<|image_pad|>"


@pytest.fixture(scope="module")
def verl(monkeypatch_module):
    """verl on the CPU platform, with our agent loop."""
    import verl.experimental.agent_loop  # noqa: F401  (brings ours along)

    from realad_verl.verl_ext.train import agent_loop

    return agent_loop


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_PLATFORM", "cpu")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield patch


def output(response_ids: list[int]):
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    n = len(response_ids)
    return AgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=response_ids,
        response_mask=[1] * n,
        response_logprobs=[-0.5 * i for i in range(n)],
        metrics=AgentLoopMetrics(),
    )


def test_the_response_ends_before_its_first_media_token(verl):
    found = verl.cut_at_media(output([5, 6, 90, 7, 91]), {90, 91})
    assert (found.response_ids, found.response_mask, found.response_logprobs) == ([5, 6], [1, 1], [0.0, -0.5])
    assert found.extra_fields[verl.CUT] == 3
    whole = verl.cut_at_media(output([5, 6]), {90, 91})
    assert whole.response_ids == [5, 6] and whole.extra_fields[verl.CUT] == 0


def test_nothing_before_it_is_no_response(verl):
    with pytest.raises(ValueError, match="begins with an image token"):
        verl.cut_at_media(output([90, 5]), {90})


def test_the_agent_loop_knows_the_tokens_of_the_processor(verl):
    from verl.utils import hf_processor
    from verl.utils.tokenizer import get_processor_token_id

    processor = hf_processor(str(tiny_model_dir()))
    ids = {get_processor_token_id(processor, name) for name in verl.MEDIA} - {None}
    assert processor.tokenizer.convert_tokens_to_ids(IMAGE) in ids


def test_uncut_it_has_no_positions(verl, monkeypatch):
    """Why: verl places the sequence on its grid while sampling, and finds no image for the token."""
    monkeypatch.setattr("engine_rank.RESPONSES", (f"<think> a {IMAGE} scratch </think>", *RESPONSES[1:]))
    with pytest.raises((StopIteration, RuntimeError)):
        make_samples(str(tiny_model_dir()), 1, equal=False)
