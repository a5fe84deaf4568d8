"""Targets of groups wherever their samples lie, what is watched, and the vectors that travel."""

import pytest
import torch

from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.verl_ext.train.attention.targets import Alarms, MappedSample, group_targets
from realad_verl.verl_ext.train.attention.wire import Target, pack_map, pack_target, unpack_map, unpack_target

CFG = AttentionLossConfig(weight=1.0, power=1.0)
GRID = (1, 4)


def sample(group: str, values: list[float] | None, label: int | None, right: bool, tokens: int = 3) -> MappedSample:
    return MappedSample(group, None if values is None else torch.tensor(values), GRID, label, right, tokens)


def test_groups_are_found_in_any_order_and_copies_have_no_part():
    samples = [
        sample("a", [1.0, 0.0, 0.0, 0.0], 1, True),
        sample("b", [0.25] * 4, 0, True),
        sample("a", [0.0, 1.0, 0.0, 0.0], 1, False),
        sample("a", [0.0, 0.0, 1.0, 0.0], 1, True),
        sample("b", None, 0, False, tokens=0),
        sample("copy", None, 1, False, tokens=0),
    ]
    targets, metrics = group_targets(samples, CFG)
    for i in (0, 2, 3):
        assert targets[i].values_P.tolist() == [0.5, 0.0, 0.5, 0.0], "right responses alone make it, all are taught"
    assert targets[1].values_P.tolist() == [0.25] * 4 and targets[1].label == 0
    assert targets[4] is None and targets[5] is None
    assert metrics["attention_loss/taught"] == pytest.approx(2 / 3)
    assert metrics["attention_loss/none_right"] == 0
    assert metrics["attention_loss/peak"] == 0.5
    assert metrics["attention_loss/label_auroc"] == 1.0
    # the mean map of a is 1/3 1/3 1/3 0: entropy ln 3 over ln 4
    assert metrics["attention_loss/entropy"] == pytest.approx(0.792481, abs=1e-5)


def test_none_right_counts_all_and_is_counted():
    samples = [sample("a", [1.0, 0, 0, 0], 1, False), sample("a", [0, 1.0, 0, 0], 1, False)]
    targets, metrics = group_targets(samples, CFG)
    assert targets[0].values_P.tolist() == [0.5, 0.5, 0, 0] and metrics["attention_loss/none_right"] == 1.0


def test_maps_that_become_equal_raise_the_alarm(caplog):
    equal = [sample(str(i), [0.7, 0.1, 0.1, 0.1], 1, True) for i in range(3)]
    other = [sample(str(i), [float(i == k) for k in range(4)], 1, True) for i in range(3)]
    metrics = group_targets(equal, CFG)[1]
    assert metrics["attention_loss/map_correlation"] == pytest.approx(1.0)
    assert group_targets(other, CFG)[1]["attention_loss/map_correlation"] == pytest.approx(-1 / 3)
    alarms = Alarms()
    assert alarms(metrics)["attention_loss/alarm_collapse"] == 1.0
    alarms(metrics)
    assert caplog.text.count("nearly the same map") == 1


def test_targets_that_sharpen_without_telling_the_labels_apart_raise_the_alarm():
    alarms = Alarms()
    for _ in range(5):
        first = alarms({"attention_loss/peak": 0.1, "attention_loss/label_auroc": 0.7})
    assert first["attention_loss/alarm_self_confirmation"] == 0.0
    better = alarms({"attention_loss/peak": 0.3, "attention_loss/label_auroc": 0.8})
    worse = alarms({"attention_loss/peak": 0.3, "attention_loss/label_auroc": 0.7})
    assert better["attention_loss/alarm_self_confirmation"] == 0.0
    assert worse["attention_loss/alarm_self_confirmation"] == 1.0


def test_targets_that_become_flat_raise_the_alarm(caplog):
    """As on images of which the read-out sees nothing: one low step is none."""
    alarms = Alarms()
    peaks = [0.03] * 5 + [0.01] + [0.03] * 4 + [0.016, 0.014, 0.012, 0.012, 0.012]
    flat = [
        alarms({"attention_loss/peak": peak, "attention_loss/label_auroc": 0.6})["attention_loss/alarm_flat"]
        for peak in peaks
    ]
    assert flat == [0.0] * 14 + [1.0]
    assert caplog.text.count("have become flat") == 1


def test_vectors_travel_both_ways_within_4_kib():
    map_P = torch.rand(225)
    assert torch.equal(unpack_map(pack_map(map_P, (15, 15)))[0], map_P)
    assert unpack_map(pack_map(None, (0, 0))) == (None, (0, 0))
    target = unpack_target(pack_target(Target(map_P, (15, 15), 40, 1)))
    assert torch.equal(target.values_P, map_P) and (target.grid, target.tokens, target.label) == ((15, 15), 40, 1)
    assert unpack_target(pack_target(None)) is None
    assert max(pack_map(map_P, (15, 15)).nbytes, pack_target(target).nbytes) < 4096
