"""Image-level metrics of a list of images (scikit-learn does the counting), and how well answers kept their form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

UNDECIDED = 0.5  # the pred_score of an image without an answer [ours]


def image_summary(
    gt_label: Sequence[int],
    pred_score: Sequence[float | None],
    pred_label: Sequence[int | None],
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Image figures. ``gt_label`` 0 | 1; ``pred_score`` in [0, 1], None counts as 0.5; ``pred_label`` the answer.

    ``image_acc`` is the accuracy of the model's own answers (no answer is wrong), which needs no threshold;
    ``image_acc_at_threshold`` that of ``pred_score >= threshold``, where None takes the oracle's F1-max threshold.
    A figure is None where it does not exist (only one class in the set, or no image).
    """
    y = np.asarray(gt_label, int)
    scores = np.array([UNDECIDED if s is None else s for s in pred_score], float)
    answers = np.array([-1 if p is None else p for p in pred_label], int)
    names = ("image_auroc", "image_ap", "image_f1_max", "image_f1_max_threshold", "image_acc", "image_acc_at_threshold")
    summary: dict[str, Any] = dict.fromkeys(names)
    summary |= {"image_acc_threshold": threshold, "n_images": len(y), "n_anomalous_images": int(y.sum())}
    summary["n_without_answer"] = int((answers < 0).sum())
    summary["n_without_score"] = sum(s is None for s in pred_score)
    if not len(y):
        return summary
    summary["image_acc"] = float((answers == y).mean())
    if 0 < y.sum() < len(y):
        from sklearn.metrics import average_precision_score, roc_auc_score

        f1, best = f1_max(y, scores)
        threshold = best if threshold is None else threshold
        summary |= {"image_auroc": float(roc_auc_score(y, scores)), "image_acc_threshold": threshold}
        summary |= {"image_ap": float(average_precision_score(y, scores))}
        summary |= {"image_f1_max": f1, "image_f1_max_threshold": best}
    if threshold is not None:
        summary["image_acc_at_threshold"] = float(((scores >= threshold) == y).mean())
    return summary


CHANCE = ("image_auroc", "image_ap", "image_f1_max", "image_acc", "pixel_auroc", "pixel_aupr", "pixel_aupro")
CHANCE += ("pixel_f1_max", "pixel_acc")


def chance_levels(image: dict[str, Any], pixel: dict[str, Any], fpr_limit: float) -> dict[str, float | None]:
    """What each figure is without looking: of a ranking at random, and of the better constant answer.

    ``image`` and ``pixel`` are summaries that give the counts. F1-max is that of calling everything anomalous ("all
    yes"), accuracy that of the more frequent class; AUPRO that of a map at random, half the limit.
    """
    levels: dict[str, float | None] = dict.fromkeys(CHANCE)
    pixels = pixel["n_normal_pixels"] + pixel["n_anomalous_pixels"]
    sets = (("image", "ap", image["n_images"], image["n_anomalous_images"]),)
    for level, ap, total, anomalous in (*sets, ("pixel", "aupr", pixels, pixel["n_anomalous_pixels"])):
        if 0 < anomalous < total:
            share = anomalous / total
            levels |= {f"{level}_auroc": 0.5, f"{level}_{ap}": share, f"{level}_f1_max": 2 * share / (1 + share)}
            levels[f"{level}_acc"] = max(share, 1 - share)
    levels["pixel_aupro"] = None if levels["pixel_auroc"] is None else fpr_limit / 2
    return levels


def f1_max(y: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Largest F1 over all thresholds (predicted anomalous = score >= threshold) and the threshold that gives it."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(y, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


def image_curves(gt_label: Sequence[int], pred_score: Sequence[float | None], n: int = 200) -> dict[str, list]:
    """ROC and PR curve as lists of [x, y] of at most about ``n`` points; empty where only one class is there."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    from realad_verl.evaluate.pixel_metrics import thin

    y = np.asarray(gt_label, int)
    scores = np.array([UNDECIDED if s is None else s for s in pred_score], float)
    if not 0 < y.sum() < len(y):
        return {}
    fpr, tpr, _ = roc_curve(y, scores)
    precision, recall, _ = precision_recall_curve(y, scores)
    return {"roc": thin(fpr, tpr, n), "pr": thin(recall[::-1], precision[::-1], n)}


def answer_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Form and evidence of the responses in ``rows`` (rows of results.jsonl without an ``error``).

    ``well_formed`` and ``fallback`` are shares of the images, ``jaccard_*`` the mean J by true class over the responses
    that have one (with how many), ``contradictions`` the share of the responses with both a stance in the reasoning and
    an answer where the two disagree (``text_metrics.contradicts``), ``sampled_acc`` the mean of `sampled_accuracy`.
    """
    from realad_verl.evaluate.text_metrics import contradicts

    summary: dict[str, Any] = {"well_formed": mean([bool(r["well_formed"]) for r in rows])}
    summary["fallback"] = mean([bool(r["fallback"]) for r in rows])
    for label, name in ((0, "normal"), (1, "anomalous")):
        values = [r["jaccard"] for r in rows if r["gt_label"] == label and r["jaccard"] is not None]
        summary[f"jaccard_{name}"] = mean(values)
        summary[f"n_jaccard_{name}"] = len(values)
    verdicts = [contradicts(r["reasoning"], r["answer"]) for r in rows]
    judged = [v for v in verdicts if v is not None]
    summary |= {"contradictions": mean(judged), "n_contradictions": sum(judged), "n_with_stance": len(judged)}
    summary["sampled_acc"] = mean([sampled_accuracy(r) for r in rows if r.get("sampled") is not None])
    summary["n_without_map"] = sum(r["map"] is None for r in rows)
    problems = [r["problem"] for r in rows if r["problem"]]
    summary["problems"] = {name: problems.count(name) for name in sorted(set(problems))}
    return summary


def sampled_accuracy(row: Mapping[str, Any]) -> float:
    """The share of a row's sampled answers that are right; no answer counts as wrong."""
    return float(np.mean([label == row["gt_label"] for label in row["sampled"]]))


def mean(values: Sequence[float]) -> float | None:
    """The mean as a plain float, None of nothing."""
    return float(np.mean(values)) if len(values) else None
