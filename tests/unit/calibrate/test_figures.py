"""The figures of a calibration by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from realad_verl.calibrate.figures import Scored, auroc, auroc_interval, best_threshold, figures
from realad_verl.calibrate.files import doubts
from realad_verl.method.config import ConsistencyConfig

NAN = float("nan")
# two normal and two anomalous images, three responses each
J = np.array([[0.1, 0.2, 0.1], [0.3, 0.1, NAN], [0.4, 0.3, 0.5], [0.6, 0.1, 0.4]])
LABEL = np.array([0, 0, 1, 1])
RIGHT = np.array([[True, False, True], [False, True, False], [True, False, True], [True, False, True]])


def scored(jaccard=J, formed=None):
    formed = np.ones(jaccard.shape, bool) if formed is None else formed
    return Scored(LABEL, jaccard, RIGHT, formed, np.zeros(jaccard.shape, bool))


def test_auroc_is_scikit_learns():
    random = np.random.default_rng(0)
    jaccard, label = random.integers(0, 6, (40, 5)) / 5, np.arange(40) % 2  # many ties
    expected = roc_auc_score(np.repeat(label, 5), jaccard.ravel())
    assert auroc(jaccard, label) == pytest.approx(expected)
    low, high = auroc_interval(jaccard, label, 0)
    assert low < expected < high and auroc_interval(jaccard, label, 0) == (low, high)
    assert np.isnan(auroc(np.full((4, 3), NAN), LABEL))


def test_best_threshold_lies_between_two_values():
    # above .2: 5 of 6 anomalous; at or below: 4 of 5 normal. Above .3: 4 of 6 and all normal; the first is no better:
    # 5/6 + 4/5 = 1.633, 4/6 + 1 = 1.667
    assert best_threshold(J, LABEL) == pytest.approx(0.35)
    assert best_threshold(np.full((4, 3), 0.2), LABEL) == pytest.approx(0.2)


def test_every_figure_by_hand():
    formed = np.ones(J.shape, bool)
    formed[3, 0] = False
    found = figures(scored(formed=formed), ConsistencyConfig(delta_1=0.35, delta_2=0.25))
    assert found.jaccard_normal == pytest.approx(0.16) and found.jaccard_anomalous == pytest.approx(2.3 / 6)
    # normal: 1 1 1 | 0 1 0 (no J earns nothing); anomalous: 1 0 1 | 0 (ill-formed) 0 1
    assert found.reward_normal == pytest.approx(4 / 6) and found.reward_anomalous == pytest.approx(3 / 6)
    assert found.divided_given == pytest.approx(3 / 4) and found.no_evidence == pytest.approx(1 / 12)
    assert found.threshold == pytest.approx(0.35) and found.divided_best == pytest.approx(3 / 4)
    # within an image 1 - J (normal) or J follows the right answers; the second has two values only and does not count
    assert found.within_groups == 3 and found.within_r > 0.8
    assert found.to_dict()["within_groups"] == 3


def test_no_evidence_at_all_is_said_with_none():
    found = figures(scored(np.full(J.shape, NAN)), ConsistencyConfig()).to_dict()
    assert found["auroc"] is None and found["no_evidence"] == 1.0 and found["reward_normal"] == 0.0


def test_a_calibration_on_noise_is_doubted_and_one_on_a_signal_is_not():
    rng = np.random.default_rng(0)
    label_I = np.arange(80) % 2
    right, formed = np.zeros((80, 4), bool), np.ones((80, 4), bool)
    found = {}
    for name, signal in (("noise", 0.0), ("signal", 0.3)):
        jaccard_In = rng.uniform(0, 0.5, (80, 4)) + signal * label_I[:, None]
        found[name] = figures(Scored(label_I, jaccard_In, right, formed, ~formed), ConsistencyConfig())
    assert len(doubts(found["noise"], 0.25)) == 2 and "AUROC" in doubts(found["noise"], 0.25)[0]
    assert doubts(found["signal"], 0.6) == []
