"""Torn checkpoints: whatever is missing or cut, a resume starts from the newest one that is whole."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from realad_verl.errors import UserError
from realad_verl.verl_ext.job.launch import prepare
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.run_folder.checkpoints import TRACKER, last_complete, mark_complete, repair_tracker, unmark

MODEL = "actor/model_world_size_1_rank_0.pt"


def checkpoint(folder: Path, step: int, marked: bool = True, tracked: bool = True) -> Path:
    """Files as verl lays them out, in the order in which it writes them."""
    made = folder / f"global_step_{step}"
    (made / "actor" / "huggingface").mkdir(parents=True)
    for name in (MODEL, "actor/optim_world_size_1_rank_0.pt", "actor/huggingface/config.json", "data.pt"):
        (made / name).write_bytes(b"x" * 100)
    if tracked:
        (folder / TRACKER).write_text(str(step))
    if marked:
        mark_complete(folder, step)
    return made


@pytest.fixture()
def run(tmp_path):
    """A run with whole checkpoints of steps 9 and 10: numbers, not names, are ordered."""
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    return tmp_path


def test_the_tracker_is_right_where_all_is_well(run):
    assert last_complete(run) == 10
    repair_tracker(run)
    assert (run / TRACKER).read_text() == "10"


def test_no_checkpoint(tmp_path):
    assert last_complete(tmp_path) is None
    repair_tracker(tmp_path)
    assert not (tmp_path / TRACKER).exists()


@pytest.mark.parametrize("text", ["", "1x", None])
def test_a_torn_tracker_is_repaired(run, text):
    """What a full disk leaves: verl opens the tracker, which empties it, and cannot write."""
    (run / TRACKER).write_text(text) if text is not None else (run / TRACKER).unlink()
    assert last_complete(run) == 10
    repair_tracker(run)
    assert (run / TRACKER).read_text() == "10"


@pytest.mark.parametrize("name", [MODEL, "actor/huggingface/config.json", "data.pt"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_checkpoint_is_passed_over(run, name, cut):
    damaged = run / "global_step_10" / name
    damaged.write_bytes(b"x" * 60) if cut else damaged.unlink()
    assert last_complete(run) == 9


def test_an_unfinished_checkpoint_is_passed_over(run):
    """Killed between the first file and the tracker: everything there may look whole."""
    checkpoint(run, 11, marked=False, tracked=False)
    assert last_complete(run) == 10


def test_killed_right_after_the_tracker(run):
    checkpoint(run, 11, marked=False)
    assert last_complete(run) == 11


def test_killed_while_a_checkpoint_is_written_again(run):
    """Damaged, so trained again from step 9, and killed in the middle of the second save: sizes alone would fit."""
    (run / "global_step_10" / MODEL).write_bytes(b"")
    repair_tracker(run)
    unmark(run, 10)
    (run / "global_step_10" / MODEL).write_bytes(b"y" * 100)
    assert last_complete(run) == 9


def test_a_checkpoint_whose_weights_were_removed_to_save_room(run):
    """verl keeps data.pt of the checkpoints whose weights it removes."""
    for path in sorted((run / "global_step_10" / "actor").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (run / "global_step_10" / "actor").rmdir()
    assert last_complete(run) == 9


def test_a_resumed_job_is_told_the_whole_one(run, monkeypatch):
    """``realad train --resume`` gives verl a tracker that names it, and a metrics file of its own."""
    (run / "global_step_10" / MODEL).unlink()
    config = compose_recipe("local/cgro_tiny_cpu", [f"trainer.default_local_dir={run}"])
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", "")
    prepare(config, resume=True)
    assert (run / TRACKER).read_text() == "9" and config.trainer.resume_mode == "auto"
    variables = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env.env_vars)
    assert variables["VERL_FILE_LOGGER_PATH"] == str(run / "metrics.after-000009.jsonl")


@pytest.mark.parametrize("resume, said", [(True, "no whole checkpoint"), (False, "Remove it, or name another folder")])
def test_a_run_without_a_whole_checkpoint_is_told_the_way_on(tmp_path, resume, said):
    (tmp_path / "metrics.jsonl").touch()
    checkpoint(tmp_path, 1, marked=False, tracked=False)
    config = compose_recipe("local/cgro_tiny_cpu", [f"trainer.default_local_dir={tmp_path}"])
    with pytest.raises(UserError, match=said):
        prepare(config, resume=resume)
