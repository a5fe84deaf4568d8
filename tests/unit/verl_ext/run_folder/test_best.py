"""The best step is kept beside the others, replaced by a better one only, and found by `realad export --best`."""

import os
from pathlib import Path

import pytest

from realad_verl.errors import UserError
from realad_verl.verl_ext.run_folder.best import Best, best_of, keep_best, read_best


def checkpoint(run, step: int) -> None:
    actor = run / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"weights of %d" % step)
    (actor.parent / "data.pt").write_bytes(b"")


def test_the_rotation_does_not_reach_it(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    for step in (1, 2):
        checkpoint(tmp_path, step)
    assert read_best(tmp_path) is None
    keep_best(tmp_path, Best(1, "image_auroc", 0.7))
    shard = tmp_path / "global_step_1" / "actor" / "model_world_size_1_rank_0.pt"
    kept = best_of(tmp_path) / "actor" / shard.name
    assert os.path.samefile(shard, kept), "a link: no second copy on the disk"
    shard.unlink()  # what verl's rotation does
    assert kept.read_bytes() == b"weights of 1" and (tmp_path / "best_step.txt").read_text() == "1\n"
    keep_best(tmp_path, Best(2, "image_auroc", 0.8))
    assert read_best(tmp_path) == Best(2, "image_auroc", 0.8)
    assert [path.name for path in (tmp_path / "best").glob("global_step_*")] == ["global_step_2"]
    assert (tmp_path / "best" / "config.yaml").read_text() == "a: 1\n"


def test_a_death_on_the_way_keeps_the_one_before(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    keep_best(tmp_path, Best(1, "image_auroc", 0.7))

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        keep_best(tmp_path, Best(2, "image_auroc", 0.8))
    monkeypatch.undo()
    assert read_best(tmp_path) == Best(1, "image_auroc", 0.7)
    assert (best_of(tmp_path) / "actor" / "model_world_size_1_rank_0.pt").read_bytes() == b"weights of 1"
    assert (tmp_path / "best_step.txt").read_text() == "1\n"
    keep_best(tmp_path, Best(2, "image_auroc", 0.8))
    assert [path.name for path in (tmp_path / "best").glob("global_step_*")] == ["global_step_2"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    checkpoint(tmp_path, 3)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    keep_best(tmp_path, Best(3, "accuracy", 0.5))
    assert (best_of(tmp_path) / "actor" / "model_world_size_1_rank_0.pt").read_bytes() == b"weights of 3"


def test_none_was_kept(tmp_path):
    with pytest.raises(UserError, match=r"holds no best step.*realad\.val\.best"):
        best_of(tmp_path)
