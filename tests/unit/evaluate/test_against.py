"""`realad evaluate --against`: images that were prepared for training are refused by content, whatever their names."""

import shutil

import pytest
from typer.testing import CliRunner

from realad_verl.cli import app
from realad_verl.data.prepare import PrepareSettings, prepare
from realad_verl.data.procedural import write_folder
from realad_verl.errors import UserError
from realad_verl.evaluate.evaluation import Evaluation
from realad_verl.tiny import tiny_model_dir


def test_trained_on_images_are_refused(tmp_path):
    write_folder(tmp_path / "seen", 8, size=56)
    prepare("folder", tmp_path / "seen", tmp_path / "prepared", PrepareSettings(size=56))
    for i, path in enumerate(sorted((tmp_path / "seen" / "anomalous").iterdir())):
        (tmp_path / "mixed" / "anomalous").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "mixed" / "anomalous" / f"renamed-{i}.png")
    write_folder(tmp_path / "new", 8, size=56, seed=1)
    shutil.copytree(tmp_path / "new" / "normal", tmp_path / "mixed" / "normal")
    how = {"dataset": "folder", "model": str(tiny_model_dir()), "against": (tmp_path / "prepared",)}
    with pytest.raises(UserError, match=r"--against: 4 of 8 images were prepared for training, as .*renamed-"):
        Evaluation(root=tmp_path / "mixed", out=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()
    assert len(Evaluation(root=tmp_path / "new", out=tmp_path / "other", **how).samples) == 8
    rest = Evaluation(root=tmp_path / "mixed", out=tmp_path / "rest", drop_overlap=True, **how)
    assert len(rest.samples) == 4 and all(sample.label == 0 for sample in rest.samples)
    with pytest.raises(UserError, match="--drop-overlap: all 8 images"):
        Evaluation(root=tmp_path / "seen", out=tmp_path / "none", drop_overlap=True, **how)


def test_the_command_says_it_and_needs_no_model(tmp_path):
    write_folder(tmp_path / "seen", 4, size=56)
    prepare("folder", tmp_path / "seen", tmp_path / "prepared", PrepareSettings(size=56))
    command = ["evaluate", "folder", "--root", str(tmp_path / "seen"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*command, "--against", str(tmp_path / "prepared")])
    assert done.exit_code != 0 and "--against" in str(done.exception or done.output)
    assert "tiny backbone shows the path" in done.output  # the default model, as in `realad localize`
