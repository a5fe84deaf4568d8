"""The model shards of one of verl's FSDP checkpoints, read from disk a tensor at a time.

verl writes ``actor/model_world_size_N_rank_R.pt``: the module's ``state_dict`` with one piece of each tensor a rank.
With HSDP the ranks are a grid of copies and pieces; one copy is read. No process group is needed, nor a GPU.
"""

# torch's DTensor has no public way to its local part without a process group.
# pyright: reportAttributeAccessIssue=false

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from realad_verl.errors import UserError

WORLD = "fsdp_config.json"


class Shards:
    """The tensors in ``actor``, by the names under which the ranks saved them.

    Files are memory-mapped, and read by torch's loader that runs no code of theirs. Raises UserError for a folder that
    is not such a checkpoint, or of which a part is missing or damaged.
    """

    def __init__(self, actor: Path) -> None:
        self.actor = actor
        world = _world_size(actor)
        files = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f"{actor} is torn: of the shards of {world} ranks, {', '.join(missing[:5])} are missing.")
        first = _load(files[0])
        self._parts = [first, *(_load(files[rank]) for rank in _copy(first, world)[1:])]
        if any(part.keys() != first.keys() for part in self._parts):
            raise UserError(f"{actor} is torn: its ranks saved different tensors.")

    def names(self) -> list[str]:
        """Names in the order in which they were saved."""
        return list(self._parts[0])

    def shape(self, name: str) -> torch.Size:
        """Shape of the whole tensor."""
        return self._parts[0][name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Precision that it was saved in."""
        return self._parts[0][name].dtype

    def whole(self, name: str) -> Tensor:
        """The tensor, put together from all ranks."""
        parts = [part[name] for part in self._parts]
        if not isinstance(parts[0], DTensor):
            return parts[0]
        (*_, placement) = parts[0].placements
        if not placement.is_shard():
            return parts[0]._local_tensor
        whole = torch.cat([part._local_tensor for part in parts], dim=placement.dim)
        if whole.shape != parts[0].shape:
            raise UserError(f"{self.actor} is torn: the pieces of {name} make {tuple(whole.shape)}.")
        return whole


def _world_size(actor: Path) -> int:
    try:
        size = json.loads((actor / WORLD).read_text())["world_size"]
        assert isinstance(size, int) and size > 0
        return size
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(
            f"{actor} is no FSDP checkpoint of verl: it lacks a readable {WORLD}. Exported are checkpoints of "
            "`realad train` (strategy fsdp2 or fsdp), whole and of a run folder."
        ) from None


def _load(file: Path) -> dict[str, Any]:
    # It warns, at each file, of what matters to torch.compile alone.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} is torn, or no model shard of verl: {reason}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} is no model shard of verl: it holds no tensors by name.")
    return state


def _copy(state: dict[str, Any], world: int) -> list[int]:
    """Ranks that hold one copy of the model between them."""
    sharded = next((value for value in state.values() if isinstance(value, DTensor)), None)
    if sharded is None:
        return [0] if world == 1 else list(range(world))
    mesh = sharded.device_mesh.mesh
    return mesh.reshape(-1, mesh.shape[-1])[0].tolist()
