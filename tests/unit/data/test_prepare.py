"""``realad prepare``: rows, determinism, no masks, overlap, faults. All on real files, through the real readers."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from trees import TREES, image
from typer.testing import CliRunner

from realad_verl.cli import app
from realad_verl.data.datasets import get_dataset, load_mask
from realad_verl.data.decode import Unusable, content_sha256, decode
from realad_verl.data.parallel import ordered_map
from realad_verl.data.prepare import PrepareSettings, prepare
from realad_verl.data.prompts import verl_messages
from realad_verl.data.rows import ROW_GROUP, SCHEMA
from realad_verl.errors import UserError

SMALL = PrepareSettings(size=28, val_fraction=0.34)
LOOSE = PrepareSettings(size=28, val_fraction=0.34, max_bad_share=1.0)


def _rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def _bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


@pytest.mark.parametrize("name", sorted(TREES))
def test_rows_are_verls_and_balanced(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path / "in")
    prepare(name, tree.root, tmp_path / "out", SMALL)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.parquet", "val.parquet", "manifest.json"}
    rows = _rows(tmp_path / "out")
    assert len(rows) == tree.normal + tree.anomalous
    for split in ("train", "val"):
        part = [row for row in rows if row["extra_info"]["split"] == split]
        labels = Counter(row["extra_info"]["label"] for row in part)
        assert labels[0] == labels[1] > 0
        assert [row["extra_info"]["index"] for row in part] == list(range(len(part)))
    for row in rows:
        assert row["data_source"] == f"realad/{name}" and row["ability"] == "anomaly_detection"
        assert row["prompt"] == verl_messages() and row["prompt"][0]["content"].count("<image>") == 1
        assert row["reward_model"] == {"style": "rule", "ground_truth": "yes" if row["extra_info"]["label"] else "no"}
        (picture,) = row["images"]
        with Image.open(io.BytesIO(picture["bytes"])) as decoded:
            assert (decoded.format, decoded.mode, decoded.size) == ("PNG", "RGB", (28, 28))


@pytest.mark.parametrize("name", sorted(TREES))
def test_masks_cannot_reach_the_parquet(name: str, tmp_path: Path) -> None:
    """Other masks, the same files; and nothing of a mask, its name, bytes or pixels, is found in what was written."""
    tree = TREES[name](tmp_path / "in")
    masks = [(path, path.read_bytes()) for path in tree.masks]
    prepare(name, tree.root, tmp_path / "first", SMALL)
    tree.alter_masks()
    assert any(path.read_bytes() != before for path, before in masks)
    prepare(name, tree.root, tmp_path / "second", SMALL)
    assert _bytes(tmp_path / "first") == _bytes(tmp_path / "second")

    assert pq.read_schema(tmp_path / "first" / "train.parquet").equals(SCHEMA)
    written = b"".join(_bytes(tmp_path / "first").values())
    hashes = {hashlib.sha256(row["images"][0]["bytes"]).hexdigest() for row in _rows(tmp_path / "first")}
    for path, content in masks:
        assert str(path).encode() not in written
        assert path.relative_to(tree.root).as_posix().encode() not in written
        assert content not in written
        if path.suffix in (".png", ".bmp"):
            with Image.open(io.BytesIO(content)) as opened:
                picture = opened.convert("RGB")
            assert content_sha256(picture).encode() not in written
            buffer = io.BytesIO()
            picture.resize((28, 28), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=1)
            assert hashlib.sha256(buffer.getvalue()).hexdigest() not in hashes


def test_unreadable_masks_do_not_matter(tmp_path: Path) -> None:
    tree = TREES["mvtec_ad"](tmp_path / "in")
    prepare("mvtec_ad", tree.root, tmp_path / "first", SMALL)
    for path in tree.masks:
        path.write_bytes(b"\0")
    prepare("mvtec_ad", tree.root, tmp_path / "second", SMALL)
    assert _bytes(tmp_path / "first") == _bytes(tmp_path / "second")


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    for i in range(2 * ROW_GROUP):
        image(tmp_path / "in" / "normal" / f"{i}.png", (20, 16))
        image(tmp_path / "in" / "anomalous" / f"{i}.png", (20, 16))
    copy = tmp_path / "moved" / "elsewhere" / "in"
    shutil.copytree(tmp_path / "in", copy)
    for out, root, workers in (("one", tmp_path / "in", 1), ("three", tmp_path / "in", 3), ("moved_out", copy, 2)):
        prepare("folder", root, tmp_path / out, SMALL, workers=workers)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "three") == _bytes(tmp_path / "moved_out")
    assert pq.ParquetFile(tmp_path / "one" / "train.parquet").num_row_groups == 3
    prepare("folder", tmp_path / "in", tmp_path / "seed", PrepareSettings(size=28, val_fraction=0.34, seed=1))
    assert _bytes(tmp_path / "seed") != _bytes(tmp_path / "one")


def test_pairs_are_on_one_side(tmp_path: Path) -> None:
    prepare("deeppcb", TREES["deeppcb"](tmp_path / "in").root, tmp_path / "out", SMALL)
    sides: dict[str, set[str]] = {}
    for row in _rows(tmp_path / "out"):
        sides.setdefault(row["extra_info"]["id"].rsplit("_", 1)[0], set()).add(row["extra_info"]["split"])
    assert len(sides) == 6 and all(len(side) == 1 for side in sides.values())


def test_manifest(tmp_path: Path) -> None:
    tree = TREES["visa"](tmp_path / "in")
    result = prepare("visa", tree.root, tmp_path / "out", SMALL)
    assert result == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert result["settings"]["size"] == 28 and result["settings"]["seed"] == 0
    assert set(result["versions"]) == {"realad_verl", "python", "pyarrow", "pillow"}
    for name, entry in result["files"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest() and entry["bytes"] == len(content)
        assert entry["rows"] == pq.read_metadata(tmp_path / "out" / name).num_rows
    for entry in result["images"]:
        with Image.open(tree.root / entry["id"]) as opened:
            assert entry["sha256"] == content_sha256(opened.convert("RGB"))
    assert sum(row["images"] for row in result["counts"]) == len(result["images"]) == 12


def test_overlap_with_another_manifest(tmp_path: Path) -> None:
    test_set, train_set = TREES["mvtec_ad"](tmp_path / "test"), TREES["folder"](tmp_path / "train")
    prepare("mvtec_ad", test_set.root, tmp_path / "test_out", SMALL)
    with Image.open(test_set.root / "bottle" / "test" / "good" / "000.png") as opened:
        opened.save(train_set.root / "normal" / "copy.bmp")  # the same pixels in another file format
    settings = PrepareSettings(size=28, balance=False, against=(tmp_path / "test_out",))
    with pytest.raises(UserError, match=r"1 images overlap[\s\S]*normal/copy.bmp .* bottle/test/good/000.png"):
        prepare("folder", train_set.root, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    manifest = tmp_path / "test_out" / "manifest.json"
    settings = PrepareSettings(size=28, balance=False, against=(manifest,), drop_overlap=True)
    result = prepare("folder", train_set.root, tmp_path / "out", settings)
    assert [entry["id"] for entry in result["overlaps_dropped"]] == ["normal/copy.bmp"]
    assert len(result["images"]) == 12


def test_overlap_of_train_and_val(tmp_path: Path) -> None:
    tree = TREES["deeppcb"](tmp_path / "in")
    templates = sorted(tree.root.rglob("*_temp.jpg"))
    for path in templates[1:]:
        shutil.copy(templates[0], path)
    with pytest.raises(UserError, match=r"\(val\) is the same as train image"):
        prepare("deeppcb", tree.root, tmp_path / "out", SMALL)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other/1", "images": []}', '{"format": "realad-manifest/1"}'])
def test_against_must_be_a_manifest(tmp_path: Path, text: str) -> None:
    tree = TREES["folder"](tmp_path / "in")
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match="is not a manifest"):
        prepare("folder", tree.root, tmp_path / "out", PrepareSettings(against=(tmp_path / "m.json",)))
    with pytest.raises(UserError, match="no such manifest"):
        prepare("folder", tree.root, tmp_path / "out", PrepareSettings(against=(tmp_path / "nowhere",)))


def test_duplicates_are_reported(tmp_path: Path) -> None:
    tree = TREES["folder"](tmp_path / "in")
    shutil.copy(tree.root / "normal" / "0.png", tree.root / "anomalous" / "both.png")
    result = prepare("folder", tree.root, tmp_path / "out", PrepareSettings(size=28, val_fraction=0, balance=False))
    (entry,) = result["duplicates"]
    assert entry["labels"] == [0, 1] and sorted(entry["ids"]) == ["anomalous/both.png", "normal/0.png"]
    assert not (tmp_path / "out" / "val.parquet").exists()


def test_bad_files_are_listed_and_counted(tmp_path: Path) -> None:
    tree = TREES["visa"](tmp_path / "in")
    images = tree.root / "candle" / "Data" / "Images"
    (images / "Normal" / "0000.JPG").unlink()
    (images / "Normal" / "0001.JPG").write_bytes(b"")
    (images / "Anomaly" / "000.JPG").write_bytes(b"\xff\xd8 not a jpeg")
    whole = (images / "Anomaly" / "001.JPG").read_bytes()
    (images / "Anomaly" / "001.JPG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"4 of 12 images cannot be used[\s\S]*0000.JPG: missing[\s\S]*--max-bad-share"):
        prepare("visa", tree.root, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    result = prepare("visa", tree.root, tmp_path / "out", LOOSE)
    reasons = {Path(entry["id"]).name: entry["reason"] for entry in result["skipped"]}
    assert reasons == {"0000.JPG": "missing", "0001.JPG": "empty", "000.JPG": "unreadable", "001.JPG": "unreadable"}
    assert len(_rows(tmp_path / "out")) == len(result["images"]) == 8


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_unusable_not_a_crash(tmp_path: Path, suffix: str) -> None:
    whole = image(tmp_path / f"a.{suffix}").read_bytes()
    random = Random(0)
    kinds = Counter()
    for i in range(60):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 12)):
            damaged[random.randrange(min(len(damaged), 200 if i % 2 else len(damaged)))] = random.randrange(256)
        (tmp_path / "b").write_bytes(damaged[: random.randrange(1, len(damaged))] if i % 5 == 0 else damaged)
        kinds[type(decode(tmp_path / "b", 28))] += 1
    assert kinds[Unusable] > 0


def test_rotated_and_16_bit_photos(tmp_path: Path) -> None:
    """The image is upright, and 16-bit grey is scaled, not clipped to white."""
    tree = TREES["folder"](tmp_path / "in")
    wide = Image.fromarray(np.kron([[0, 255]], np.ones((20, 20))).astype(np.uint8)).convert("RGB")  # left black
    exif = wide.getexif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: the left side comes to the top
    wide.save(tree.root / "normal" / "0.png", exif=exif)
    Image.fromarray(np.full((20, 20), 2**15, np.uint16)).save(tree.root / "normal" / "1.png")
    prepare("folder", tree.root, tmp_path / "out", SMALL)
    found = {row["extra_info"]["id"]: row["images"][0]["bytes"] for row in _rows(tmp_path / "out")}
    turned = np.asarray(Image.open(io.BytesIO(found["normal/0.png"])))
    assert turned[:10].max() < 30 and turned[18:].min() > 225
    assert 126 <= np.asarray(Image.open(io.BytesIO(found["normal/1.png"]))).mean() <= 129
    (sample,) = (s for s in get_dataset("folder").samples(tree.root) if s.id == "normal/0.png")
    assert load_mask(sample).shape == (40, 20)


def test_the_share_of_bad_files_is_a_threshold(tmp_path: Path) -> None:
    tree = TREES["folder"](tmp_path / "in")
    (tree.root / "normal" / "0.png").write_bytes(b"")
    prepare("folder", tree.root, tmp_path / "at", PrepareSettings(size=28, max_bad_share=1 / 12))
    with pytest.raises(UserError, match="1 of 12"):
        prepare("folder", tree.root, tmp_path / "below", PrepareSettings(size=28, max_bad_share=0.08))


def test_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    tree = TREES["folder"](tmp_path / "in")
    out = tmp_path / "out"
    prepare("folder", tree.root, out, SMALL)
    before = _bytes(out)
    with pytest.raises(UserError, match="is not empty"):
        prepare("folder", tree.root, out, SMALL)
    (out / "notes.txt").write_text("mine")
    prepare("folder", tree.root, out, PrepareSettings(size=28, val_fraction=0, seed=5), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "notes.txt", "train.parquet"]
    assert (out / "train.parquet").read_bytes() != before["train.parquet"]
    with pytest.raises(UserError, match="is a file"):
        prepare("folder", tree.root, out / "notes.txt", SMALL)


def test_failed_overwrite_keeps_the_earlier_run(tmp_path: Path) -> None:
    tree = TREES["folder"](tmp_path / "in")
    out = tmp_path / "out"
    prepare("folder", tree.root, out, SMALL)
    before = _bytes(out)
    (tree.root / "normal" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        prepare("folder", tree.root, out, SMALL, overwrite=True)
    assert _bytes(out) == before and (out / "manifest.json").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".prepare-")]


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the write fails in the middle of a file."""
    tree = TREES["folder"](tmp_path / "in")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from realad_verl.cli import main; sys.argv[0] = 'realad'; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "prepare",
        "folder",
        "--root",
        str(tree.root),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: cannot write to out" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [{"size": 2}, {"val_fraction": 1.5}, {"max_per_class": 0}, {"max_bad_share": -1.0}],
    ids=lambda s: next(iter(s)),
)
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        PrepareSettings(**setting)


def test_one_class_only_needs_no_balance(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / "in" / "cap" / "NG" / "dent" / "image" / f"{i}.png")
    with pytest.raises(UserError, match="--no-balance"):
        prepare("pr_real", tmp_path / "in", tmp_path / "out", SMALL)
    result = prepare("pr_real", tmp_path / "in", tmp_path / "out", PrepareSettings(size=28, balance=False))
    assert {entry["label"] for entry in result["images"]} == {1}


def test_ordered_map_keeps_order_and_is_bounded() -> None:
    taken = 0

    def items():
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    results = ordered_map(lambda i: i * i, items(), workers=2)
    assert next(results) == 0
    assert taken <= 6
    assert list(results) == [i * i for i in range(1, 100)]


def test_command_table_json_and_list(tmp_path: Path) -> None:
    tree = TREES["folder"](tmp_path / "in")
    run = CliRunner().invoke
    arguments = ["prepare", "folder", "--root", str(tree.root), "--size", "28", "--val-fraction", "0.34", "--out"]
    table = run(app, [*arguments, str(tmp_path / "a")])
    assert table.exit_code == 0, table.output
    assert "train normal" in table.stdout and "train.parquet: 8 rows" in table.stdout
    result = run(app, [*arguments, str(tmp_path / "b"), "--json", "--workers", "1"])
    content = json.loads(result.stdout)
    assert content["files"]["val.parquet"]["rows"] == 4 and "images" not in content
    listed = json.loads(run(app, ["prepare", "--list", "--json"]).stdout)
    assert [row["name"] for row in listed] == [*TREES] and all(row["licence"] and row["source"] for row in listed)
    assert "visa" in run(app, ["prepare", "--list"]).stdout
    missing = run(app, ["prepare", "visa"])
    assert isinstance(missing.exception, UserError)


@pytest.mark.slow  # importing verl takes longer than all other tests here
def test_every_row_reads_back_through_verls_dataset(tmp_path: Path) -> None:
    """verl's own RLHFDataset turns a row into chat messages with a PIL image."""
    rl_dataset = pytest.importorskip("verl.utils.dataset.rl_dataset", reason="verl is not installed")
    from omegaconf import OmegaConf

    os.environ["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    tree = TREES["folder"](tmp_path / "in")
    prepare("folder", tree.root, tmp_path / "out", SMALL)
    config = OmegaConf.create({"cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts": False})
    files = [str(tmp_path / "out" / f"{split}.parquet") for split in ("train", "val")]
    dataset = rl_dataset.RLHFDataset(files, tokenizer=None, config=config, processor=object())
    assert len(dataset) == 12
    for item in (dataset[i] for i in range(12)):
        (message,) = item["raw_prompt"]
        picture, text = message["content"]
        assert picture["type"] == "image" and picture["image"].size == (28, 28)
        assert text == {"type": "text", "text": verl_messages()[0]["content"].removeprefix("<image>")}
        assert item["reward_model"]["ground_truth"] in ("yes", "no") and item["data_source"] == "realad/folder"


def test_the_aspect_can_be_kept(tmp_path):
    """Longest side 56, the other as in the file: not cut, not filled."""
    for number, (width, height) in enumerate([(80, 40), (30, 90), (50, 50), (400, 1)]):
        for label in ("normal", "anomalous"):
            (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
            pixels[0, 0] = len(label)
            Image.fromarray(pixels).save(tmp_path / "in" / label / f"{number}.png")
    prepare("folder", tmp_path / "in", tmp_path / "out", PrepareSettings(size=56, keep_aspect=True, val_fraction=0))
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    sizes = {Image.open(io.BytesIO(row["images"][0]["bytes"])).size for row in rows}
    assert sizes == {(56, 28), (19, 56), (56, 56), (56, 1)}
