"""Weights from the trainer to rollout processes of their own over gloo: verl's separate_async trainer without a GPU.

A recipe names it as ``rollout.checkpoint_engine.custom_backend_module`` with ``backend: gloo``; verl imports it in the
driver, the trainer's workers and the rollout's. verl's own engines need NCCL, HCCL, NIXL or Mooncake.

A sync is one broadcast group of trainer rank 0 and every rollout process, built and taken down each time. A tensor
goes as a JSON header (name, shape, dtype) and its bytes; a header without a name ends the sync.
"""

# verl's engine base and torch's c10d classes are untyped for pyright; the tests run them for real.
# pyright: reportIncompatibleMethodOverride=false, reportAttributeAccessIssue=false

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

BACKEND = "gloo"
LAST: dict[str, Any] = {}


@CheckpointEngineRegistry.register(BACKEND)
class GlooCheckpointEngine(CheckpointEngine):
    """Broadcasts the trainer's weights, full tensors one after the other.

    Args:
        bucket_size: verl's bytes a bucket; unused, a tensor is the unit.
        is_master: whether this process is the trainer's rank 0, which sends.
        timeout_s: seconds that one tensor may take; a peer that died is noticed at once where its socket closed.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, timeout_s: float = 600.0) -> None:
        self.is_master, self.timeout = is_master, timedelta(seconds=timeout_s)
        self.rank = -1
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None

    def prepare(self) -> tuple[str, int] | None:
        """Open the group's store; returns its address on the master, None elsewhere."""
        if not self.is_master:
            return None
        address = ray.util.get_node_ip_address().strip("[]")
        # Bound to this one address: a store of torch's own making listens on every interface.
        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        fd = listener.detach()
        self._store = TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=self.timeout, master_listen_fd=fd
        )
        return address, port

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list):
        """Trainer rank 0 is rank 0, the rollout's processes follow; the trainer's other ranks stay out (rank -1)."""
        size = rollout_world_size + 1

        def side(ranks: list[int]) -> dict[str, list]:
            return {"rank": ranks, "world_size": [size] * len(ranks), "master": [metadata[0]] * len(ranks)}

        return side([0] + [-1] * (actor_wg_world_size - 1)), side(list(range(1, size)))

    def init_process_group(self, rank: int, world_size: int, master: tuple[str, int]) -> None:
        """Join the group of this sync; a rank of -1 takes no part."""
        self.rank = rank
        if rank < 0:
            return
        if self._store is None:
            self._store = TCPStore(*master, is_master=False, wait_for_workers=False, timeout=self.timeout)
        self._group = ProcessGroupGloo(self._store, rank, world_size, self.timeout)

    def finalize(self) -> None:
        """Leave the group."""
        self._group = self._store = None

    @torch.no_grad()
    async def send_weights(self, weights, global_steps: int | None = None) -> dict[str, float]:
        """Send every weight of the generator. Each rank walks it: a sharded weight is gathered by all of them."""
        sent = 0
        async for name, weight in ensure_async_iterator(weights):
            if self.rank < 0:
                continue
            weight = weight.detach().cpu().contiguous()
            dtype = str(weight.dtype).removeprefix("torch.")
            await self._send_header({"name": name, "shape": list(weight.shape), "dtype": dtype})
            await self._broadcast(weight.reshape(-1).view(torch.uint8))
            sent += 1
        if self.rank < 0:
            return {}
        await self._send_header(LAST)
        return {"weight_sync/tensors": float(sent)}

    @torch.no_grad()
    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, Tensor], None]:
        """Yield (name, weight) until the sender is done."""
        while header := await self._receive_header():
            weight = torch.empty(header["shape"], dtype=getattr(torch, header["dtype"]))
            await self._broadcast(weight.reshape(-1).view(torch.uint8))
            yield header["name"], weight

    async def _send_header(self, header: dict[str, Any]) -> None:
        text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        await self._broadcast(torch.tensor([text.numel()]))
        await self._broadcast(text)

    async def _receive_header(self) -> dict[str, Any]:
        length = torch.zeros(1, dtype=torch.int64)
        await self._broadcast(length)
        text = torch.empty(int(length), dtype=torch.uint8)
        await self._broadcast(text)
        return json.loads(bytes(text.numpy()))

    async def _broadcast(self, tensor: Tensor) -> None:
        """From rank 0, in place. In a thread, so that this process answers Ray meanwhile."""
        if tensor.numel() == 0:
            return
        assert self._group is not None, "no process group: init_process_group comes first"
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        await asyncio.to_thread(self._group.broadcast([tensor], options).wait)
