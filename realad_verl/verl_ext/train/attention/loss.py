"""The worker's half of the attention loss: maps out of the log-prob forward, the loss in the update.

Maps ride on the evidence that is read anyway; what they are divided by, the running baseline, lives here, is the same
on every rank, and goes into the checkpoint. In the update the loss is added inside verl's own loss function, scaled as
verl scales its own: the sum over the mini-batch's tokens on all ranks and micro-batches, divided once.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.utils.metric import AggregationType, Metric

from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.attention.readout import AttentionReadout
from realad_verl.evidence import EvidencePlan
from realad_verl.method.attention_loss import RunningBaseline, response_map, token_losses
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.labels import read_label
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.attention.wire import LOSS_KEY, MAP, TARGET, Target, pack_map, unpack_target

logger = logging.getLogger(__name__)

BASELINE_FILE = "attention_baseline.pt"
TOKENS_KEY = "realad_attention_tokens"  # in a mini-batch: its taught tokens on all ranks, normal and anomalous
Grid = tuple[int, int]


class AttentionTeacher:
    """The running baselines of one engine, by grid, and the maps made with them."""

    def __init__(self) -> None:
        self.baselines: dict[Grid, RunningBaseline] = {}

    def maps(
        self, micro_batch: TensorDict, plans: Sequence[EvidencePlan], rows: Sequence[Tensor], cfg: AttentionLossConfig
    ) -> dict[str, Tensor]:
        """The field ``MAP`` of a micro-batch from the rows of the plans that have a request.

        The rows of normal images also go into the step's part of the baseline; `commit` ends the step.
        """
        labels, given, vectors = _labels(micro_batch), iter(rows), []
        for plan, label, ids in zip(plans, labels, micro_batch["responses"].unbind(), strict=True):
            map_P, grid = None, (0, 0)
            if plan.request is not None and plan.layout is not None:
                grid = plan.layout.grid
                rows_RP = plan.layout.project(next(given)[:, : len(plan.layout.columns)])
                ids_R = ids[torch.tensor(plan.reasoning, device=ids.device)]
                map_P = self._map(rows_RP, ids_R, grid, label, cfg)
            vectors.append(pack_map(map_P, grid))
        return {MAP: wire.jagged(vectors)}

    def _map(self, rows_RP: Tensor, ids_R: Tensor, grid: Grid, label: int | None, cfg: AttentionLossConfig):
        running = self.baselines.setdefault(grid, RunningBaseline(grid))
        baseline = running.baseline(cfg.min_count)
        if label == 0 or (label is not None and cfg.baseline_images == "all"):
            running.add(ids_R, rows_RP)
        if baseline is None and cfg.baseline != "none":
            return None  # the first step only fills the baseline
        map_P = response_map(rows_RP, ids_R.cpu(), baseline, grid, cfg)
        return map_P if bool(map_P.isfinite().all()) else None

    def commit(self, cfg: AttentionLossConfig, group: dist.ProcessGroup | None) -> None:
        """Ends a step: the rows that all ranks of ``group`` have seen become part of everyone's baselines."""
        pending = {grid: running.take_pending() for grid, running in self.baselines.items()}
        seen: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(seen, {grid: ids for grid, (ids, _, _) in pending.items()}, group=group)
        for grid in sorted({grid for each in seen for grid in each}):
            running = self.baselines.setdefault(grid, RunningBaseline(grid))
            ids_W = torch.cat([each[grid] for each in seen if grid in each]).unique()
            table = torch.zeros(len(ids_W), grid[0] * grid[1] + 1)
            if grid in pending:
                ids, sums, counts = pending[grid]
                table[torch.searchsorted(ids_W, ids)] = torch.cat([sums, counts[:, None]], 1)
            table = table.to(get_device_id())
            dist.all_reduce(table, group=group)
            running.commit(cfg.decay, (ids_W, table[:, :-1].cpu(), table[:, -1].cpu()))

    def save(self, folder: str) -> None:
        """Rank 0 writes the baselines beside the model's checkpoint; nothing where there are none."""
        if self.baselines and dist.get_rank() == 0:
            states = [running.state_dict() for running in self.baselines.values()]
            torch.save(states, Path(folder) / BASELINE_FILE)

    def load(self, folder: str) -> None:
        """Reads what `save` wrote, on rank 0, for all ranks; leaves everything empty where it wrote nothing."""
        states: list[Any] = [None]
        path = Path(folder) / BASELINE_FILE
        if dist.get_rank() == 0 and path.exists():
            states = [torch.load(path, weights_only=True)]
        dist.broadcast_object_list(states, src=0)
        restored = [RunningBaseline.from_state(state) for state in states[0] or []]
        self.baselines = {running.grid: running for running in restored}


def count_tokens(data: TensorDict, group: dist.ProcessGroup | None) -> None:
    """Notes in a mini-batch how many tokens it teaches on all ranks, of normal and of anomalous images."""
    targets = [target for target in map(unpack_target, data[TARGET].unbind()) if target is not None]
    counts = [float(sum(target.tokens for target in targets if target.label == label)) for label in (0, 1)]
    tokens = torch.tensor(counts, device=get_device_id())
    dist.all_reduce(tokens, group=group)
    tu.assign_non_tensor(data, **{TOKENS_KEY: json.dumps(tokens.tolist())})  # a list would be split by sample


def taught_step(
    micro_batch: TensorDict,
    plans: Sequence[EvidencePlan],
    readout: AttentionReadout,
    head_group: dist.ProcessGroup | None,
    forward_step: Callable[..., Any],
    loss_function: Callable[..., Any],
) -> Any:
    """verl's training ``forward_step`` of a micro-batch with the attention loss added to its loss function."""
    request = json.loads(tu.get_non_tensor_data(micro_batch, LOSS_KEY, default=None))
    cfg = AttentionLossConfig(**request["attention_loss"])
    tokens = json.loads(tu.get_non_tensor_data(micro_batch, TOKENS_KEY, default=None))
    pairs = zip(plans, map(unpack_target, micro_batch[TARGET].unbind()), strict=True)
    taught = [(plan, target) for plan, target in pairs if plan.request is not None and target is not None]
    requests = [
        replace(plan.request, columns=plan.layout.columns)  # the image alone
        for plan, _ in taught
    ]
    with gradient_reading(readout, requests, head_group) as reading:

        def with_attention(model_output, data, dp_group=None):
            loss, metrics = loss_function(model_output=model_output, data=data, dp_group=dp_group)
            by_label = _sums(taught, reading.log_rows())
            # no taught token in the whole mini-batch: nothing to divide
            value = sum(by_label.values()) / max(sum(tokens), 1.0) * data["dp_size"]
            named = {"value": value}
            named |= {
                name: by_label[label] / max(tokens[label], 1.0) * data["dp_size"]
                for label, name in ((0, "normal"), (1, "anomalous"))
            }
            for name, each in named.items():
                if name == "value" or tokens[{"normal": 0, "anomalous": 1}[name]]:
                    metrics[f"attention_loss/{name}"] = Metric(value=float(each), aggregation=AggregationType.SUM)
            return loss + cfg.weight * value, metrics

        return forward_step(micro_batch, with_attention, False)


def _sums(taught: Sequence[tuple[EvidencePlan, Target]], log_rows: Sequence[Tensor]) -> dict[int, Tensor | float]:
    """Sum of the token losses by label."""
    sums: dict[int, Tensor | float] = {0: 0.0, 1: 0.0}
    for (plan, target), log_RN in zip(taught, log_rows, strict=True):
        with torch.autocast(log_RN.device.type, enabled=False):
            log_RP = log_cells(plan, log_RN)
            losses_R = token_losses(target.values_P.to(log_RP.device)[None], log_RP)
            sums[target.label] = sums[target.label] + losses_R.sum()
    return sums


def log_cells(plan: EvidencePlan, log_RN: Tensor) -> Tensor:
    """Log of the attention to the image tokens as that to the map's cells, normalised: [R, N] -> [R, P]"""
    layout = plan.layout
    assert layout is not None
    if layout.cells is None and layout.overview is None:
        return log_RN
    rows_RP = layout.project(log_RN.exp())
    return (rows_RP / rows_RP.sum(-1, keepdim=True)).clamp(min=1e-30).log()


def _labels(micro_batch: TensorDict) -> list[int | None]:
    """Label of each sample; None for verl's copies in place of dropped samples, which have no token to train on."""
    size = micro_batch.batch_size[0]
    truths = micro_batch.get("reward_model", None)
    truths = [None] * size if truths is None else [wire.payload(item) or {} for item in truths]
    masks = micro_batch.get("response_mask", None)
    real = [True] * size if masks is None else [bool(mask.any()) for mask in masks.unbind()]
    return [
        read_label(truth.get("ground_truth")) if is_real and isinstance(truth, dict) else None
        for truth, is_real in zip(truths, real, strict=True)
    ]
