"""The metrics of a validation, from its samples, by hand and against scikit-learn."""

import math

import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from realad_verl.verl_ext.train.metrics import ScoredSample
from realad_verl.verl_ext.train.validation import Validation
from realad_verl.verl_ext.train.wire import Answer, Summary


def sample(label: int | None, right: bool, jaccard: float | None) -> ScoredSample:
    return ScoredSample(label, Summary(jaccard, 9, 5, False, None, 1.0), 0.0, 0.0, {}, right)


SAMPLES = [
    sample(0, True, 0.1),
    sample(0, False, 0.5),
    sample(1, True, 0.7),
    sample(1, True, None),
    sample(1, False, 0.2),
    sample(None, False, 0.9),  # a row without a label is in no figure by class
]
SHARES = [0.1, 0.6, 0.9, 0.6, None, 0.5]


def test_figures():
    answers = [Answer(share, share != 0.9) for share in SHARES]
    metrics = Validation(SAMPLES, answers, seconds=2.0).metrics()
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.6, 0.9, 0.6, 0.5]  # no answer: undecided
    assert metrics["val/image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["val/image_ap"] == pytest.approx(average_precision_score(labels, scores))
    assert metrics["val/jaccard_auroc"] == pytest.approx(roc_auc_score([0, 0, 1, 1], [0.1, 0.5, 0.7, 0.2]))
    assert metrics["val/accuracy/normal"] == 0.5 and metrics["val/accuracy/anomalous"] == pytest.approx(2 / 3)
    assert metrics["val/jaccard/normal"] == pytest.approx(0.3) and metrics["val/jaccard/anomalous"] == pytest.approx(
        0.45
    )
    assert metrics["val/well_formed"] == pytest.approx(5 / 6) and metrics["val/without_answer"] == pytest.approx(1 / 6)
    assert metrics["val/responses"] == 6 and metrics["val/seconds"] == 2.0


def test_one_class_has_no_ranking():
    normal = [(s, Answer(0.3, True)) for s in SAMPLES if s.label == 0]
    metrics = Validation([s for s, _ in normal], [a for _, a in normal]).metrics()
    assert not any("auroc" in name or "_ap" in name or "anomalous" in name for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert Validation().metrics() == {}
