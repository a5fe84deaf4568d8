"""Others' errors in plain words: which override, which folder, what is gone, and the way on."""

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from realad_verl.errors import UserError
from realad_verl.evaluate.store import ResultStore
from realad_verl.verl_ext.job.watchdog import Watchdog
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.recipe.data.check_rows import temp_folder_is_short, total_steps
from realad_verl.verl_ext.recipe.overrides import require_grammar
from realad_verl.verl_ext.recipe.problem import Setup
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.run_folder.cause import in_one_line, is_without_material

TINY = "local/cgro_tiny_cpu"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("trainer.default_local_dir=/data/lr=1/run", "\"trainer.default_local_dir='/data/lr=1/run'\""),
        ("data.train_files=/d/[a] b/t.parquet", "\"data.train_files='/d/[a] b/t.parquet'\""),
        ('realad={"log": {"every": 1, "dir": "x=1"}}', "realad.log.every=1 \"realad.log.dir='x=1'\""),
        ("realad={'log': {'every': 1}}", "realad.log.every=1"),
    ],
)
def test_an_override_outside_of_the_grammar_is_named_with_the_form_that_is_inside(wrong, right):
    with pytest.raises(UserError) as caught:
        compose_recipe(TINY, ["trainer.nnodes=1", wrong])
    assert f"the override {wrong} is not in Hydra's grammar" in str(caught.value) and f"Write: {right}" in str(
        caught.value
    )
    compose_recipe(TINY, [word.strip('"') for word in right.split(' "')])


def test_what_the_grammar_takes_is_left_alone():
    require_grammar(["a=/data/my run/x", "+a=b", "~a", "a=[1,2]", "a={b: 1}", "a='x=1'"])
    with pytest.raises(UserError, match="KEY=VALUE"):
        require_grammar(["a b=1"])
    assert OverridesParser.create().parse_override("a='it\\'s'").value() == "it's"


def test_a_long_temporary_folder(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    setup = Setup(compose_recipe(TINY))
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert list(temp_folder_is_short(setup)) == []
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    (problem,) = temp_folder_is_short(setup)
    assert problem.key == "TMPDIR" and "107" in problem.allowed and problem.fix == "RAY_TMPDIR=/tmp"


def test_a_replay_buffer_without_material():
    error = RuntimeError("Sync replay buffer selected terminal groups with no materializable trajectories. Set x.")
    assert is_without_material(error) and "no response arrived that could be trained on" in in_one_line(error)
    assert not is_without_material(RuntimeError("x")) and in_one_line(RuntimeError("x")) == "x"


def test_the_steps_of_a_run(tmp_path):
    pq.write_table(pa.table({"a": list(range(10))}), tmp_path / "t.parquet")
    settings = ["data.train_batch_size=4", "trainer.total_epochs=3", f"data.train_files={tmp_path}/t.parquet"]
    assert total_steps(compose_recipe(TINY, [*settings, "trainer.total_training_steps=null"])) == 6
    assert total_steps(compose_recipe(TINY, [*settings, "trainer.total_training_steps=5"])) == 5
    missing = [f"data.train_files={tmp_path}/none.parquet", "trainer.total_training_steps=null"]
    assert total_steps(compose_recipe(TINY, missing)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"phase": "x"}'])
def test_an_unreadable_heartbeat_is_no_news(tmp_path, content):
    """A shared file system shows a file half written, or not at all: the run goes on, by its last beat."""
    watchdog = Watchdog(tmp_path, start_s=5.0, phase_s=1000.0)
    heartbeat.write(tmp_path, "sampling", 3, 9)
    beat = heartbeat.read(tmp_path)
    assert beat is not None and watchdog.overdue(beat.since + 900) is None
    (tmp_path / heartbeat.HEARTBEAT).write_text(content)
    assert heartbeat.read(tmp_path) is None
    assert watchdog.overdue(beat.since + 900) is None, "not taken for a start that takes too long"
    assert "'sampling' of step 3" in str(watchdog.overdue(beat.since + 1001))


def test_shards_that_start_together_read_whole_settings(tmp_path):
    """One writes settings.json, the others compare with it: none sees it half written."""
    for round_ in range(30):
        folder, errors, start = tmp_path / str(round_), [], threading.Barrier(8)

        def open_store(folder: Path = folder, errors: list = errors, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                ResultStore(folder, {"method": {"words": ["x"] * 2000}})
            except UserError as error:
                errors.append(error)

        threads = [threading.Thread(target=open_store) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and json.loads((folder / "settings.json").read_text())["method"]["words"]
        assert [path.name for path in folder.iterdir()] == ["settings.json"]
