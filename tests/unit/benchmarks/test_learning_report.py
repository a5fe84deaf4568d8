import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from learning_report import SMOOTH, by_surface, comparison, curve, paired, paired_ranking, plot, table
from learning_whatif import best_cut, separation, varies, within_group


def a_run(right: list[int], **summary: float) -> dict:
    """A run on images labelled 0, 1, 0, 1, ...; ``right``: which answers are right."""
    label = [i % 2 for i in range(len(right))]
    answer = [value if good else 1 - value for value, good in zip(label, right, strict=True)]
    maps = [0.5 + 0.1 * good if value else None for value, good in zip(label, right, strict=True)]
    measured = {
        "label": label,
        "answer": answer,
        "sampled": [[a, 1 - a] for a in answer],
        "jaccard": ([0.1, 0.2, 0.3, None] * len(label))[: len(label)],
        "auroc_all": maps,
        "auroc_both": maps,
    }
    return {"summary": summary, "measured": measured}


def test_paired_difference_is_taken_image_by_image():
    rng = np.random.default_rng(0)
    worse = [a_run(list(rng.integers(0, 2, 400))) for _ in range(2)]
    label = np.array(worse[0]["measured"]["label"])
    better = [a_run([1] * 40 + list((np.array(run["measured"]["answer"]) == label).astype(int)[40:])) for run in worse]
    found = paired(better, worse, "accuracy")
    rights = [(np.array(run["measured"]["answer"]) == label)[:40].sum() for run in worse]
    assert found["seeds"] == pytest.approx([(40 - right) / 400 for right in rights])
    assert found["mean"] == pytest.approx(np.mean(found["seeds"]))
    assert 0 < found["low"] < found["mean"] < found["high"], "a gain on a tenth of the images, by pairs, is no chance"
    swapped = paired(worse, better, "accuracy")
    assert (swapped["mean"], swapped["high"]) == pytest.approx((-found["mean"], -found["low"]), abs=5e-3)


def test_equal_runs_differ_by_nothing():
    runs = [a_run([1, 0, 1, 1])]
    assert paired(runs, runs, "accuracy") == {"mean": 0.0, "low": 0.0, "high": 0.0, "seeds": [0.0]}


def test_images_without_a_map_quality_are_left_out():
    found = paired([a_run([1, 1, 1, 1])], [a_run([1, 0, 1, 1])], "auroc_all")
    assert found["mean"] == pytest.approx(0.05), "one of two anomalous images, 0.1 better"


def test_rankings_are_paired_by_image_and_class():
    """J of 0.1, 0.3 (normal) and 0.2, none, which counts as 0 (anomalous): one of four pairs is in order."""
    first, second = a_run([1, 1, 1, 1] * 50), a_run([1, 1, 1, 1] * 50)
    first["measured"]["jaccard"] = [float(value) for value in first["measured"]["label"]]
    found = paired_ranking([first], [second], "jaccard")
    assert found["mean"] == pytest.approx(1 - 0.25) and found["low"] < 0.75 < found["high"]
    assert paired_ranking([first], [first], "jaccard") == {"mean": 0.0, "low": 0.0, "high": 0.0, "seeds": [0.0]}


def test_tables():
    runs = {
        "r1": [a_run([1, 1], accuracy=0.5), a_run([0, 1], accuracy=0.7)],
        "cgro": [a_run([1, 0], accuracy=0.25)] * 2,
    }
    assert table(runs).splitlines()[2] == "| accuracy | 0.600 +- 0.141 | 0.250 +- 0.000 |"
    lines = comparison(runs, [("cgro", "r1")]).splitlines()[2:]
    assert lines[0].startswith("| cgro - r1 | accuracy | -25.0 | ") and lines[0].endswith(" | -50.0, +0.0 |")
    assert lines[1] == "| cgro - r1 | accuracy_sampled | +0.0 | +0.0 to +0.0 | +0.0, +0.0 |", "one of two is right"


def test_answers_by_surface():
    first, second = a_run([1, 1, 1, 1]), a_run([1, 1, 1, 1])
    first["measured"]["sampled"] = [[0, 0], [1, 0], [1, 1], [1, 1]]
    second["measured"]["sampled"] = [[1, 0], [1, 1], [1, 1], [-1, 0]]
    lines = by_surface(["wood", "wood", "tile", "tile"], {"r1": [first, second]}).splitlines()
    assert lines[2:] == ["| tile | 2 | 1.00 / 0.50 |", "| wood | 2 | 0.25 / 0.75 |"]


def test_curves_and_their_picture(tmp_path):
    line = '{{"accuracy": {0}, "jaccard_0": 0.1, "jaccard_1": 0.2, "kl": 0.01}}\n'
    for seed in (0, 1):
        (tmp_path / f"{seed}.jsonl").write_text("".join(line.format(seed + step) for step in range(SMOOTH + 2)))
    logs = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    mean = (SMOOTH - 1) / 2
    assert curve(logs, "accuracy") == pytest.approx(np.array([[mean, mean + 1, mean + 2]] * 2) + [[0], [1]])
    runs = [a_run([1, 0, 1, 1]), a_run([0, 1, 1, 1])]
    plot({"r1": logs, "one seed": logs[:1]}, {"warm start": runs[:1], "r1": runs}, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_separation_and_agreement_within_groups():
    jaccard = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.5]])
    label = np.array([[0, 0, 0], [1, 1, 1]])
    assert separation(jaccard, label) == 1.0
    assert np.isnan(separation(jaccard, np.zeros_like(label)))
    right = np.array([[0, 0, 1], [0, 1, 1]])
    assert within_group(jaccard, right) == pytest.approx(np.corrcoef([0.3, 0.4, 0.5], [0, 1, 1])[0, 1])


def test_hard_reward_varies_only_where_a_group_straddles_its_threshold():
    jaccard, label = (
        np.array([[0.1, 0.2], [0.1, 0.4], [0.4, 0.6], [0.3, 0.4]]),
        np.array([[0, 0], [0, 0], [1, 1], [1, 1]]),
    )
    assert varies(jaccard, label, (0.5, 0.3)) == 0.5, "the second image and the third"
    assert varies(jaccard, label, (0.9, 0.9)) == 0.0
    assert 0.2 < best_cut(jaccard, label) < 0.31
