"""CGRO on verl's v1 trainers: one mixin, three trainers. Nothing of verl's step loop is copied.

Between verl's old log-probs (whose forward carries the read-out) and its advantage, the mixin adds
``w_cons * R_cons`` to the ``rm_scores`` that the reward function wrote while sampling (format and accuracy).
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import shutil
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)

from realad_verl.method.consistency import consistency_score
from realad_verl.method.labels import read_label
from realad_verl.method.spans import parse_response
from realad_verl.verl_ext.names import TRAINERS
from realad_verl.verl_ext.plugin import note, require_active
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.run_folder.cause import in_one_line
from realad_verl.verl_ext.run_folder.checkpoints import mark_complete, unmark
from realad_verl.verl_ext.settings import RealadSettings
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.agent_loop import CUT
from realad_verl.verl_ext.train.attention_targets import Alarms, asking_for_loss, write_targets
from realad_verl.verl_ext.train.dataset import REPLACED
from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request
from realad_verl.verl_ext.train.metrics import ScoredSample, step_metrics
from realad_verl.verl_ext.train.samples import SampleLogger
from realad_verl.verl_ext.train.worker import ConsistencyRewardWorker, DetachedConsistencyRewardWorker

ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class StopRequested(Exception):
    """Not a failure: the run was asked to stop, saved, and can be resumed."""


class SaveFailed(Exception):
    """A checkpoint could not be written; the one before it is untouched."""


class CGROMixin:
    """Consistency reward for a verl v1 trainer.

    ``verl_mode`` is the name of the trainer underneath. verl's base class compares the mode to "sync" in several
    places (replay buffer, exact refill, checkpoints of the queue); any other name silently gets the asynchronous
    branch. So the configuration carries verl's own name from here on.
    """

    verl_mode: str
    worker_cls: type = ConsistencyRewardWorker

    def __init__(self, config: DictConfig):
        require_active(f"trainer {config.trainer.v1.trainer_mode}")
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.verl_mode
        self.realad = RealadSettings.from_config(config)
        self.run_folder = Path(config.trainer.default_local_dir)
        self.sample_logger = SampleLogger(config, self.realad)
        self._scored: list[ScoredSample] = []
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._saved_step = -1
        self._attention_alarms = Alarms()
        self._beat("starting workers")
        super().__init__(config)
        # verl polls its replay buffer every 2 s and has no setting for it: most of a step that takes a few seconds.
        assert hasattr(self.replay_buffer, "poll_interval"), "verl's replay buffer no longer polls"
        self.replay_buffer.poll_interval = self.realad.poll_interval

    def _beat(self, phase: str) -> None:
        step, total = getattr(self, "global_steps", 0), getattr(self, "total_training_steps", 0)
        heartbeat.write(self.run_folder, phase, step, total)

    def on_step_begin(self):
        """End here if a stop was requested (pre-emption): the step before is saved, and verl has logged it."""
        if self._saved_step == self.global_steps - 1 and heartbeat.stop_requested(self.run_folder):
            raise StopRequested(self._saved_step)
        self._beat("sampling responses")
        super().on_step_begin()

    def on_validate_begin(self):
        self._beat("validating")
        super().on_validate_begin()

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """verl's step; ``reward/``, ``evidence/`` and ``rollout/`` are over all its samples.

        verl combines the metrics of a step's mini-batches by their names ("total" is summed, "min" anywhere in a name
        is the least, a count is averaged), so ours are made once, from the samples.
        """
        self._scored, self._counts = [], defaultdict(float)
        batch = super().step(metrics, timing_raw)
        if self.realad.evidence:
            metrics.update(step_metrics(self._scored))
        # An asynchronous buffer throws the whole group of a failed response away and asks for another.
        groups = metrics.get("training/rollout_failure/evicted_samples", 0)
        self._counts["rollout/dropped"] += groups * self.config.actor_rollout_ref.rollout.n
        metrics.update({name: float(count) for name, count in self._counts.items()})
        return batch

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args, **kwargs) -> KVBatchMeta:
        """Samples come in the order in which they finished; with ``realad.deterministic`` in that of their rows.

        ``extra_fields`` holds the prompt's image too, so it is read here once a step and what is wanted of it kept.
        """
        fields = ["extra_info", "extra_fields", *(["index"] if self.realad.deterministic else [])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        extra = [each or {} for each in _by_sample(data["extra_fields"])]
        self._reward_parts = {key: _reward_parts(each) for key, each in zip(batch.keys, extra, strict=True)}
        # What is not as asked for. verl fills the places of dropped samples with copies without weight.
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        self._counts["rollout/dropped"] += prompts * self.config.actor_rollout_ref.rollout.n - len(batch.keys)
        self._counts["rollout/cut"] += sum(bool(each.get(CUT)) for each in extra)
        self._counts["rollout/replaced"] += sum(REPLACED in (i or {}) for i in _by_sample(data["extra_info"]))
        if self.realad.deterministic:
            rows = [int(row) for row in _by_sample(data["index"])]
            places = [key.rsplit("_", 2)[1:] for key in batch.keys]
            batch.reorder(sorted(range(len(rows)), key=lambda i: (rows[i], *map(int, places[i]))))
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._beat("updating the actor")
        with asking_for_loss(batch, metrics, self.realad.attention_loss, self.realad.method_dict()):
            return super()._update_actor(batch, metrics)

    def _save_checkpoint(self):
        self._beat("saving a checkpoint")
        try:
            unmark(self.run_folder, self.global_steps)
            super()._save_checkpoint()
            mark_complete(self.run_folder, self.global_steps)
        except Exception as error:
            free = shutil.disk_usage(self.run_folder).free / 2**20
            raise SaveFailed(
                f"step {self.global_steps} could not be saved in {self.run_folder} ({free:.0f} MiB free on that disk): "
                f"{in_one_line(error)}"
            ) from error
        self._saved_step = self.global_steps

    def on_step_end(self):
        if heartbeat.stop_requested(self.run_folder) and self._saved_step != self.global_steps:
            self._save_checkpoint()
        self._beat("updating the rollout's weights")
        super().on_step_end()

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            if role in ACTOR_ROLES or role == Role.RefPolicy:
                self.role_worker_mapping[role] = ray.remote(self.worker_cls)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's old log-probs with the read-out on, then the consistency part of the reward."""
        self._beat("log-probs and evidence")
        if not self.realad.evidence:
            return super()._compute_old_log_prob(batch, metrics)
        bypass = (self.config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False)
        with self._reading(batch):
            if bypass:
                self._evidence_pass(batch)
            batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop(REQUEST_KEY, None)
        self._add_consistency(batch, metrics)
        return batch

    @contextmanager
    def _reading(self, batch: KVBatchMeta):
        """Ask for evidence in this call only: the reference pass may go through the same worker method."""
        detail = self.sample_logger.due(self.global_steps)
        loss = self.realad.attention_loss
        batch.extra_info[REQUEST_KEY] = make_request(self.realad.method_dict(), detail, loss if loss.weight else None)
        try:
            yield
        finally:
            batch.extra_info.pop(REQUEST_KEY, None)

    def _evidence_pass(self, batch: KVBatchMeta) -> None:
        """Where verl skips the log-prob forward (bypass mode), run it for the evidence alone."""
        rollout = self.config.actor_rollout_ref.rollout
        batch.extra_info.update(calculate_entropy=False, compute_loss=False, temperature=rollout.temperature)
        self.actor_rollout_wg.compute_evidence(batch)

    def _add_consistency(self, batch: KVBatchMeta, metrics: dict) -> None:
        """Score every sample, add the weighted consistency reward to its last token's ``rm_scores``, log."""
        started = time.perf_counter()
        fields = [wire.SUMMARY, "rm_scores", "responses", "reward_model"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        real = [not tag.get("is_padding", False) for tag in batch.tags]
        responses = self._texts(data["responses"])
        samples, scores = [], []
        columns = (_by_sample(data[field]) for field in (wire.SUMMARY, "rm_scores", "reward_model"))
        for key, is_real, text, vector, old, truth in zip(batch.keys, real, responses, *columns, strict=True):
            summary, label = wire.unpack_summary(vector), _label(truth)
            consistency = self._consistency(summary, label, text)
            score = old.clone()
            if is_real:
                score[-1] += self.realad.w_cons * consistency
            scores.append(score)
            other = self._reward_parts.get(key, {})  # verl's copies have none
            samples.append(ScoredSample(label, summary, consistency, float(score.sum()), other))
        if self.realad.w_cons:
            written = TensorDict({"rm_scores": wire.jagged(scores)}, batch_size=len(scores))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)
        if self.realad.attention_loss.weight:
            metrics.update(self._write_targets(batch, real, samples, responses))
        self._scored += [sample for sample, is_real in zip(samples, real, strict=True) if is_real]
        self._counts["evidence/reward_seconds"] += time.perf_counter() - started
        self.sample_logger.log(self, batch, samples, responses)

    def _write_targets(self, batch: KVBatchMeta, real: list[bool], samples: list[ScoredSample], texts: list[str]):
        """The attention loss's targets; returns its metrics."""
        answers = [read_label(parse_response(text, self.realad.method.spans).answer) for text in texts]
        right = [answer == sample.label for answer, sample in zip(answers, samples, strict=True)]
        metrics = write_targets(batch, real, samples, right, self.realad.attention_loss)
        return metrics | self._attention_alarms(metrics)

    def _consistency(self, summary: wire.Summary, label: int | None, text: str) -> float:
        if label is None:
            return 0.0
        method = self.realad.method
        parsed = parse_response(text, method.spans)
        return consistency_score(
            summary.jaccard,
            label,
            well_formed=parsed.well_formed,
            accurate=read_label(parsed.answer) == label,
            cfg=method.consistency,
        )

    def _texts(self, responses: torch.Tensor) -> list[str]:
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in responses.unbind()]

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        if "evidence/seconds" in metrics and timing_raw.get("step"):
            seconds = metrics["evidence/seconds"] / self._n_workers() + metrics["evidence/reward_seconds"]
            metrics["evidence/step_share"] = seconds / timing_raw["step"]

    def _n_workers(self) -> int:
        return self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes


def _by_sample(field) -> list:
    """A batch's field as one item a sample. Split once: indexing a jagged tensor walks the whole batch every time."""
    return list(field.unbind()) if isinstance(field, torch.Tensor) else [wire.payload(item) for item in field]


def _reward_parts(extra_fields: dict) -> dict[str, float]:
    """What the reward function returned beside the score."""
    parts = extra_fields.get("reward_extra_info") or {}
    return {name: float(v) for name, v in parts.items() if isinstance(v, int | float) and name != "score"}


def _label(reward_model) -> int | None:
    """0, 1, or None where the row has no ground truth that is a label."""
    return read_label(reward_model.get("ground_truth")) if isinstance(reward_model, dict) else None


@register_trainer("cgro_sync")
class CGROTrainerSync(CGROMixin, PPOTrainerSync):
    """CGRO, trainer and rollout in turn on the same devices."""

    verl_mode = "sync"


@register_trainer("cgro_colocate_async")
class CGROTrainerColocateAsync(CGROMixin, PPOTrainerColocateAsync):
    """CGRO, trainer and rollout on the same devices, rollouts one batch ahead."""

    verl_mode = "colocate_async"


@register_trainer("cgro_separate_async")
class CGROTrainerSeparateAsync(CGROMixin, PPOTrainerSeparateAsync):
    """CGRO, rollouts on devices of their own."""

    verl_mode = "separate_async"
    worker_cls = DetachedConsistencyRewardWorker


for _name in TRAINERS:
    note(f"trainer {_name}")
