"""What a read-out's J is worth as a reward: does it tell the classes apart, and the right responses from the wrong?

Letters: I images, n responses an image. J [I, n] is NaN where a response has none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import rankdata

from realad_verl.method.config import ConsistencyConfig
from realad_verl.method.consistency import consistency_score

RESAMPLES = 2000


@dataclass(frozen=True)
class Scored:
    """The responses of every image under one read-out.

    jaccard_In: NaN for no J. right_In: the answer equals the label. formed_In: well formed. fallback_In: no token
    passed the thresholds of the selection.
    """

    label_I: np.ndarray
    jaccard_In: np.ndarray
    right_In: np.ndarray
    formed_In: np.ndarray
    fallback_In: np.ndarray


@dataclass(frozen=True)
class Figures:
    """Every figure of one read-out; shares are in [0, 1], intervals at 95 %, over images.

    auroc: of J for "anomalous", over all responses. within_r: mean over images of the correlation, within an image's
    responses, of J (1 - J on normal images) with a right answer, over ``within_groups`` images where both vary.
    divided_given, divided_best: share of images whose responses the hard reward divides at the given thresholds and at
    the best ones (delta_1 = delta_2 = ``threshold``). reward_*: mean consistency reward at the given thresholds.
    """

    jaccard_normal: float
    jaccard_anomalous: float
    auroc: float
    auroc_low: float
    auroc_high: float
    within_r: float
    within_error: float
    within_groups: int
    threshold: float
    divided_given: float
    divided_best: float
    reward_normal: float
    reward_anomalous: float
    fallback: float
    no_evidence: float

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON values; None for what does not exist."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def figures(scored: Scored, cfg: ConsistencyConfig, seed: int = 0) -> Figures:
    """All figures of one read-out at the thresholds of ``cfg``."""
    label_I, jaccard_In = scored.label_I, scored.jaccard_In
    label_In = np.broadcast_to(label_I[:, None], jaccard_In.shape)
    cut = best_threshold(jaccard_In, label_I)
    best = ConsistencyConfig(delta_1=cut, delta_2=cut, gate=cfg.gate)
    given, at_best = _rewards(scored, cfg), _rewards(scored, best)
    low, high = auroc_interval(jaccard_In, label_I, seed)
    within, error, groups = _within(np.where(label_In == 1, jaccard_In, 1 - jaccard_In), scored.right_In)
    return Figures(
        jaccard_normal=_mean(jaccard_In[label_I == 0]),
        jaccard_anomalous=_mean(jaccard_In[label_I == 1]),
        auroc=auroc(jaccard_In, label_I),
        auroc_low=low,
        auroc_high=high,
        within_r=within,
        within_error=error,
        within_groups=groups,
        threshold=cut,
        divided_given=_divided(given),
        divided_best=_divided(at_best),
        reward_normal=float(given[label_I == 0].mean()),
        reward_anomalous=float(given[label_I == 1].mean()),
        fallback=float(scored.fallback_In.mean()),
        no_evidence=float(np.isnan(jaccard_In).mean()),
    )


def auroc(jaccard_In: np.ndarray, label_I: np.ndarray) -> float:
    """P(J of an anomalous response > J of a normal one), ties half; NaN where a class has no J."""
    known = np.isfinite(jaccard_In)
    label_In = np.broadcast_to(label_I[:, None], jaccard_In.shape)[known]
    positive, negative = int((label_In == 1).sum()), int((label_In == 0).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(jaccard_In[known])
    return float((ranks[label_In == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def auroc_interval(jaccard_In: np.ndarray, label_I: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % by a bootstrap of images within each class, their responses drawn with them."""
    random = np.random.default_rng(seed)
    classes = [np.flatnonzero(label_I == label) for label in (0, 1)]
    values = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([random.choice(some, len(some)) for some in classes])
        values.append(auroc(jaccard_In[drawn], label_I[drawn]))
    known = _known(np.array(values))
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def best_threshold(jaccard_In: np.ndarray, label_I: np.ndarray) -> float:
    """The J that parts anomalous (above) from normal (at or below) best, by balanced accuracy.

    It lies midway between two values that occur, so that a J equal to one of them is on the right side of it.
    """
    values = np.unique(jaccard_In[np.isfinite(jaccard_In)])
    if len(values) < 2:
        return float(values[0]) if len(values) else 0.5
    cuts = (values[1:] + values[:-1]) / 2
    anomalous, normal = (np.sort(_known(jaccard_In[label_I == label])) for label in (1, 0))
    above = 1 - np.searchsorted(anomalous, cuts, side="right") / max(1, len(anomalous))
    below = np.searchsorted(normal, cuts, side="right") / max(1, len(normal))
    return float(cuts[int(np.argmax(above + below))])


def _rewards(scored: Scored, cfg: ConsistencyConfig) -> np.ndarray:
    """[I, n], by the trainer's own function."""
    rows = zip(scored.label_I, scored.jaccard_In, scored.formed_In, scored.right_In, strict=True)
    return np.array([[_reward(int(y), *one, cfg) for one in zip(j, f, r, strict=True)] for y, j, f, r in rows])


def _reward(label: int, jaccard: float, formed: bool, right: bool, cfg: ConsistencyConfig) -> float:
    found = float(jaccard) if np.isfinite(jaccard) else None
    return consistency_score(found, label, bool(formed), cfg, accurate=bool(right))


def _divided(reward_In: np.ndarray) -> float:
    return float((reward_In.max(1) > reward_In.min(1)).mean())


def _within(reward_In: np.ndarray, right_In: np.ndarray) -> tuple[float, float, int]:
    """(mean, its standard error, groups) of the correlation within an image's responses, where both vary."""
    found = []
    for reward, right in zip(reward_In, right_In.astype(float), strict=True):
        known = np.isfinite(reward)
        if known.sum() > 2 and np.ptp(reward[known]) > 0 and np.ptp(right[known]) > 0:
            found.append(np.corrcoef(reward[known], right[known])[0, 1])
    if len(found) < 3:
        return float("nan"), float("nan"), len(found)
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found))), len(found)


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = _known(np.asarray(values, float))
    return float(known.mean()) if len(known) else float("nan")
