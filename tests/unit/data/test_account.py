"""Any tree of folders is accounted for file by file: used + skipped + unusable = all."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import TREES, image, mask

from realad_verl.data.datasets import DATASETS
from realad_verl.data.prepare import PrepareSettings, prepare

FOLDERS = ("normal", "anomalous", "anomalous/dent", "normal/a", "masks", "masks/dent", "elsewhere", "normal/@eaDir")
KINDS = ("png", "jpg", "copy", "empty", "torn", "text", "none", "hidden", "heic", "bytes", "broken", "linked", "loop")


def make(root: Path, store: Path, folder: str, kind: str, number: int) -> None:
    """One file, or link, of ``kind``."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (9, 11, 3), np.uint8)
    if kind in ("png", "jpg"):
        Image.fromarray(noise).save(place / f"{number}.{kind}")
    elif kind == "copy":  # the content of another image
        Image.fromarray(np.zeros_like(noise)).save(place / f"{number}.bmp")
    elif kind in ("empty", "torn", "heic"):
        content = {"empty": b"", "torn": b"\x89PNG\r\n\x1a\n\0\0", "heic": b"\0\0\0\x18ftypheic"}[kind]
        (place / f"{number}.{'heic' if kind == 'heic' else 'png'}").write_bytes(content)
    elif kind in ("text", "none", "hidden"):
        name = {"text": f"{number}.txt", "none": f"README{number}", "hidden": f"._{number}.png"}[kind]
        (place / name).write_text("x")
    elif kind == "bytes":
        shutil.copy(image(store / f"{number}.png"), os.path.join(os.fsencode(place), b"\xbb\xae%d.png" % number))
    elif kind == "broken":
        (place / f"{number}.png").symlink_to(store / "nowhere.png")
    elif kind == "linked":
        image(store / f"linked{number}" / "0.png")
        (place / f"link{number}").symlink_to(store / f"linked{number}")
    else:
        (place / f"loop{number}").symlink_to(root)


def count(folder: str, above: tuple[str, ...] = ()) -> int:
    """Every entry that is no folder, links to folders followed, a link back to a folder on the path counted as one."""
    total, above = 0, (*above, os.path.realpath(folder))
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        total += count(path, above) if os.path.isdir(path) and os.path.realpath(path) not in above else 1
    return total


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(KINDS)), max_size=12), st.booleans())
def test_every_file_is_used_skipped_or_unusable(files: list[tuple[str, str]], balance: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root, store, out = (Path(temporary) / name for name in ("in", "store", "out"))
        make(root, store, "normal", "png", 100)
        make(root, store, "anomalous", "png", 101)
        mask(root / "masks" / "101.png")
        for number, (folder, kind) in enumerate(files):
            make(root, store, folder, kind, number)
        result = prepare(
            "folder", root, out, PrepareSettings(size=14, max_bad_share=1, balance=balance, val_fraction=0)
        )
        found = result["account"]
        skipped = sum(entry["count"] for entry in found["skipped"])
        assert sum(found["used"].values()) + skipped + found["n_unusable"] == found["files"] == count(str(root))
        assert found["used"]["images"] == pq.read_metadata(out / "train.parquet").num_rows
        assert all(entry["rule"] and entry["example"] for entry in found["skipped"])
        assert all(entry["file"] and entry["reason"] for entry in found["unusable"])


@pytest.mark.parametrize("name", sorted(TREES))
def test_a_tidy_tree_is_used_to_the_last_file(name: str, tmp_path: Path) -> None:
    """What a layout has that is neither an image nor a mask is named here; nothing else is left over."""
    tree = TREES[name](tmp_path)
    found = DATASETS[name].account(tree.root, DATASETS[name].samples(tree.root)).to_dict()
    left = {
        "mvtec_ad": {"license.txt"},
        "mvtec_loco": {"juice/defects_config.json"},
        "mvtec_ad2": {"can/test_private/000_mixed.png"},
        "vision": {"Casting/inference/000012.png", "Casting/inference/_annotations.coco.json"},
    }.get(name, set())
    assert {entry["example"] for entry in found["skipped"]} == left and not found["n_unusable"]
    assert found["used"]["images"] == tree.normal + tree.anomalous
