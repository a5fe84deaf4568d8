"""The trainer's half of the attention loss: one target an image from its group's maps, and what to watch of it.

Metrics, all of the attention loss's own maps M (baseline taken out) and under ``attention_loss/``:

| metric                     | what                                                                                  |
|----------------------------|---------------------------------------------------------------------------------------|
| value, anomalous, normal   | the loss, mean over reasoning tokens (from the update)                                |
| taught                     | share of images with a target                                                         |
| none_right                 | share of anomalous images none of whose responses is right: all of them count then    |
| peak                       | largest cell of an anomalous image's target, mean                                     |
| entropy                    | of an anomalous image's mean map, over ln P: 1 is flat                                |
| map_correlation            | mean pairwise correlation of the maps of different anomalous images                   |
| label_auroc                | how well the map's peak tells anomalous from normal images                            |
| alarm_collapse             | 1 where map_correlation > 0.9: every image gets the same map                          |
| alarm_flat                 | 1 where the peak, mean of five steps, has halved since the first five                 |
| alarm_self_confirmation    | 1 where the peak has doubled since the first steps and label_auroc has not risen      |

`reward/format/mean` is the share of well-formed answers: the loss costs some.
"""

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from realad_verl.method.attention_loss import consensus_target
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.attention.wire import (
    LOSS_KEY,
    MAP,
    TARGET,
    Target,
    make_loss_request,
    pack_target,
    unpack_map,
)
from realad_verl.verl_ext.train.metrics import ScoredSample

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

logger = logging.getLogger(__name__)

COLLAPSE = 0.9
FIRST_STEPS = 5
Grid = tuple[int, int]


@dataclass(frozen=True)
class MappedSample:
    """One response: its group, its map M (None: it has none), its label, whether it is right, its reasoning tokens."""

    group: str
    map_P: Tensor | None
    grid: Grid
    label: int | None
    right: bool
    tokens: int


@contextmanager
def asking_for_loss(batch: KVBatchMeta, metrics: dict[str, float], cfg: AttentionLossConfig, method: dict):
    """An update with the loss, where its weight is not 0; its metrics lose verl's prefix."""
    if not cfg.weight:
        yield
        return
    batch.extra_info[LOSS_KEY] = make_loss_request(cfg, method)
    try:
        yield
    finally:
        batch.extra_info.pop(LOSS_KEY, None)
    for key in [key for key in metrics if key.startswith("actor/attention_loss/")]:
        metrics[key.removeprefix("actor/")] = metrics.pop(key)


def write_targets(
    batch: KVBatchMeta,
    real: Sequence[bool],
    samples: Sequence[ScoredSample],
    right: Sequence[bool],
    cfg: AttentionLossConfig,
) -> dict[str, float]:
    """Every sample's target into the batch; returns the metrics. verl's copies (not ``real``) have no part in it."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[MAP])
    mapped = []
    for key, is_real, vector, sample, is_right in zip(
        batch.keys, real, data[MAP].unbind(), samples, right, strict=True
    ):
        map_P, grid = unpack_map(vector)
        if is_real:
            group, tokens = key.rsplit("_", 2)[0], sample.summary.n_reasoning
            mapped.append(MappedSample(group, map_P, grid, sample.label, is_right, tokens))
        else:
            mapped.append(MappedSample(key, None, grid, sample.label, False, 0))
    targets, metrics = group_targets(mapped, cfg)
    written = wire.jagged([pack_target(target) for target in targets])
    fields = TensorDict({TARGET: written}, batch_size=len(targets))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
    return metrics


def group_targets(
    samples: Sequence[MappedSample], cfg: AttentionLossConfig
) -> tuple[list[Target | None], dict[str, float]]:
    """A target for each sample, that of its group, and the step's metrics."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(i)
    targets: list[Target | None] = [None] * len(samples)
    images = []
    for members in groups.values():
        mapped = [samples[i] for i in members if samples[i].map_P is not None]
        if not mapped:
            continue
        maps_nP = torch.stack([sample.map_P for sample in mapped if sample.map_P is not None])
        label, grid = mapped[0].label, mapped[0].grid
        right = [sample.right for sample in mapped]
        target_P = consensus_target(maps_nP, right, label, cfg)
        images.append((label, grid, maps_nP.mean(0), target_P, any(right)))
        for i in members:
            if target_P is not None and label is not None and samples[i].tokens:
                targets[i] = Target(target_P, grid, samples[i].tokens, label)
    return targets, _metrics(images, len(groups))


def _metrics(images: list[tuple[int | None, Grid, Tensor, Tensor | None, bool]], groups: int) -> dict[str, float]:
    """Of (label, grid, mean map, target, any right) of each image that has a map."""
    anomalous = [image for image in images if image[0] == 1]
    metrics = {"taught": sum(image[3] is not None for image in images) / max(groups, 1)}
    if anomalous:
        maps = [map_P for _, _, map_P, _, _ in anomalous]
        metrics["none_right"] = sum(not any_right for *_, any_right in anomalous) / len(anomalous)
        metrics["peak"] = _mean([float(target.max()) for *_, target, _ in anomalous if target is not None])
        metrics["entropy"] = _mean([_entropy(map_P) for map_P in maps])
        correlation = _mean_correlation(maps)
        if correlation is not None:
            metrics["map_correlation"] = correlation
    auroc = _auroc([(label, float(map_P.max() * len(map_P))) for label, _, map_P, _, _ in images if label is not None])
    if auroc is not None:
        metrics["label_auroc"] = auroc
    return {f"attention_loss/{name}": value for name, value in metrics.items()}


class Alarms:
    """Warns where training on the model's own maps goes wrong; the run's first steps after a start are its measure."""

    def __init__(self) -> None:
        self._first: list[tuple[float, float]] = []
        self._peaks: deque[float] = deque(maxlen=FIRST_STEPS)
        self._warned: set[str] = set()

    def __call__(self, metrics: dict[str, float]) -> dict[str, float]:
        """The alarms of a step as metrics, 0 or 1."""
        peak, auroc = (metrics.get(f"attention_loss/{name}") for name in ("peak", "label_auroc"))
        collapse = metrics.get("attention_loss/map_correlation", 0.0) > COLLAPSE
        confirming = flat = False
        if peak is not None and auroc is not None:
            if len(self._first) < FIRST_STEPS:
                self._first.append((peak, auroc))
            first_peak, first_auroc = (_mean([pair[i] for pair in self._first]) for i in (0, 1))
            self._peaks.append(peak)
            confirming = peak > 2 * first_peak and auroc <= first_auroc
            flat = _mean(self._peaks) < first_peak / 2
        self._warn("collapse", collapse, "different images get nearly the same map")
        self._warn("self_confirmation", confirming, "targets sharpen, but tell the labels apart no better than before")
        self._warn("flat", flat, "targets have become flat, and so becomes the attention: the maps see nothing here")
        return {
            "attention_loss/alarm_flat": float(flat),
            "attention_loss/alarm_collapse": float(collapse),
            "attention_loss/alarm_self_confirmation": float(confirming),
        }

    def _warn(self, name: str, on: bool, what: str) -> None:
        if on and name not in self._warned:
            self._warned.add(name)
            logger.warning("attention loss: %s. Lower realad.attention_loss.weight or power, or stop here.", what)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _entropy(map_P: Tensor) -> float:
    """Over ln P."""
    return float(torch.special.entr(map_P).sum() / torch.log(torch.tensor(float(len(map_P)))))


def _mean_correlation(maps: Sequence[Tensor]) -> float | None:
    """Mean Pearson correlation of all pairs of maps of one size, of the commonest size; None for fewer than two."""
    sizes = [len(map_P) for map_P in maps]
    same = torch.stack([map_P for map_P in maps if len(map_P) == max(set(sizes), key=sizes.count)])
    if len(same) < 2:
        return None
    centred = torch.nn.functional.normalize(same - same.mean(1, keepdim=True), dim=1)
    pairs = centred @ centred.T
    return float((pairs.sum() - pairs.diagonal().sum()) / (len(same) * (len(same) - 1)))


def _auroc(scored: Sequence[tuple[int, float]]) -> float | None:
    """Chance that an anomalous image's score is above a normal one's, ties one half; None without both."""
    positive = torch.tensor([score for label, score in scored if label == 1])
    negative = torch.tensor([score for label, score in scored if label == 0])
    if not len(positive) or not len(negative):
        return None
    above = positive[:, None] - negative
    return float((above > 0).float().mean() + 0.5 * (above == 0).float().mean())
