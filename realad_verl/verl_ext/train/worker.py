"""The reward worker: the actor's own Ray worker, which can also say where the actor looked.

The evidence is computed by the actor's current weights, sharded as they are, in a forward that verl runs anyway
(old log-probs), or by :meth:`ConsistencyRewardMixin.compute_evidence` where verl skips that forward.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false

import importlib

import torch
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from realad_verl.verl_ext.names import ENGINE
from realad_verl.verl_ext.plugin import registered, require_active
from realad_verl.verl_ext.repairs import position_ids
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.attention import wire as attention_wire


class ConsistencyRewardMixin:
    """What the reward worker adds to verl's actor worker."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        # verl imports its engines here for the first time in this process, which lets the plugin register its own.
        importlib.import_module("verl.workers.engine.fsdp.transformer_impl")
        require_active(f"engine {ENGINE}")
        super().init_model()
        if self.actor is not None and self.config.get("rollout") is not None:
            # "auto" names no precision of torch's: vLLM then rounds what it gets.
            self.actor.engine.rollout_dtype = getattr(torch, self.config.rollout.dtype, None)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def plugin_status(self) -> list[str]:
        """What the plugin has registered in this worker's process."""
        return registered()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        return super().compute_log_prob(position_ids.rebuild(data))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="ref"))
    def compute_ref_log_prob(self, data: TensorDict) -> TensorDict:
        return super().compute_ref_log_prob(position_ids.rebuild(data))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        return super().update_actor(position_ids.rebuild(data))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_evidence(self, data: TensorDict) -> TensorDict | None:
        """The evidence of a batch as a forward of its own: the same code as the fused one, log-probs discarded."""
        output = self.actor.infer_batch(position_ids.rebuild(data))
        if output is None:
            return None
        keys = set(output.keys())
        wanted = (wire.SUMMARY, wire.VERDICT, wire.NOTES, wire.ANSWER, *wire.DETAIL, attention_wire.MAP, "metrics")
        fields = [name for name in wanted if name in keys]
        return output.select(*fields).cpu()


class ConsistencyRewardWorker(ConsistencyRewardMixin, ActorRolloutRefWorker):
    """Actor, rollout and reference worker of the colocated trainers."""


class DetachedConsistencyRewardWorker(ConsistencyRewardMixin, DetachActorWorker):
    """The same for ``cgro_separate_async``, which saves and restores the actor between updates."""
