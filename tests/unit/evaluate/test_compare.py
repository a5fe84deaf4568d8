"""Runs are compared on their common images, or refused with what differs."""

from dataclasses import replace

import numpy as np
import pytest
from test_counts import a_run

from realad_verl.evaluate.compare import Evaluated, compare
from realad_verl.evaluate.counts import PixelRecord
from realad_verl.evaluate.intervals import MACRO, POOLED


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same images; the second's scores are better by a little on every anomalous image."""
    found = []
    for name, gain in (("before", 0.0), ("after", 0.3)):
        measured, _ = a_run()
        (tmp_path / name).mkdir()
        measured.pixels.save(tmp_path / name)
        figures = {
            "image": {"image_acc_threshold": 0.5},
            "pixel_kept": {"pixel_acc_threshold": 0.9},
            "pixel_zeroed": {"pixel_acc_threshold": 0.9},
        }
        results = {
            "categories": {"a": figures, "b": figures},
            "pooled": figures,
            "pixel_size": "map resized to mask size",
            "fpr_limit": 0.3,
        }
        rows = {
            r["id"]: {**r, "pred_score": r["pred_score"] + gain * r["gt_label"], "image_size": [12, 12]}
            for r in measured.rows
        }
        found.append(Evaluated(name, tmp_path / name, results, rows))
    return found


def test_paired_on_the_same_images(runs):
    found = compare(runs, resamples=300)
    assert found.refused is None and found.same_images and found.n_images == 24
    before, after = (v["kept"][MACRO]["image_auroc"] for v in found.values)
    low, high = found.differences[1]["kept"][MACRO]["image_auroc"]
    assert 0 <= low < after - before < high
    assert found.differences[1]["kept"][POOLED]["pixel_auroc"] is None, "the maps are the same"
    assert found.differences[0] == {}


def test_only_common_images_count(runs):
    fewer = {i: row for i, row in runs[1].rows.items() if not i.endswith("3")}
    found = compare([runs[0], replace(runs[1], rows=fewer)], resamples=100)
    assert (found.n_images, found.left_out, found.same_images) == (21, (3, 0), False)
    same = compare([replace(runs[0], rows={i: runs[0].rows[i] for i in fewer}), replace(runs[1], rows=fewer)])
    assert same.values == found.values and same.same_images


def _with(run, image, **changes):
    return replace(run, rows={**run.rows, image: {**run.rows[image], **changes}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: replace(run, results={**run.results, "fpr_limit": 0.05}), ["fpr_limit", "0.3", "0.05"]),
        (lambda run: replace(run, results={**run.results, "pixel_size": 256}), ["pixel_size", "256"]),
        (lambda run: replace(run, rows={"z": run.rows["a/0"]}), ["no image in common"]),
        (lambda run: _with(run, "a/2", gt_label=1), ["a/2", "gt_label 0", "1 in after"]),
        (lambda run: _with(run, "b/13", image_size=[12, 24]), ["b/13", "image_size [12, 12]", "[12, 24] in after"]),
    ],
)
def test_what_is_not_comparable_is_refused(runs, change, words):
    found = compare([runs[0], change(runs[1])])
    assert found.values == () and all(word in found.refused for word in words), found.refused


def test_another_mask_is_refused(runs):
    record = PixelRecord.load(runs[1].folder)
    record.counts["a/1"] = record.counts["a/1"] * np.array([[1], [0], [1]], np.float32)
    record.save(runs[1].folder)
    assert "a/1 has a mask of" in compare(runs).refused
