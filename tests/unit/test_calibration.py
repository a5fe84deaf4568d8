"""The folder of a calibration: written and read back, found in a model, refused where it does not fit; as a recipe."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoConfig

from realad_verl.calibration import (
    BASELINES,
    FRAGMENT,
    add_to_model,
    baseline_for,
    calibrated_method,
    find_calibration,
    read_baselines,
    write_baselines,
)
from realad_verl.commands.options import read_method
from realad_verl.errors import UserError
from realad_verl.method.baseline import Baseline
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.recipe.compose import compose_recipe

SETTINGS = {
    "readout": {"layers": None, "heads": [[0, 1], [2, 3]]},
    "scoring": {"select": "image", "concentration": "contrast", "tau_i": 0.0, "baseline": "word"},
    "map": {"smooth": 1.0},
    "consistency": {"t": 8, "delta_1": 0.2, "delta_2": 0.2},
}
CONFIG = AutoConfig.from_pretrained(tiny_model_dir())


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "calibration"
    out.mkdir()
    method = MethodConfig.from_dict(SETTINGS | {"calibration": str(out)})
    rows = torch.rand(4, 6)
    write_baselines(out, Baseline((2, 3), rows[0], torch.tensor([3, 5, 9]), rows[1:]), method, CONFIG)
    recipe = {"defaults": ["/local/cgro_tiny_cpu", "_self_"], "realad": {"method": SETTINGS | {"calibration": "."}}}
    (out / FRAGMENT).write_text("# @package _global_\n" + yaml.safe_dump(recipe))
    return out


def test_written_and_read_back(folder):
    method = calibrated_method(folder)
    assert method.calibration == str(folder) and method.readout.heads == ((0, 1), (2, 3))
    baseline, of = read_baselines(folder)
    found = baseline_for(method, CONFIG)
    assert found is not None and torch.equal(found.words_VP, baseline.words_VP) and found.grid == (2, 3)
    assert of["model"]["num_attention_heads"] == CONFIG.text_config.num_attention_heads
    assert baseline_for(MethodConfig(), CONFIG) is None


def test_what_does_not_fit_is_refused(folder, tmp_path):
    method = calibrated_method(folder, {"readout": {"heads": [[0, 1]]}})
    with pytest.raises(
        UserError, match=r"made with readout.heads = \[\[0, 1\], \[2, 3\]\], and here it is \[\[0, 1\]\]"
    ):
        baseline_for(method, CONFIG)
    other = AutoConfig.from_pretrained(tiny_model_dir())
    other.text_config.num_hidden_layers = 28
    with pytest.raises(UserError, match="made with the model"):
        baseline_for(calibrated_method(folder), other)
    with pytest.raises(UserError, match=f"holds no {BASELINES}"):
        baseline_for(replace(method, calibration=str(tmp_path)), CONFIG)
    with pytest.raises(UserError, match=f"holds no {FRAGMENT}"):
        calibrated_method(tmp_path)
    (folder / BASELINES).write_bytes(b"torn")
    with pytest.raises(UserError, match="is not a file of `realad calibrate`"):
        read_baselines(folder)


def test_found_in_a_model_and_switched_off(folder, tmp_path, capsys):
    model = tmp_path / "model"
    assert find_calibration(model) is None
    add_to_model(folder, model)
    found = read_method(["consistency.t=6"], None, model)
    assert found.calibration == str(model / "calibration") and found.consistency.t == 6
    assert found.scoring.baseline == "word" and "which comes with the model" in capsys.readouterr().err
    assert read_method([], "none", model) == MethodConfig()
    assert read_method([], str(folder), model).calibration == str(folder)


def test_as_an_override_and_as_a_recipe(folder):
    by_override = compose_recipe(
        "local/cgro_tiny_cpu", [f"realad.method.calibration={folder}", "realad.method.consistency.t=6"]
    ).realad.method
    by_path = compose_recipe(str(folder / FRAGMENT)).realad.method
    for method, t in ((by_override, 6), (by_path, 8)):
        assert method.calibration == str(folder) and method.consistency.t == t
        assert json.dumps(list(map(list, method.readout.heads))) == "[[0, 1], [2, 3]]"
        assert method.scoring.baseline == "word" and method.map.smooth == 1.0
    plain = compose_recipe("local/cgro_tiny_cpu").realad.method
    assert plain.calibration is None and plain.scoring.baseline == "none"
    assert compose_recipe("local/cgro_tiny_cpu", ["realad.method.calibration=null"]).realad.method == plain
