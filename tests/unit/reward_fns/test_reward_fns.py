"""Each reward function alone, its doctest, and the entry point as verl loads and calls it."""

import doctest
import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realad_verl.errors import UserError
from reward_fns.accuracy import accuracy_reward
from reward_fns.compose import compute_score
from reward_fns.format import format_reward

GOOD = "<think>A dent on the rim.</think><answer>yes</answer>"


@pytest.mark.parametrize("name", ["format", "accuracy", "consistency", "compose"])
def test_doctest(name):
    result = doctest.testmod(importlib.import_module(f"reward_fns.{name}"))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("ground_truth", "accuracy", "bad"),
    [("yes", 1, 0), ("Yes", 1, 0), (1, 1, 0), (True, 1, 0), ("no", 0, 0), (0, 0, 0), ("maybe", 0, 1), (None, 0, 1)],
)
def test_ground_truth(ground_truth, accuracy, bad):
    result = compute_score("realad/x", GOOD, ground_truth)
    assert result["accuracy_reward"] == accuracy and result["bad_ground_truth"] == bad
    assert result["score"] == (0 if bad else 1 + accuracy)


def test_weights():
    assert compute_score("realad/x", GOOD, "yes", w_fmt=0.5, w_acc=2.0)["score"] == 2.5


def test_what_verl_passes_is_taken_and_a_wrong_key_is_not():
    compute_score("realad/x", GOOD, "yes", {}, reward_router_address="x", reward_model_tokenizer=None)
    with pytest.raises(UserError, match="'w_fmtt'.*Did you mean 'w_fmt'"):
        compute_score("realad/x", GOOD, "yes", w_fmtt=1.0)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans()))
def test_any_text_scores_with_the_same_float_keys(text, ground_truth):
    result = compute_score("realad/x", text, ground_truth)
    assert list(result) == ["score", "format_reward", "accuracy_reward", "bad_ground_truth"]
    assert all(type(value) is float for value in result.values())
    assert format_reward(text) in (0.0, 1.0) and accuracy_reward(text, ground_truth) in (0.0, 1.0)


def test_verl_loads_it():
    reward = pytest.importorskip("verl.trainer.ppo.reward", reason="verl is not installed")
    from omegaconf import OmegaConf

    entry = {"path": "pkg://reward_fns.compose", "name": "compute_score", "reward_kwargs": {"w_acc": 3.0}}
    function = reward.get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": entry}}))
    result = function(data_source="realad/x", solution_str=GOOD, ground_truth="yes", extra_info={"num_turns": None})
    assert result["score"] == 4.0
