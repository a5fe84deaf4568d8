"""Validation responses through the evidence pass: how well the model ranks images, answers, and looks, by class.

verl samples the responses, scores them and throws them away. In between, the actor's workers run the forward that
training reads evidence from, over these responses.
"""

# verl's classes and TensorDict fields are untyped for pyright; the tests run them for real.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

from realad_verl.evaluate import ranking
from realad_verl.evaluate.metrics import UNDECIDED
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request
from realad_verl.verl_ext.train.metrics import CLASSES, ScoredSample, real, scored

PARTITION = "val"  # verl's name for where validation's responses lie


@dataclass
class Validation:
    """What one validation has found, part by part."""

    samples: list[ScoredSample] = field(default_factory=list)
    answers: list[wire.Answer] = field(default_factory=list)
    seconds: float = 0.0

    def watch(self, sample: Callable, trainer: Any) -> Callable:
        """verl's ``ReplayBuffer.sample``, whose validation batches are looked at on their way.

        verl has no hook between a validation's responses and their removal.
        """

        def watched(*args: Any, **kwargs: Any) -> tuple[KVBatchMeta, dict]:
            batch, metrics = sample(*args, **kwargs)
            if kwargs.get("partition_id") == PARTITION and len(batch):
                self._look(trainer, batch)
            return batch, metrics

        return watched

    def _look(self, trainer: Any, batch: KVBatchMeta) -> None:
        started = time.perf_counter()
        batch = _in_order(batch)
        rollout = trainer.config.actor_rollout_ref.rollout
        # Whole micro-batches on every rank.
        each = 1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu
        filled = upsample_batch_to_divisible_size(batch, trainer._n_workers() * each, trainer.tokenizer.eos_token_id)
        detail = trainer.sample_logger.of_validation
        request = make_request(trainer.realad.method_dict(), detail, answer=True)
        filled.extra_info[REQUEST_KEY] = request
        filled.extra_info.update(calculate_entropy=False, compute_loss=False, temperature=rollout.temperature)
        with devices_for_training(trainer):
            trainer.actor_rollout_wg.compute_evidence(filled)
        fields = [wire.SUMMARY, wire.VERDICT, wire.NOTES, "rm_scores", wire.ANSWER]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        samples, _ = scored(*(data[name] for name in fields[:4]), trainer.realad.w_cons, real(batch))
        self.samples += samples
        self.answers += wire.unpack_answers(data[wire.ANSWER])
        if detail:
            trainer.sample_logger.log_validation(trainer, batch, samples)
        if added := [key for key in filled.keys if key not in set(batch.keys)]:
            tq.kv_clear(keys=added, partition_id=batch.partition_id)
        self.seconds += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Every ``val/`` metric of what was seen, over responses; what a missing class leaves undefined is left out.

        A response without an answer counts as 0.5 in the ranking, as in `realad evaluate` an image without a score.
        """
        if not self.samples:
            return {}
        metrics = {
            "val/well_formed": fmean(answer.well_formed for answer in self.answers),
            "val/without_answer": fmean(answer.share is None for answer in self.answers),
            "val/responses": float(len(self.samples)),
            "val/seconds": self.seconds,
        }
        for label, name in CLASSES.items():
            group = [s for s in self.samples if s.label == label]
            metrics |= _mean(f"val/accuracy/{name}", [float(s.right) for s in group])
            metrics |= _mean(f"val/jaccard/{name}", [s.summary.jaccard for s in group if s.summary.jaccard is not None])
        pairs = zip(self.samples, self.answers, strict=True)
        ranked = [(s.label, UNDECIDED if a.share is None else a.share) for s, a in pairs if s.label is not None]
        regions = [(s.label, s.summary.jaccard) for s in self.samples if None not in (s.label, s.summary.jaccard)]
        metrics |= _ranking(ranked, auroc="val/image_auroc", ap="val/image_ap")
        return metrics | _ranking(regions, auroc="val/jaccard_auroc")


@contextmanager
def devices_for_training(trainer: Any) -> Iterator[None]:
    """Inside, the rollout has given back the devices that it shares with the actor, as in a step of training."""
    if hasattr(trainer, "switch_to_trainer"):  # rollouts of their own, and perhaps some on the trainer's devices
        shared = trainer.current_mode.name == "ROLLOUT"
        if shared:
            trainer.switch_to_trainer()
        yield
        if shared:
            trainer.switch_to_rollout()
        return
    manager = trainer.checkpoint_manager
    manager.abort_replicas()  # what is on its way for a later step goes on afterwards
    manager.sleep_replicas()
    yield
    manager.update_weights(trainer.global_steps)
    manager.resume_generation_replicas()


def _in_order(batch: KVBatchMeta) -> KVBatchMeta:
    """The batch in the order of the data's rows: responses come in as they are done."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])
    rows = [int(wire.payload(row)) for row in data["index"]]
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    return KVBatchMeta(
        keys=[batch.keys[i] for i in order],
        tags=[batch.tags[i] for i in order],
        partition_id=batch.partition_id,
        fields=batch.fields,
        extra_info=dict(batch.extra_info or {}),
    )


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: fmean(values)} if values else {}


def _ranking(pairs: Sequence[tuple[Any, Any]], **names: str) -> dict[str, float]:
    """AUROC (and average precision) of (label, score) pairs, under the given names; {} where a class is missing."""
    label, score = np.array(pairs, float).reshape(-1, 2).T
    if not 0 < label.sum() < len(label):
        return {}
    bins, place = np.unique(-score, return_inverse=True)
    tp, fp = (np.cumsum(np.bincount(place, weights, len(bins))) for weights in (label, 1 - label))
    figures = {"auroc": ranking.auroc, "ap": ranking.average_precision}
    return {name: float(figures[figure](tp, fp)) for figure, name in names.items()}
