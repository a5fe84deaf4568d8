"""Image metrics against torchmetrics, an implementation other than the one used; the stance rule; the text scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from realad_verl.data.procedural.captions import SOURCE_DEFECTS, Facts, reasoning
from realad_verl.errors import UserError
from realad_verl.evaluate.metrics import answer_summary, f1_max, image_curves, image_summary
from realad_verl.evaluate.text_metrics import contradicts, rouge_l, sbert_similarity, score_texts, stance, text_summary


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 10, 10**6]))
def test_image_figures_agree_with_torchmetrics(seed, levels):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, 30)]
    scores = np.floor((rng.random(32) * 0.8 + 0.2 * y) * levels) / levels
    got = image_summary(y.tolist(), scores.tolist(), (scores > 0.5).astype(int).tolist())
    p, t = torch.tensor(scores), torch.tensor(y)
    assert got["image_auroc"] == pytest.approx(binary_auroc(p, t).item(), abs=1e-6)
    assert got["image_ap"] == pytest.approx(binary_average_precision(p, t).item(), abs=1e-6)
    brute = max(2 * (y[scores >= s]).sum() / ((scores >= s).sum() + y.sum()) for s in scores)
    assert got["image_f1_max"] == pytest.approx(brute)
    at = got["image_f1_max_threshold"]
    assert got["image_acc_at_threshold"] == pytest.approx(((scores >= at) == y).mean())


def test_no_answer_is_wrong_and_undecided():
    got = image_summary([0, 1, 1, 0], [0.1, None, 0.9, None], [0, None, 1, None])
    assert got["image_acc"] == 0.5 and got["n_without_answer"] == 2
    assert got["image_auroc"] == pytest.approx(0.875)  # the two undecided images tie with each other


def test_one_class_only():
    got = image_summary([0, 0], [0.1, 0.7], [0, 1])
    assert got["image_auroc"] is None and got["image_f1_max"] is None and got["image_acc"] == 0.5
    assert got["image_acc_at_threshold"] is None
    assert image_summary([0, 0], [0.1, 0.7], [0, 1], threshold=0.8)["image_acc_at_threshold"] == 1.0
    assert image_curves([0, 0], [0.1, 0.7]) == {}
    assert image_summary([], [], [])["n_images"] == 0


def test_f1_max_threshold_is_a_score():
    f1, threshold = f1_max(np.array([0, 1, 1]), np.array([0.2, 0.4, 0.6]))
    assert (f1, threshold) == (1.0, 0.4)


def test_curves_end_in_the_corners():
    curves = image_curves([0, 1, 0, 1], [0.1, 0.4, 0.35, 0.8])
    assert curves["roc"][0] == [0, 0] and curves["roc"][-1] == [1, 1] and curves["pr"][-1][0] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The surface has a deep scratch near the edge.", "yes"),
        ("There are no defects. Everything looks normal.", "no"),
        ("I check whether there are any defects. The board is intact.", "no"),
        ("At first it looks clean, but there is a missing pad.", "yes"),
        ("A scratch-like line is visible. However, it is not a defect.", "no"),
        ("The cookie doesn't look damaged", "no"),
        ("The cookie isn’t cracked", "no"),
        ("Free of contamination.", "no"),
        ("The pattern is even and nothing stands out, so it looks normal.", "no"),
        ("The edge is not straight, and there is a crack in it.", "yes"),
        ("I see no marks, cracks or dents.", "no"),
        ("I find nothing abnormal and nothing is missing.", "no"),
        ("The texture is fine and uniform.", "no"),
        ("It does not appear normal.", "yes"),
        ("The image shows a cookie on a table.", None),
        ("", None),
        (None, None),
    ],
)
def test_stance(text, expected):
    assert stance(text) == expected


def test_stance_never_contradicts_captions_of_a_known_grammar():
    rng = np.random.default_rng(0)
    said = {0: [], 1: []}
    for _ in range(300):
        kind = SOURCE_DEFECTS[rng.integers(len(SOURCE_DEFECTS))]
        for label in (0, 1):
            facts = Facts("wood", kind if label else None, "dark", "small", "top left")
            said[label].append(stance(reasoning(facts, rng)))
    assert set(said[0]) == {"no"} and set(said[1]) == {"yes"}


def test_contradiction_needs_both_sides():
    assert contradicts("There is a crack.", "no") is True
    assert contradicts("There is a crack.", "yes") is False
    assert contradicts("A cookie.", "no") is None
    assert contradicts("There is a crack.", None) is None


def row(**fields):
    base = {"id": "a", "gt_label": 1, "well_formed": True, "fallback": False, "jaccard": 0.5, "map": "m.png"}
    return base | {"reasoning": "There is a crack.", "answer": "yes", "problem": None} | fields


def test_answer_summary_counts():
    rows = [
        row(),
        row(jaccard=None, answer="no", map=None, problem="too_few_tokens", fallback=True),
        row(gt_label=0, jaccard=0.1, answer=None, reasoning=None, well_formed=False),
    ]
    got = answer_summary(rows)
    assert got["well_formed"] == pytest.approx(2 / 3)
    assert (got["jaccard_anomalous"], got["n_jaccard_anomalous"], got["jaccard_normal"]) == (0.5, 1, 0.1)
    assert (got["contradictions"], got["n_contradictions"], got["n_with_stance"]) == (0.5, 1, 2)
    assert got["n_without_map"] == 1 and got["problems"] == {"too_few_tokens": 1}
    assert answer_summary([])["well_formed"] is None


def test_rouge_l_by_hand():
    # Longest common subsequence "a deep scratch" = 3 words; precision 3/5, recall 3/4.
    value = rouge_l(["there is a deep scratch"], ["a deep long scratch"])[0]
    assert value == pytest.approx(2 * 0.6 * 0.75 / 1.35)


def test_sbert_orders_meanings_and_texts_are_scored_once():
    same, near, far = sbert_similarity(
        ["a scratch on metal", "a scratch on metal", "a scratch on metal"],
        ["a scratch on metal", "the metal is scratched", "the cat sleeps in the sun"],
    )
    assert same == pytest.approx(1, abs=1e-5) and same > near > 0.6 > far
    rows = [row(), row(id="b", reasoning=None), row(id="c")]
    score_texts(rows, {"a": "There is a crack.", "b": "Something."})
    assert text_summary(rows, {"a": "", "b": ""}) == {
        "rouge_l": 0.5,
        "sbert": pytest.approx(0.5, abs=1e-5),
        "n_references": 2,
    }
    assert "sbert" not in rows[2]


def test_missing_sbert_model_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="sbert_model"):
        sbert_similarity(["a"], ["b"], model=str(tmp_path / "nothing"))
