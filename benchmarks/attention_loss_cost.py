"""What the loss on the attention costs an update: time of forward and backward, and memory kept between them.

    python benchmarks/attention_loss_cost.py [--repeats 5]

A random Qwen2 language model: 4 layers of width 256, 8 heads and 2 key heads, 2 sequences of 600 tokens, 225 of them
the image's, 200 reasoning. Each with and without gradient checkpointing; "eager" is the same loss out of
``output_attentions``. Kept memory is counted, not measured: the bytes of all tensors that autograd saves, each storage
once. Time is CPU time of this process, the least of the repeats.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import Qwen2Config

from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.method.attention_loss import token_losses
from realad_verl.tiny.build import hardware

BATCH, LENGTH, CELLS, REASONING, VOCABULARY = 2, 600, 225, 200, 2000
QUERIES, COLUMNS = torch.arange(LENGTH - REASONING, LENGTH), torch.arange(20, 20 + CELLS)


def new_model() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def log_prob_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def plain(model: Any, ids: Tensor, target: Tensor) -> Tensor:
    return log_prob_loss(model(ids, use_cache=False).logits, ids)


def taught(model: Any, ids: Tensor, target: Tensor) -> Tensor:
    requests = [RowRequest(row, 0, LENGTH, QUERIES, COLUMNS) for row in range(BATCH)]
    with gradient_reading(AttentionReadout(model), requests) as reading:
        logits = model(ids, use_cache=False).logits
        loss = log_prob_loss(logits, ids)
        return loss + token_losses(target, torch.cat(reading.log_rows())).mean()


def eager(model: Any, ids: Tensor, target: Tensor) -> Tensor:
    model.set_attn_implementation("eager")
    output = model(ids, use_cache=False, output_attentions=True)
    model.set_attn_implementation("sdpa")
    rows = sum(layer[:, :, QUERIES][..., COLUMNS].mean(1) for layer in output.attentions)
    assert isinstance(rows, Tensor)
    log_a = (rows / rows.sum(-1, keepdim=True)).log().flatten(0, 1)
    return log_prob_loss(output.logits, ids) + token_losses(target, log_a).mean()


def cost(step: Callable[..., Tensor], model: Any, ids: Tensor, target: Tensor) -> tuple[float, int]:
    """CPU seconds of forward and backward, and bytes kept for the backward pass."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    model.zero_grad()
    started = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss = step(model, ids, target)
    loss.backward()
    return time.process_time() - started, sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = new_model()
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    target = torch.full((1, CELLS), 1 / CELLS)
    results: dict[str, Any] = {"hardware": hardware()}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        # turn by turn, so that a busy machine slows all of them alike
        steps = {"plain": plain, "taught": taught} | ({} if checkpointing else {"eager": eager})
        runs = [{name: cost(step, model, ids, target) for name, step in steps.items()} for _ in range(args.repeats)]
        found: dict[str, Any] = {}
        for name in steps:
            found[name] = {
                "seconds": min(run[name][0] for run in runs),
                "kept_mib": min(run[name][1] for run in runs) / 2**20,
            }
        for name in steps:
            for key in ("seconds", "kept_mib"):
                found[name][f"{key}_ratio"] = found[name][key] / found["plain"][key]
        results["checkpointing" if checkpointing else "no checkpointing"] = found
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
