"""Masks of an evaluation: what does not lie on its image is listed; the rest is turned, counted, read by one rule."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realad_verl.data.datasets import DATASETS, Sample
from realad_verl.data.images import load_image
from realad_verl.data.masks import MaskSetting
from realad_verl.errors import UserError
from realad_verl.evaluate.ground_truth import GroundTruth, first_of, ground_truth_lines
from realad_verl.evaluate.records import save_map
from realad_verl.evaluate.runner import finish, found_files, limited
from realad_verl.evaluate.store import ResultStore, read_json, read_rows
from realad_verl.evaluate.summary import SummaryConfig
from realad_verl.report import terminal
from realad_verl.report.load import load_run


def photos(root: Path) -> list[Sample]:
    """Phone photos stored lying and turned by EXIF; masks drawn on the stored pixels; one mask of another shape."""
    exif, rng = Image.Exif(), np.random.default_rng(0)
    exif[0x0112] = 6
    for kind in ("normal", "anomalous", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(4):
        stored, drawn = rng.integers(80, 120, (40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
        Image.fromarray(stored).save(root / "normal" / f"{i}.jpg", exif=exif)
        stored[5:12, 10 + i : 40], drawn[5:12, 10 + i : 40] = 255, 255
        Image.fromarray(stored).save(root / "anomalous" / f"{i}.jpg", exif=exif, quality=95)
        Image.fromarray(drawn if i < 3 else drawn[:, :40]).save(root / "masks" / f"{i}.png")
    return DATASETS["folder"].samples(root)


def perfect_rows(samples: list[Sample], folder: Path) -> ResultStore:
    """Rows of a localizer whose map is the bright defect of the upright photo."""
    store = ResultStore(folder, {})
    with store.writer() as writer:
        for sample in samples:
            picture = load_image(sample.path)
            bright = (np.asarray(picture.convert("L")) > 200).astype(np.float32) * sample.label
            name = f"maps/{sample.label}{sample.path.stem}.png"
            row = {"id": sample.id, "category": "c", "defect_type": "d", "gt_label": sample.label, "pred_label": 1}
            row |= {"map": name, "map_scale": save_map(folder / name, bright), "pred_score": float(sample.label)}
            row |= {"image_size": [picture.height, picture.width], "well_formed": True, "fallback": False}
            row |= {"jaccard": None, "reasoning": "", "answer": "yes", "problem": None}
            writer.append(row)
    return store


def test_a_perfect_map_of_turned_photos_is_perfect(tmp_path):
    samples = photos(tmp_path / "in")
    results = finish(samples, perfect_rows(samples, tmp_path / "run"), SummaryConfig())
    assert results is not None and results["pooled"]["pixel"]["pixel_auroc"] > 0.999
    assert results["anomalous_without_mask"] == ["anomalous/3.jpg"]
    found = results["masks"]
    assert found["misfits"] == [
        {
            "id": "anomalous/3.jpg",
            "reason": "the mask is 40 x 40 pixels, its image 40 x 60, turned by EXIF orientation 6",
        }
    ]
    assert [(fit["count"], fit["example"]) for fit in found["fits"]] == [(3, "anomalous/0.jpg")]
    said = ground_truth_lines(found)
    assert said[0] == "4 masks by grey: levels found: 0, 255; defect = all above 127.5"
    assert "turned with them" in said[1] and "40 x 40" in said[2]
    results |= {"n_in_split": 8, "split": "all", "remarks": [], "settings": {}}
    results["account"] = {"files": 12, "used": {}, "skipped": [], "unusable": [], "n_unusable": 0}
    remarks = terminal._remarks(results, tmp_path)
    assert sum("anomalous/3.jpg" in line for line in remarks) == 1, remarks  # once, with its reason


def test_a_thousand_masks_of_another_shape_are_no_thousand_lines():
    entries = [{"id": f"a{i}.png", "reason": "another shape"} for i in range(1000)]
    lines = first_of("not in the pixel figures", entries, "reason")
    assert lines[0] == "not in the pixel figures: a0.png (another shape)"
    assert len(lines) == 6 and lines[-1] == "not in the pixel figures: 995 more, in results.json"
    assert len(first_of("not readable", entries[:5], "reason")) == 5


def test_inverted_masks_are_said_and_a_setting_turns_them(tmp_path):
    samples = photos(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    truth = GroundTruth(samples)
    masks = [mask for s in samples if s.label and (mask := truth.mask(s)) is not None]
    assert min(mask.mean() for mask in masks) > 0.5
    assert "3 masks mark more than half" in ground_truth_lines(truth.to_dict())[-1]
    turned = GroundTruth(samples, MaskSetting("inverted"))
    assert max(mask.mean() for s in samples if s.label and (mask := turned.mask(s)) is not None) < 0.2


def test_files_are_accounted_for(tmp_path):
    samples = photos(tmp_path)
    (tmp_path / "normal" / "notes.txt").write_text("x")
    rows = [{"id": "normal/0.jpg", "error": "torn"}]
    found = found_files(DATASETS["folder"], tmp_path, samples, samples[:7], rows)["account"]
    assert found["used"] == {"images": 6, "masks": 4} and found["files"] == 13
    assert found["unusable"] == [{"file": "normal/0.jpg", "reason": "torn"}]
    assert {s["rule"]: s["count"] for s in found["skipped"]} == {
        "another split, or beyond --limit": 1,
        "no image by its name (*.txt)": 1,
    }


def test_a_limit_is_spread_over_defect_types():
    samples = [
        Sample(f"{kind}/{i:02}", Path(f"{kind}/{i}"), int(kind != "good"), "c", kind, None, "test")
        for kind in ("good", "crack", "dent", "scratch")
        for i in range(20)
    ]
    kinds = [sample.defect_type for sample in limited(samples, 12)]
    assert sorted(kinds) == sorted(["good"] * 6 + ["crack", "dent", "scratch"] * 2)
    assert {s.id for s in limited(samples, 7)} <= {s.id for s in limited(samples, 12)}


def test_a_lower_limit_leaves_one_set_of_images(tmp_path):
    samples = photos(tmp_path / "in")
    store = perfect_rows(samples, tmp_path / "run")
    finish(samples, store, SummaryConfig())
    few = limited(samples, 4)
    results = finish(few, store, SummaryConfig())
    assert results is not None and results["pooled"]["image"]["n_images"] == 4 and len(store.rows()) == 8
    assert set(read_json(tmp_path / "run" / "images.json")) == {sample.id for sample in few}
    (view,) = load_run(tmp_path / "run").views
    assert set(view.rows) == {sample.id for sample in few}


@pytest.mark.parametrize("key", ["thumb", "map"])
@pytest.mark.parametrize("name", ["../../secret.webp", "/etc/passwd", "thumbs/../../x", 3])
def test_a_row_cannot_name_a_file_outside_of_its_folder(tmp_path, key, name):
    row = {"id": "a", key: name}
    with ResultStore(tmp_path, {}).writer() as writer:
        writer.append(row)
    with pytest.raises(UserError, match="outside of its folder"):
        read_rows(tmp_path)
