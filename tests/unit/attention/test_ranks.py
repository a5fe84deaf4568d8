"""Two gloo ranks: attention heads divided among them, and FSDP2."""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from attention_models import assert_rows, causal_model, eager_attention, eager_heads, padded, read, requests_for
from transformers.integrations import flash_attention

from realad_verl.attention import flash_reference

LENGTHS, WIDTH = [12, 10], 12


def _heads_divided(rank: int) -> None:
    """Each rank runs the kernel on its half of the heads, as after a sequence-for-heads exchange."""
    model, inputs = causal_model("gemma2", "flash_attention_2"), padded(LENGTHS, WIDTH)
    requests = requests_for(LENGTHS, WIDTH)
    whole = flash_attention._flash_attention_forward

    def local_heads(query, key, value, *args, **kwargs):
        local = [x.chunk(2, dim=2)[rank].contiguous() for x in (query, key, value)]
        mine = whole(*local, *args, **kwargs)
        parts = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, dim=2)

    flash_attention._flash_attention_forward = local_heads
    with flash_reference.as_flash_attention_2():
        rows, _ = read(model, requests, inputs, head_group=dist.group.WORLD)
        half, _ = read(model, requests, inputs)
        # heads of both ranks in layer 0, of the second alone in layer 1
        some, _ = read(model, requests, inputs, head_group=dist.group.WORLD, heads=[(0, 0), (0, 3), (1, 2)])
    flash_attention._flash_attention_forward = whole
    want = eager_attention(model, **inputs)
    assert_rows(rows, requests, want)
    eager = eager_heads(model, **inputs)
    assert_rows(some, requests, torch.stack([eager[0][:, 0], eager[0][:, 3], eager[1][:, 2]]).mean(0))
    assert (half[0] - rows[0]).abs().max() > 1e-3  # one rank alone does not have them


def _fsdp2(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, inputs, requests = causal_model("gemma3_text"), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    want = eager_attention(model, **inputs)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer.self_attn, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert type(model).__name__.startswith("FSDP") and type(model.model.layers[0].self_attn).__name__.startswith("FSDP")
    assert_rows(read(model, requests, inputs)[0], requests, want)


def _rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    _heads_divided(rank)
    _fsdp2(rank)
    dist.destroy_process_group()


def test_heads_divided_among_ranks_and_fsdp2():
    with tempfile.TemporaryDirectory() as folder:
        # forked: a rank that starts anew spends half a minute on imports; an error of a rank is raised here
        mp.start_processes(_rank, args=(os.path.join(folder, "store"),), nprocs=2, start_method="fork")
