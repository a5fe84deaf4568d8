"""vLLM's parameters after what an actor sent, against those loaded from PEFT's own merge. Run by test_weights.py.

usage: weights_vllm.py MODEL DTYPE RESULT.json FILE.pt...; the files are weights_rank.py's.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"VERL_PLATFORM": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "GLOO_SOCKET_IFNAME": "lo"}

import torch
import verl  # noqa: F401  (loads the plugin)
from peft_merge import merged_by_peft
from vllm import LLM


def everything(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def loaded(worker, weights: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """vLLM's parameters after ``weights`` came the way that verl sends them; NaN where nothing came."""
    model = worker.model_runner.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    worker._update_weights(weights, peft_config=None, base_sync_done=True)
    return everything(model)


def compare(worker, model: str, file: Path) -> dict:
    from safetensors.torch import load_file

    saved = torch.load(file, weights_only=False)
    got = loaded(worker, list(saved["sent"].items()))
    with tempfile.TemporaryDirectory() as folder:
        merged_by_peft(model, saved["actor"], saved["own"], Path(folder))
        want = loaded(worker, list(load_file(Path(folder) / "model.safetensors").items()))
    assert got.keys() == want.keys() and not any(value.isnan().any() for value in want.values())
    off = {name: (got[name].float() - value.float()).abs().max().item() for name, value in want.items()}
    bad = sorted(name for name, difference in off.items() if not difference <= 1e-6)
    return {"parameters": len(off), "worst": max(off.values()), "off": bad, "digest": digest(want)}


def digest(weights: dict[str, torch.Tensor]) -> float:
    """A number that an update changes."""
    return sum(value.double().abs().sum().item() for value in weights.values())


def main() -> None:
    model, dtype, result, *files = sys.argv[1:]
    llm = LLM(
        model=model,
        dtype=dtype,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=512,
        kv_cache_memory_bytes=1 << 26,
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
    )
    worker = llm.llm_engine.model_executor.driver_worker.worker  # type: ignore[attr-defined]
    found = {Path(file).name: compare(worker, model, Path(file)) for file in files}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
