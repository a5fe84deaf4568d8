"""What is kept of each image gives the figures of the whole run, and travels through its file."""

import numpy as np
import pytest

from realad_verl.errors import UserError
from realad_verl.evaluate.counts import FILE, Measured, PixelRecord, interval_table
from realad_verl.evaluate.intervals import MACRO, POOLED, intervals
from realad_verl.evaluate.metrics import answer_summary, image_summary
from realad_verl.evaluate.pixel_metrics import PixelHistogram, pixel_summary


def a_run(seed: int = 0, n: int = 24) -> tuple[Measured, dict[str, tuple[np.ndarray, np.ndarray]]]:
    rng, rows, record, pairs = np.random.default_rng(seed), [], PixelRecord(), {}
    for i in range(n):
        label, name = i % 2, f"{'ab'[i // 12]}/{i}"
        mask = np.zeros((12, 12), bool)
        if label:
            mask[2:5, 2 : 4 + i % 4] = True
        anomaly_map = (rng.random((12, 12)) + 0.5 * mask).astype(np.float32)
        answer = int(rng.random() < 0.3 + 0.4 * label)
        rows.append(
            {
                **{"id": name, "category": "ab"[i // 12], "gt_label": label, "pred_label": answer, "map": "x"},
                **{
                    "pred_score": float(rng.random() * 0.5 + 0.3 * label),
                    "well_formed": i % 5 > 0,
                    "fallback": i % 3 == 0,
                },
                **{"jaccard": None if i % 7 == 0 else float(rng.random()), "reasoning": "", "answer": "yes"},
                "problem": None,
                "sampled": [i // 3 % 2, None, 1][: 1 + i % 3],
            }
        )
        histogram = PixelHistogram()
        histogram.add(anomaly_map, mask)
        record.add(name, histogram)
        pairs[name] = (anomaly_map, mask)
    limits = {part: {"image": 0.5, "pixel_kept": 0.9, "pixel_zeroed": 0.9} for part in ("a", "b", POOLED)}
    return Measured(rows, record, limits, 0.3), pairs


@pytest.mark.parametrize("zeroed", [False, True])
def test_figures_at_weight_1_are_those_of_the_run(zeroed):
    measured, pairs = a_run()
    found = measured.figures(zeroed=zeroed)(np.ones((1, len(measured.rows))))
    for part in ("a", "b", POOLED):
        rows = [r for r in measured.rows if part in (POOLED, r["category"])]
        exact = PixelHistogram()
        for row in rows:
            anomaly_map, mask = pairs[row["id"]]
            exact.add(anomaly_map * (row["pred_label"] if zeroed else 1), mask)
        columns = ([r[key] for r in rows] for key in ("gt_label", "pred_score", "pred_label"))
        wanted = image_summary(*columns, threshold=0.5) | answer_summary(rows) | pixel_summary(exact, threshold=0.9)
        names = {name for where, name in found if where == part}
        assert {"image_auroc", "image_acc_at_threshold", "jaccard_normal", "pixel_aupro", "pixel_acc"} <= names
        for name in names - {"contradictions"}:  # nothing here takes a stance
            # Pixel scores are cut to 6 mantissa bits.
            tolerance = 5e-3 if name.startswith("pixel") else 1e-9
            assert found[part, name][0] == pytest.approx(wanted[name], abs=tolerance), (part, name)
    mean = (found["a", "pixel_auroc"] + found["b", "pixel_auroc"]) / 2
    assert found[MACRO, "pixel_auroc"] == pytest.approx(mean)


def test_counts_come_back_from_their_file(tmp_path):
    measured, _ = a_run()
    measured.pixels.save(tmp_path)
    again = Measured(measured.rows, PixelRecord.load(tmp_path), measured.limits, measured.fpr_limit)
    ones = np.ones((1, len(measured.rows)))
    first, second = (m.figures(zeroed=False)(ones) for m in (measured, again))
    assert all(np.array_equal(first[key], second[key], equal_nan=True) for key in first)


def test_a_run_without_any_mask_has_a_file_too(tmp_path):
    PixelRecord().save(tmp_path)
    assert PixelRecord.load(tmp_path).keys == {}


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"counts\.npz.*realad evaluate"):
        PixelRecord.load(tmp_path)


def test_the_table_holds_each_part_and_figure():
    measured, _ = a_run()
    table = interval_table(measured, resamples=200)
    assert set(table["kept"]) == {"a", "b", MACRO, POOLED}
    low, high = table["kept"][MACRO]["pixel_auroc"]
    one = measured.figures(zeroed=False)(np.ones((1, len(measured.rows))))[MACRO, "pixel_auroc"][0]
    assert low < one < high
    assert table["kept"][MACRO]["image_auroc"] == table["zeroed"][MACRO]["image_auroc"]
    again = intervals(measured.figures(zeroed=False), measured.strata(), resamples=200)
    assert table["kept"]["a"]["image_ap"] == list(again["a", "image_ap"])
