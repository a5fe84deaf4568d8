"""results.json from rows, maps and masks that are made up here, so that the right figures are known."""

import json

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from realad_verl.errors import UserError
from realad_verl.evaluate.pixel_metrics import PixelHistogram
from realad_verl.evaluate.records import save_map
from realad_verl.evaluate.store import write_json
from realad_verl.evaluate.summary import ORACLE, SummaryConfig, macro_mean, outline, summarise


def make_rows(folder, category="bolt", n=6, seed=0):
    rng = np.random.default_rng(seed)
    rows, masks = [], {}
    for i in range(n):
        label, name = i % 2, f"{category}/{i}.png"
        mask = np.zeros((60, 80), bool)
        grid_map = rng.random((6, 8)).astype(np.float32) * 1e-3
        if label:
            mask[10:30, 20:50] = True
            grid_map[1:3, 2:5] += 1e-3
        masks[name] = mask
        rows.append(
            {
                **{
                    "id": name,
                    "category": category,
                    "gt_label": label,
                    "reasoning": "There is a crack.",
                    "answer": "yes",
                },
                **{
                    "pred_label": 1,
                    "pred_score": 0.4 + 0.1 * i,
                    "well_formed": True,
                    "fallback": False,
                    "problem": None,
                },
                **{"jaccard": 0.5, "map": f"{category}{i}.png"},
                "map_scale": save_map(folder / f"{category}{i}.png", grid_map),
            }
        )
    return rows, masks


def run(rows, masks, folder, **settings):
    return summarise(rows, folder, lambda r: masks[r["id"]], SummaryConfig(**settings))[0]


def test_figures_by_category_macro_and_pooled(tmp_path):
    rows, masks = make_rows(tmp_path)
    more, more_masks = make_rows(tmp_path, "nut", seed=1)
    results = run(rows + more, masks | more_masks, tmp_path)
    assert sorted(results["categories"]) == ["bolt", "nut"]
    both = [c["pixel"]["pixel_auroc"] for c in results["categories"].values()]
    assert results["macro_mean"]["pixel"]["pixel_auroc"] == pytest.approx(np.mean(both))
    assert results["macro_mean"]["pixel"]["n_categories"]["pixel_auroc"] == 2
    assert results["pooled"]["image"]["n_images"] == 12
    assert results["threshold_source"] == ORACLE
    maps = []
    for r in rows + more:
        small = cv2.imread(str(tmp_path / r["map"]), cv2.IMREAD_UNCHANGED) * (r["map_scale"] / 65535)
        maps.append(cv2.resize(small.astype(np.float32), (80, 60), interpolation=cv2.INTER_LINEAR))
    y = np.concatenate([(masks | more_masks)[r["id"]].ravel() for r in rows + more])
    assert results["pooled"]["pixel"]["pixel_auroc"] == pytest.approx(
        roc_auc_score(y, np.concatenate([m.ravel() for m in maps])), abs=1e-5
    )
    json.dumps(results, allow_nan=False)


def test_predicted_normal_kept_and_zeroed_are_both_there(tmp_path):
    rows, masks = make_rows(tmp_path)
    rows[1]["pred_label"], rows[2]["pred_label"] = 0, None
    kept, zeroed = (run(rows, masks, tmp_path, predicted_normal=p) for p in ("keep", "zero"))
    assert kept["pooled"]["pixel"] == kept["pooled"]["pixel_kept"] == zeroed["pooled"]["pixel_kept"]
    assert zeroed["pooled"]["pixel"] == zeroed["pooled"]["pixel_zeroed"]
    for r in rows[1:3]:
        r["map"] = None  # a missing map counts as zeros, which is what zeroing does
    assert run(rows, masks, tmp_path)["pooled"]["pixel_kept"] == zeroed["pooled"]["pixel_zeroed"]


def test_category_without_anomalous_image(tmp_path):
    rows, masks = make_rows(tmp_path)
    normal, normal_masks = make_rows(tmp_path, "nut")
    results = run(rows + normal[::2], masks | normal_masks, tmp_path)
    nut = results["categories"]["nut"]
    assert (
        nut["image"]["image_auroc"] is None and nut["pixel"]["pixel_aupro"] is None and nut["image"]["image_acc"] == 0
    )
    assert results["macro_mean"]["image"]["n_categories"] == {
        **{"image_auroc": 1, "image_ap": 1, "image_f1_max": 1, "image_acc": 2, "image_acc_at_threshold": 1}
    }


@pytest.mark.parametrize("lost", [None, "zero"])
def test_anomalous_image_without_mask_is_listed_not_counted(tmp_path, lost):
    rows, masks = make_rows(tmp_path)
    expected = run(rows[:5], masks, tmp_path)["pooled"]["pixel"]
    masks[rows[5]["id"]] = None if lost is None else np.zeros((60, 80), bool)
    results = run(rows, masks, tmp_path)
    assert results["anomalous_without_mask"] == [rows[5]["id"]]
    assert results["pooled"]["pixel"] == expected
    assert results["pooled"]["image"]["n_images"] == 6


def test_bad_images_are_listed(tmp_path):
    rows, masks = make_rows(tmp_path)
    rows.append({"id": "bolt/x.png", "category": "bolt", "gt_label": 1, "error": "cannot identify image file"})
    results = run(rows, masks, tmp_path)
    assert results["bad_images"] == [{"id": "bolt/x.png", "error": "cannot identify image file"}]
    assert results["pooled"]["image"]["n_images"] == 6


def test_thresholds_come_from_the_validation_run(tmp_path):
    rows, masks = make_rows(tmp_path, n=10)
    validation = run(rows, masks, tmp_path)
    write_json(tmp_path / "val" / "results.json", validation) if (tmp_path / "val").mkdir() is None else None
    test_rows, test_masks = make_rows(tmp_path, seed=5)
    other, other_masks = make_rows(tmp_path, "nut", seed=6)
    results = run(test_rows + other, test_masks | other_masks, tmp_path, threshold_from=tmp_path / "val")
    assert results["threshold_source"] == f"validation run {tmp_path / 'val'}"
    for category in ("bolt", "nut"):  # nut is not in the validation set: pooled threshold
        found = results["categories"][category]
        assert found["pixel"]["pixel_acc_threshold"] == validation["pooled"]["pixel"]["pixel_f1_max_threshold"]
        assert found["image"]["image_acc_threshold"] == validation["pooled"]["image"]["image_f1_max_threshold"]
    with pytest.raises(UserError, match="cannot read"):
        run(rows, masks, tmp_path, threshold_from=tmp_path / "nowhere")
    write_json(tmp_path / "val" / "results.json", run(rows[::2], masks, tmp_path))
    with pytest.raises(UserError, match="no F1-max threshold for image, pixel_kept"):
        run(rows, masks, tmp_path, threshold_from=tmp_path / "val")


def test_resizing_is_stated_and_does_what_it_says(tmp_path):
    rows, masks = make_rows(tmp_path)
    native, fixed = run(rows, masks, tmp_path), run(rows, masks, tmp_path, pixel_size=32)
    assert native["pixel_size"] == "map resized to mask size" and fixed["pixel_size"] == 32
    assert native["pooled"]["pixel"]["n_normal_pixels"] + native["pooled"]["pixel"]["n_anomalous_pixels"] == 6 * 4800
    assert fixed["pooled"]["pixel"]["n_normal_pixels"] + fixed["pooled"]["pixel"]["n_anomalous_pixels"] == 6 * 1024
    for wrong in ({"pixel_size": 0}, {"predicted_normal": "hide"}, {"fpr_limit": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SummaryConfig(**wrong)


def test_macro_mean_of_nothing():
    assert macro_mean({}) == {}


def test_outlines_are_shares_and_dots_can_be_seen():
    mask = np.zeros((100, 200), bool)
    mask[20:40, 50:100] = True
    mask[80, 10] = True
    shapes = sorted(outline(mask), key=lambda s: s[0])
    assert len(shapes) == 2
    assert shapes[0] == [0.05, 0.8, 0.055, 0.8, 0.055, 0.81, 0.05, 0.81]
    assert min(shapes[1][::2]) == 0.25 and max(shapes[1][1::2]) == 0.39


def test_threads_do_not_change_a_figure(tmp_path, monkeypatch):
    """Nor does how far bins are cut when an image is counted: the histograms here are full after a few images."""
    monkeypatch.setattr(PixelHistogram.__init__, "__defaults__", (300, *PixelHistogram.__init__.__defaults__[1:]))
    rows, masks = make_rows(tmp_path, n=12)
    alone = summarise(rows, tmp_path, lambda r: masks[r["id"]], SummaryConfig())
    assert alone[0]["pooled"]["pixel"]["pixel_auroc_error_bound"] > 0
    assert summarise(rows, tmp_path, lambda r: masks[r["id"]], SummaryConfig(), workers=4) == alone
