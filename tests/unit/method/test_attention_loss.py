"""The consensus loss by hand: 2 x 2 grid, cells a b / c d."""

import math

import pytest
import torch

from realad_verl.errors import UserError
from realad_verl.method.attention_loss import RunningBaseline, consensus_target, response_map, token_losses
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.baseline import Baseline

GRID = (2, 2)
SHARP = AttentionLossConfig(weight=1.0, smooth=0.0)


def test_response_map_divides_each_row_by_its_words_baseline():
    rows = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.5, 0.5]])  # shares .25 each; 0 0 .5 .5
    words = torch.tensor([[0.5, 0.25, 0.125, 0.125]])  # of token 7 alone
    baseline = Baseline(GRID, torch.full((4,), 0.25), torch.tensor([7]), words)
    got = response_map(rows, torch.tensor([7, 3]), baseline, GRID, SHARP)
    # row 1 over its word's: .5 1 2 2; row 2 over the mean row: 0 0 2 2; mean .25 .5 2 2; over 4.75
    assert got.tolist() == pytest.approx([0.25 / 4.75, 0.5 / 4.75, 2 / 4.75, 2 / 4.75])
    one_for_all = AttentionLossConfig(weight=1.0, smooth=0.0, baseline="normal")
    # both over .25: 1 1 1 1 and 0 0 2 2; mean .5 .5 1.5 1.5
    assert response_map(rows, torch.tensor([7, 3]), baseline, GRID, one_for_all).tolist() == pytest.approx(
        [0.125, 0.125, 0.375, 0.375]
    )
    plain = AttentionLossConfig(weight=1.0, smooth=0.0, baseline="none")
    assert response_map(rows, torch.tensor([7, 3]), baseline, GRID, plain).tolist() == pytest.approx(
        [0.125, 0.125, 0.375, 0.375]
    )


def test_target_is_the_right_responses_mean_to_the_power():
    maps = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 1.0]])
    cfg = AttentionLossConfig(weight=1.0, power=2.0)
    # mean of the first two: .3 .4 .15 .15; squares .09 .16 .0225 .0225, sum .295
    assert consensus_target(maps, [True, True, False], 1, cfg).tolist() == pytest.approx(
        [0.09 / 0.295, 0.16 / 0.295, 0.0225 / 0.295, 0.0225 / 0.295]
    )
    of_all = consensus_target(maps, [True] * 3, 1, cfg)
    assert torch.equal(consensus_target(maps, [False] * 3, 1, cfg), of_all), "none right: all count"
    assert torch.equal(
        consensus_target(maps, [True, False, False], 1, AttentionLossConfig(power=2.0, responses="all")), of_all
    )


def test_target_of_normal_images_and_of_nothing():
    maps = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    assert consensus_target(maps, [True], 0, SHARP).tolist() == [0.25] * 4
    assert consensus_target(maps, [True], 0, AttentionLossConfig(normal="none")) is None
    assert consensus_target(maps, [True], 0, AttentionLossConfig(normal="consensus", power=1.0)).tolist() == (
        pytest.approx([0.7, 0.1, 0.1, 0.1])
    )
    assert consensus_target(maps, [True], None, SHARP) is None
    assert consensus_target(torch.zeros(0, 4), [], 1, SHARP) is None


def test_loss_is_the_divergence_and_pulls_towards_the_target():
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    logits = torch.tensor([[math.log(0.25)] * 4], requires_grad=True)
    loss = token_losses(target, logits.log_softmax(-1)).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])  # softmax less target
    assert token_losses(target, target.clamp(min=1e-12).log()).item() == pytest.approx(0.0, abs=1e-6)


def test_running_baseline_forgets_by_decay_and_knows_only_steps_before():
    running = RunningBaseline(GRID)
    assert running.baseline(1) is None
    running.add(torch.tensor([7, 7, 3]), torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 1.0, 0]]))
    running.add(torch.tensor([5]), torch.tensor([[float("nan"), 1, 1, 1]]))  # left out
    assert running.baseline(1) is None, "the running step does not measure itself"
    running.commit(0.5)
    first = running.baseline(2)
    assert first.ids_V.tolist() == [7] and first.words_VP.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert first.normal_P.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    running.add(torch.tensor([7]), torch.tensor([[0.0, 0, 0, 1.0]]))
    running.commit(0.5)
    # halved: token 7 .5 .5 of two halves, one new; token 3 half a row
    second = running.baseline(0)
    assert second.ids_V.tolist() == [3, 7]
    assert second.words_VP[1].tolist() == [0.25, 0.25, 0.0, 0.5] and second.words_VP[0].tolist() == [0, 0, 1, 0]
    running.commit(0.5)
    assert running.baseline(0).words_VP.tolist() == second.words_VP.tolist(), "a step without rows changes nothing"
    again = RunningBaseline.from_state(running.state_dict())
    assert torch.equal(again.baseline(0).normal_P, second.normal_P) and again.grid == GRID


def test_settings_are_checked():
    assert AttentionLossConfig.from_dict({"weight": 1, "power": 2.0}).power == 2.0
    assert AttentionLossConfig.from_dict(None).weight == 0
    for wrong in ({"weight": -1}, {"power": 0}, {"decay": 1.5}, {"baseline": "words"}, {"smooth": float("inf")}):
        with pytest.raises(UserError, match=f"realad.attention_loss.{next(iter(wrong))}"):
            AttentionLossConfig.from_dict(wrong)
    with pytest.raises(UserError, match="wieght.*weight"):
        AttentionLossConfig.from_dict({"wieght": 1})
