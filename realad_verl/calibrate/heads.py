"""Which heads look at defects? Chosen by how well the contrast of their map tells the image labels apart.

A map of high contrast (max over mean) says "here"; a head that finds defects says so on anomalous images more than on
normal ones. No mask is needed to measure that. Letters: I images, H heads, P cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from realad_verl.method.baseline import divide_by_baseline, image_share
from realad_verl.method.scoring import contrast

FOLDS, REPEATS = 5, 4


@dataclass(frozen=True)
class Choice:
    """heads: indices of the chosen ones, best first. auroc_H: of every head, on all images.

    size_auroc: number of heads -> AUROC of their common map on held-out folds. half_overlap: share of the chosen heads
    that two disjoint halves of the images choose alike (Jaccard). half_rank: Spearman correlation of the halves' AUROC.
    """

    heads: list[int]
    auroc_H: np.ndarray
    size_auroc: dict[int, float]
    half_overlap: float
    half_rank: float


def choose_heads(maps_IHP: Tensor, label_I: np.ndarray, seed: int) -> Choice:
    """Rank the heads and choose how many by cross-validation; see the module's text."""
    random = np.random.default_rng(seed)
    H = maps_IHP.shape[1]
    sizes = sorted({size for k in range(12) for size in (2**k, 3 * 2**k) if size < H} | {H})
    held_out: dict[int, list[float]] = {size: [] for size in sizes}
    for fold_I in (fold for _ in range(REPEATS) for fold in _folds(label_I, FOLDS, random)):
        order = np.argsort(-head_aurocs(maps_IHP[~fold_I], label_I[~fold_I]), kind="stable")
        for size in sizes:
            value = _set_contrast(maps_IHP[:, order[:size]], label_I, ~fold_I)[fold_I]
            held_out[size].append(float(roc_auc_score(label_I[fold_I], value)))
    size_auroc = {size: float(np.mean(values)) for size, values in held_out.items()}
    best = max(sizes, key=lambda size: (round(size_auroc[size], 4), -size))
    auroc_H = head_aurocs(maps_IHP, label_I)
    overlap, rank = _stability(maps_IHP, label_I, best, random)
    chosen = np.argsort(-auroc_H, kind="stable")[:best]
    return Choice(chosen.tolist(), auroc_H, size_auroc, overlap, rank)


def head_aurocs(maps_IHP: Tensor, label_I: np.ndarray) -> np.ndarray:
    """[H]: AUROC for the label of each head's contrast, over the mean map of the normal images among these."""
    normal = torch.from_numpy(label_I == 0)
    values = [_relative_contrast(maps_IP, image_share(maps_IP[normal]).mean(0)) for maps_IP in maps_IHP.unbind(1)]
    return np.array([roc_auc_score(label_I, value) for value in values])


def _set_contrast(maps_IHP: Tensor, label_I: np.ndarray, known_I: np.ndarray) -> np.ndarray:
    """[I]: contrast of the mean map of some heads, over the normal images among those known."""
    maps_IP = maps_IHP.mean(1)
    normal = torch.from_numpy((label_I == 0) & known_I)
    return _relative_contrast(maps_IP, image_share(maps_IP[normal]).mean(0))


def _relative_contrast(maps_IP: Tensor, baseline_P: Tensor) -> np.ndarray:
    return contrast(divide_by_baseline(maps_IP, baseline_P)).numpy()


def _folds(label_I: np.ndarray, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """Masks [I] of ``count`` disjoint parts with the same share of each class."""
    part_I = np.empty(len(label_I), int)
    for label in (0, 1):
        where = random.permutation(np.flatnonzero(label_I == label))
        part_I[where] = np.arange(len(where)) % count
    return [part_I == part for part in range(count)]


def _stability(
    maps_IHP: Tensor,
    label_I: np.ndarray,
    size: int,
    random: np.random.Generator,
) -> tuple[float, float]:
    """(overlap, rank correlation) of two halves' choices, the mean of ``REPEATS`` divisions."""
    overlaps, ranks = [], []
    for _ in range(REPEATS):
        first, second = (head_aurocs(maps_IHP[half], label_I[half]) for half in _folds(label_I, 2, random))
        chosen: Sequence[set[int]] = [set(np.argsort(-auroc, kind="stable")[:size]) for auroc in (first, second)]
        overlaps.append(len(chosen[0] & chosen[1]) / len(chosen[0] | chosen[1]))
        ranks.append(_spearman(first, second))
    return float(np.mean(overlaps)), float(np.mean(ranks))


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    a, b = (np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (first, second))
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 else 1.0
