"""CGRO on verl's v1 trainers: one mixin, three trainers. Nothing of verl's step loop is copied.

Between verl's old log-probs (whose forward carries the read-out) and its advantage, the mixin adds
``w_cons * R_cons`` to the ``rm_scores`` that the reward function wrote while sampling (format and accuracy).
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import logging
import shutil
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import ray
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

from realad_verl.verl_ext.names import CUT, ENGINE, REPLACED, TRAINERS
from realad_verl.verl_ext.plugin import note, require_active
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.run_folder.best import Best, keep_best, read_best
from realad_verl.verl_ext.run_folder.cause import in_one_line
from realad_verl.verl_ext.run_folder.checkpoints import mark_complete, unmark
from realad_verl.verl_ext.settings import RealadSettings
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.attention.targets import Alarms, asking_for_loss, write_targets
from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request
from realad_verl.verl_ext.train.metrics import ScoredSample, real, scored, step_metrics, validation_metrics
from realad_verl.verl_ext.train.samples import SampleLogger
from realad_verl.verl_ext.train.validation import Validation
from realad_verl.verl_ext.train.worker import ConsistencyRewardWorker, DetachedConsistencyRewardWorker

logger = logging.getLogger(__name__)

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

    def _validate(self, *args, **kwargs) -> dict:
        """verl's, with the evidence of the same responses; the best step so far is kept (``realad.val.best``)."""
        validation, sample = Validation(), self.replay_buffer.sample
        if self.realad.evidence and self.realad.val.evidence:
            self.replay_buffer.sample = validation.watch(sample, self)
        try:
            metrics = super()._validate(*args, **kwargs)
        finally:
            self.replay_buffer.sample = sample
        metrics |= validation_metrics(metrics) | validation.metrics()
        return metrics | self._keep_best(metrics)

    def _keep_best(self, metrics: dict) -> dict[str, float]:
        """Keep this step's checkpoint apart where its validation is the best so far; the best value as a metric."""
        name = self.realad.val.best
        if name is None or self.global_steps == 0:  # the model that the run began with is no checkpoint
            return {}
        value, best = metrics.get(f"val/{name}"), read_best(self.run_folder)
        if value is None:
            logger.warning("realad.val.best: this validation has no val/%s (both classes are needed)", name)
        elif best is None or best.metric != name or value > best.value:  # figures of two metrics cannot be compared
            if self._saved_step != self.global_steps:
                self._save_checkpoint()
            best = keep_best(self.run_folder, Best(self.global_steps, name, value))
        return {} if best is None else {"val/best": best.value, "val/best_step": float(best.step)}

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
        """Samples come in the order in which they finished; with ``realad.deterministic`` in that of their rows."""
        if self.realad.deterministic:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])
            rows = [int(wire.payload(row)) for row in data["index"]]
            places = [key.rsplit("_", 2)[1:] for key in batch.keys]
            batch.reorder(sorted(range(len(rows)), key=lambda i: (rows[i], *map(int, places[i]))))
        # verl fills the places of dropped samples with copies without weight.
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        self._counts["rollout/dropped"] += prompts * self.config.actor_rollout_ref.rollout.n - len(batch.keys)
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
        bypass = (self.config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False)
        if self.config.actor_rollout_ref.model.model_type != ENGINE or (bypass and not self.realad.evidence):
            return super()._compute_old_log_prob(batch, metrics)
        with self._reading(batch):
            if bypass:
                self._evidence_pass(batch)
            batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop(REQUEST_KEY, None)
        if self.realad.evidence:
            self._add_consistency(batch, metrics)
        else:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[wire.NOTES])
            self._count_lost(batch, wire.unpack_notes(data[wire.NOTES]))
        return batch

    @contextmanager
    def _reading(self, batch: KVBatchMeta):
        """Ask for evidence in this call only: the reference pass may go through the same worker method."""
        method = self.realad.method_dict() if self.realad.evidence else None
        detail, loss = self.sample_logger.due(self.global_steps), self.realad.attention_loss
        batch.extra_info[REQUEST_KEY] = make_request(method, detail, loss if loss.weight else None)
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
        """Add the weighted consistency reward to every sample's last token in ``rm_scores``, and log.

        The workers have judged the samples; per sample this is a few numbers, whatever its length.
        """
        started = time.perf_counter()
        fields = [wire.SUMMARY, wire.VERDICT, wire.NOTES, "rm_scores"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        samples, scores = scored(*(data[field] for field in fields), self.realad.w_cons, real(batch))
        if self.realad.w_cons:
            written = TensorDict({"rm_scores": scores}, batch_size=len(batch.keys))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)
        self._count_lost(batch, [sample.other for sample in samples])
        if self.realad.attention_loss.weight:
            metrics.update(self._write_targets(batch, samples))
        self._scored += [sample for sample, is_real in zip(samples, real(batch), strict=True) if is_real]
        self._counts["evidence/reward_seconds"] += time.perf_counter() - started
        self.sample_logger.log(self, batch, samples)

    def _write_targets(self, batch: KVBatchMeta, samples: list[ScoredSample]) -> dict[str, float]:
        """The attention loss's targets; returns its metrics."""
        right = [sample.right for sample in samples]
        metrics = write_targets(batch, real(batch), samples, right, self.realad.attention_loss)
        return metrics | self._attention_alarms(metrics)

    def _count_lost(self, batch: KVBatchMeta, notes: list[dict[str, float]]) -> None:
        """Responses that are not what was asked for; takes them out of ``notes``."""
        for name, key in (("rollout/cut", CUT), ("rollout/replaced", REPLACED)):
            found = [note.pop(key, 0.0) for note in notes]
            self._counts[name] += sum(value for value, is_real in zip(found, real(batch), strict=True) if is_real)

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        if "evidence/seconds" in metrics and timing_raw.get("step"):
            seconds = metrics["evidence/seconds"] / self._n_workers() + metrics["evidence/reward_seconds"]
            metrics["evidence/step_share"] = seconds / timing_raw["step"]

    def _n_workers(self) -> int:
        return self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes


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
