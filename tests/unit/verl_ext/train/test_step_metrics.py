"""Metrics by class, worked out by hand."""

from realad_verl.verl_ext.train.metrics import ScoredSample, step_metrics, validation_metrics
from realad_verl.verl_ext.train.wire import Summary


def _sample(label, jaccard, consistency, total, fmt, kept=2, problem=None):
    summary = Summary(jaccard, n_reasoning=10, n_kept=kept, fallback=kept == 5, problem=problem, milliseconds=2.0)
    return ScoredSample(label, summary, consistency, total, {"format_reward": fmt, "accuracy_reward": 1.0})


def test_means_by_class():
    samples = [
        _sample(1, 0.6, 1.0, 3.0, 1.0),
        _sample(1, 0.2, 0.0, 2.0, 1.0, kept=5),
        _sample(0, 0.1, 1.0, 3.0, 1.0),
        _sample(0, None, 0.0, 1.0, 0.0, problem="no_reasoning"),
    ]
    m = step_metrics(samples)
    assert m["evidence/jaccard/anomalous"] == 0.4  # (0.6 + 0.2) / 2
    assert m["evidence/jaccard/normal"] == 0.1  # the sample without a Jaccard does not count as 0
    assert m["reward/consistency/mean"] == 0.5
    assert m["reward/format/normal"] == 0.5
    assert m["reward/total/anomalous"] == 2.5
    assert m["evidence/fallback_share/anomalous"] == 0.5
    assert m["evidence/none_share/normal"] == 0.5
    assert m["evidence/problem/no_reasoning"] == 1
    assert m["evidence/seconds"] == 0.008


def test_missing_class_has_no_metric():
    assert not [key for key in step_metrics([_sample(1, 0.5, 1.0, 3.0, 1.0)]) if key.endswith("/normal")]


def test_unlabelled_sample_is_counted():
    assert step_metrics([_sample(None, 0.5, 0.0, 1.0, 1.0)])["evidence/unlabelled"] == 1


def test_validation_has_a_name_for_sweeps():
    verls = {
        "val-aux/realad/visa/accuracy_reward/mean@1": 0.5,
        "val-aux/realad/pcb/accuracy_reward/mean@1": 1.0,
        "val-core/realad/pcb/format_reward/mean@4": 0.25,
        "val-core/realad/pcb/reward/mean@1": 2.0,
        "val-aux/realad/pcb/accuracy_reward/best@4/mean": 9.0,
    }
    assert validation_metrics(verls) == {"val/accuracy": 0.75, "val/format": 0.25}
