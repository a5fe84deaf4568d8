"""``realad localize`` as a user runs it: files, table, JSON, mistakes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image
from typer.testing import CliRunner

from realad_verl.cli import app
from realad_verl.commands.localize import find_images, output_names
from realad_verl.data.images import load_image
from realad_verl.errors import UserError
from realad_verl.localize import Localizer
from realad_verl.localize_files import write_outputs

RESPONSE = "<think> a scratch on the left side, no other defect </think><answer> yes </answer>"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    tiny = tiny_models.build("qwen2_5_vl")
    path = tmp_path_factory.mktemp("model")
    tiny.model.save_pretrained(path)
    tiny.processor.save_pretrained(path)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "deep/a.png"]):
        noise = np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def realad(*arguments):
    return CliRunner().invoke(app, [str(a) for a in ("localize", *arguments)])


def test_directory_with_a_broken_file(model_dir, images, tmp_path):
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:3000])
    out = tmp_path / "out"
    options = ["--out", out, "--model", model_dir, "--max-new-tokens", 4, "--batch-size", 2]
    result = realad(images, *options, "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert [entry["image"] for entry in printed["results"]] == [
        str(images / n) for n in ("a.png", "b.jpg", "deep/a.png")
    ]
    assert (
        printed["unreadable"][0]["image"].endswith("broken.png") and "truncated" in printed["unreadable"][0]["reason"]
    )
    for entry, name in zip(printed["results"], ("a", "b", "a-2"), strict=True):
        assert json.loads((out / f"{name}.json").read_text()) == entry
        assert Image.open(out / f"{name}.overlay.png").size[0] == 900
        assert 0 <= entry["pred_score"] <= 1
    table = realad(images / "a.png", *options)
    assert table.exit_code == 0 and "a.png" in table.stdout and "1 images written" in table.stdout


def test_a_photo_alone_is_enough(images, tmp_path, monkeypatch):
    """No option: the tiny backbone, which says what it is not, on standard error; files go to maps/."""
    monkeypatch.chdir(tmp_path)
    result = realad(images / "a.png", "--json")
    assert result.exit_code == 0 and "detects nothing on photographs" in result.stderr
    assert len(json.loads(result.stdout)["results"]) == 1
    assert (tmp_path / "maps" / "a.json").is_file() and (tmp_path / "maps" / "a.overlay.png").is_file()


def test_files_hold_the_map(model_dir, images, tmp_path):
    localizer = Localizer.from_pretrained(model_dir)
    image = load_image(images / "a.png")
    (result,) = localizer.explain([image], [localizer.tokenizer.encode(RESPONSE)])
    record = write_outputs(tmp_path, "a", images / "a.png", image, result)
    np.testing.assert_array_equal(np.load(tmp_path / "a.map.npy"), result.anomaly_map)
    grey = np.asarray(Image.open(tmp_path / "a.map.png"))
    assert grey.dtype == np.uint16 and grey.shape == (90, 120) and (grey.min(), grey.max()) == (0, 65535)
    restored = record["map_min"] + grey / 65535 * (record["map_max"] - record["map_min"])
    assert np.abs(restored - result.anomaly_map).max() <= (record["map_max"] - record["map_min"]) / 65535
    written = json.loads((tmp_path / "a.json").read_text())
    assert "".join(token["text"] for token in written["tokens"]).strip() == written["reasoning"]
    assert written["answer"] == "yes" and written["files"]["map"] == "a.map.npy"


def test_settings_of_the_method(model_dir, images, tmp_path):
    options = ["--out", tmp_path / "out", "--model", model_dir, "--max-new-tokens", 2]
    good = realad(images / "a.png", *options, "--method", "readout.words=[scratch]", "--method", "scoring.select=image")
    assert good.exit_code == 0
    for setting, message in [
        ("scoring.selct=text", "unknown key 'selct' in method.scoring. Did you mean 'select'?"),
        ("scoring.select=words", "scoring.select = 'words' is not allowed"),
        ("select", "KEY=VALUE"),
    ]:
        result = realad(images / "a.png", *options, "--method", setting)
        assert isinstance(result.exception, UserError) and message in str(result.exception)


def test_mistakes_are_named(images, tmp_path):
    out = ["--out", tmp_path / "out"]
    for arguments, message in [
        ([images / "a.png", *out, "--model", tmp_path / "nothing"], "cannot load a model from"),
        ([tmp_path / "*.xyz", *out], "no images in"),
    ]:
        result = realad(*arguments)
        assert isinstance(result.exception, UserError) and message in str(result.exception)
    result = realad(images / "a.png", *out, "--batch-size", 0)
    assert result.exit_code == 2 and "--batch-size" in result.stderr


def test_finding_images(images, tmp_path):
    everything = [images / "a.png", images / "b.jpg", images / "deep/a.png"]
    assert find_images([str(images)], tmp_path / "out") == everything
    assert find_images([str(images / "*.png"), str(images / "a.png")], tmp_path / "out") == [images / "a.png"]
    assert find_images([str(images / "**/*.png")], tmp_path / "out") == [images / "a.png", images / "deep/a.png"]
    for name in ("a.overlay.png", "a.map.png", "b.map.png"):
        shutil.copy(images / "a.png", images / "deep" / name)
    (images / "deep" / "a.json").write_text("{}")
    found = find_images([str(images)], images / "deep")
    assert found == [*everything, images / "deep/b.map.png"], "what a run wrote is not its input, a photo beside it is"
    assert find_images(["absent.png"], tmp_path)[0].name == "absent.png"


def test_names_do_not_collide(tmp_path):
    paths = [tmp_path / name for name in ("x/a.png", "y/a.png", "z/A.jpg", "z/b.png", "z/a-2.png")]
    names = output_names(paths)
    assert names == ["a", "a-2", "A-3", "b", "a-2-2"] and len(set(names)) == len(paths)


@pytest.mark.filterwarnings("ignore::realad_verl.data.images.DepthAssumed")
def test_a_folder_as_it_comes(model_dir, images):
    """Names of another encoding, litter of a NAS, deep pixels; results beside the photos, run twice."""
    name = os.fsdecode("划痕".encode("gbk"))
    os.rename(images / "b.jpg", images / f"{name}.jpg")
    (images / "._a.png").write_bytes(b"\0\5\x16\7")
    (images / "@eaDir").mkdir()
    shutil.copy(images / "a.png", images / "@eaDir" / "thumb.png")
    Image.fromarray(np.full((60, 60), 1100, np.uint16)).save(images / "deep" / "c.png")
    for _ in range(2):
        result = realad(images, "--out", images, "--model", model_dir, "--max-new-tokens", 4, "--json")
        assert result.exit_code == 0, result.output + repr(result.exception)
        found = [Path(entry["image"]).relative_to(images).as_posix() for entry in json.loads(result.stdout)["results"]]
        assert found == ["a.png", "deep/a.png", "deep/c.png", r"\xbb\xae\xba\xdb.jpg"]
        assert "white taken as 2047" in result.stderr or "white taken as 4095" in result.stderr
    assert json.loads((images / f"{name}.json").read_text())["files"]["overlay"] == r"\xbb\xae\xba\xdb.overlay.png"
    assert (images / f"{name}.overlay.png").is_file()
