"""A label is read alike wherever it is read: reward functions, trainer, recipe check, evaluation."""

import doctest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realad_verl.method import labels
from realad_verl.method.config import MethodConfig
from realad_verl.method.labels import read_label
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.recipe.data.check_data import data_files_exist
from realad_verl.verl_ext.recipe.problem import Setup
from reward_fns.accuracy import accuracy_reward
from reward_fns.compose import compute_score

YES = ("yes", " YES\n", 1, 1.0, True, "1", "True", "anomalous", "Anomaly", np.int64(1), np.bool_(True), np.float32(1))
NO = ("no", "No ", 0, 0.0, -0.0, False, "0", "false", "normal", np.int8(0), np.str_("no"))
NEITHER = ("", "maybe", "yes no", "good", "1.0", 2, -1, 0.5, float("nan"), float("inf"), 10**400, None, [], {}, ["yes"])
CASES = [*((v, 1) for v in YES), *((v, 0) for v in NO), *((v, None) for v in NEITHER)]
RESPONSE = "<think>A dent.</think><answer>{}</answer>"


def test_doctest():
    result = doctest.testmod(labels)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(("value", "label"), CASES, ids=lambda value: repr(value)[:20])
def test_every_reader_gives_the_same_answer(value, label):
    assert read_label(value) == label
    for answer, right in (("yes", 1), ("no", 0)):
        assert accuracy_reward(RESPONSE.format(answer), value) == float(label == right)
        score = compute_score("realad/x", RESPONSE.format(answer), value)
        assert score["bad_ground_truth"] == float(label is None)
        assert score["accuracy_reward"] == float(label == right)


def test_training_scores_by_the_same():
    """The worker's verdict, from which the trainer pays."""
    verdict = pytest.importorskip("realad_verl.verl_ext.train.verdict", reason="verl is not installed")
    for value, label in CASES:
        for answer, right in (("yes", 1), ("no", 0)):
            found = verdict.judge(RESPONSE.format(answer), value, 0.9, MethodConfig())
            assert (found.label, found.right) == (label, label == right), value
            assert found.consistency == float(label == 1), "J = 0.9 is what an anomalous image alone is paid for"


def _checked(path, truths):
    rows = [{"data_source": "x", "prompt": "x", "images": "x", "reward_model": {"ground_truth": t}} for t in truths]
    pq.write_table(pa.Table.from_pylist(rows), path)
    config = compose_recipe("local/cgro_tiny_cpu", [f"data.train_files={path}", f"data.val_files={path}"])
    return list(data_files_exist(Setup(config)))


@pytest.mark.parametrize("truths", [["yes", "No"], [1, 0], [1.0, 0.0], [True, False], ["anomalous", "normal"]])
def test_the_check_takes_what_a_run_can_use(tmp_path, truths):
    assert _checked(tmp_path / "data.parquet", truths) == []


def test_the_check_warns_of_some_and_refuses_none_at_all(tmp_path):
    some = _checked(tmp_path / "some.parquet", ["yes", "maybe", None])
    assert {p.level for p in some} == {"warning"} and "2 of 3 rows hold no label, such as 'maybe'" in str(some[0])
    none = _checked(tmp_path / "none.parquet", ["good", "broken"])
    assert {p.level for p in none} == {"error"} and "yes or no, 1 or 0" in str(none[0])
