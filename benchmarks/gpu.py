"""What the read-out costs on one GPU, at the shapes of Qwen2.5-VL-7B's language model with random bf16 weights.

Run: ``make gpu``, or ``python benchmarks/gpu.py [--out gpu.json]``; less than 8 minutes are meant. It needs torch,
transformers and triton, nothing else of this project's stack. ``--device cpu --smoke`` runs the same code on small
shapes anywhere: its times say nothing.

- forward: n sequences of T tokens, all logits: a batch and sdpa, and packed, by flash-attn where that is installed and
  by torch's own varlen attention else;
- torch, triton: the same with the read-out on, R = 300 rows a sequence, 233 columns, by either kernel;
- eager: attn_implementation "eager" with output_attentions, up to 4,096 tokens;
- generate, read: generation of 64 tokens, and the same read as it runs (`attention.generation`);
- update: forward and backward with gradient checkpointing, without and with the loss on the attention.

Times are medians by CUDA events, after a warm-up. Launches are those that the profiler sees of one forward. The rows
of the two kernels are compared. Targets: read-out <= 1.05 of the forward, memory <= 1.02, <= 0.2 of eager's time at
T = 4,096.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs where the package is not installed

from realad_verl.attention import flash_reference
from realad_verl.attention.generation import reading_generation
from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.method.attention_loss import token_losses

COLUMNS, ROWS, GENERATED = 15 * 15 + 8, 300, 64
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
QWEN_7B |= {"num_attention_heads": 28, "num_key_value_heads": 4}
SMOKE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
SMOKE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def build_model(shapes: dict[str, int], device: torch.device) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    kept, dtype = torch.get_default_dtype(), torch.bfloat16
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Qwen2ForCausalLM(Qwen2Config(**shapes, max_position_embeddings=32768)).eval()
    finally:
        torch.set_default_dtype(kept)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    **_: Any,
) -> Any:
    """torch's varlen attention by the arguments of flash-attn's; without windows and the like."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    return varlen_attn(q, k, v, *bounds, scale=softmax_scale, window_size=(-1, 0 if causal else -1))


@contextmanager
def packing(model: Any) -> Iterator[str]:
    """The model by a kernel for packed sequences, whose name this gives."""
    if find_spec("flash_attn") is not None:
        model.set_attn_implementation("flash_attention_2")
        yield "flash-attn"
    else:
        model.config._attn_implementation = "flash_attention_2"  # the setter would ask for the package
        with flash_reference.as_flash_attention_2(varlen_function=varlen):
            yield "torch varlen"
    model.set_attn_implementation("sdpa")


def inputs_of(model: Any, n: int, tokens: int, rows: int) -> tuple[dict[str, Tensor], list[RowRequest]]:
    """n sequences packed for flash-attn, or as a batch, and the last rows of each to columns at its front."""
    device, packed = model.device, model.config._attn_implementation == "flash_attention_2"
    ids = torch.randint(0, model.config.vocab_size, (n, tokens), device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if packed:
        positions = torch.arange(tokens, device=device).repeat(n)[None]
        inputs |= {"input_ids": ids.reshape(1, -1), "position_ids": positions}
    wanted = torch.arange(tokens - rows, tokens), torch.arange(min(COLUMNS, tokens - rows))
    places = [(0, i * tokens) if packed else (i, 0) for i in range(n)]
    return inputs, [RowRequest(row, offset, tokens, *wanted) for row, offset in places]


def measure(calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, Any]:
    """Of each call, median milliseconds and peak MiB above what was there before; in turn, so that drift hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks = dict.fromkeys(calls, 0.0)
    for call in calls.values():
        call()
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                stop.record()
                stop.synchronize()
                times[name].append(start.elapsed_time(stop))
                peaks[name] = max(peaks[name], (torch.cuda.max_memory_allocated() - before) / 2**20)
            else:
                began = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: {"ms": statistics.median(times[name]), "peak_mib": peaks[name] or None} for name in calls}


def launches(model: Any, n: int, tokens: int, rows: int) -> dict[str, Any]:
    """How many kernels one forward launches, plain and read. Done last: a profiler slows what comes after it."""
    inputs, requests = inputs_of(model, n, tokens, rows)
    found: dict[str, int] = {}
    for kernel in ("plain", "torch", "triton"):
        readout = AttentionReadout(model, kernel="torch" if kernel == "plain" else kernel)
        for _ in range(2):
            with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
                with readout.reading([] if kernel == "plain" else requests) as reading:
                    model(**inputs)
                reading.rows()
        names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
        found[kernel] = sum(event.count for event in profile.key_averages() if event.key in names)
    return {"tokens": tokens, "sequences": n, "rows": rows, **found}


def point(model: Any, n: int, tokens: int, rows: int, rounds: int, with_eager: bool) -> dict[str, Any]:
    """One T and n: every variant, and how far the kernels' rows lie apart."""
    device, chosen = model.device, model.config._attn_implementation
    inputs, requests = inputs_of(model, n, tokens, rows)
    found: dict[str, list[Tensor]] = {}

    def reading(kernel: str) -> Callable[[], None]:
        readout = AttentionReadout(model, kernel=kernel)

        def call() -> None:
            with readout.reading(requests) as read:
                model(**inputs)
            found[kernel] = read.rows()

        return call

    kernels = ["torch", "triton"] if device.type == "cuda" else ["torch"]
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: model(**inputs)}
    rounds *= max(1, min(4, 4096 // (n * tokens)))  # of what is soon over, and noisier, more
    variants = measure(calls | {kernel: reading(kernel) for kernel in kernels}, device, rounds)
    if with_eager:
        model.set_attn_implementation("eager")
        ids = inputs["input_ids"].reshape(n, tokens)
        call = lambda: model(input_ids=ids, use_cache=False, output_attentions=True)  # noqa: E731
        variants |= measure({"eager": call}, device, rounds)
        model.set_attn_implementation(chosen)
    apart = None
    if "triton" in found:
        apart = max(float((a - b).abs().max()) for a, b in zip(found["torch"], found["triton"], strict=True))
    ratios = {kernel: variants[kernel]["ms"] / variants["forward"]["ms"] for kernel in kernels}
    return {"tokens": tokens, "sequences": n, "rows": rows, **variants, "over_forward": ratios, "kernels_apart": apart}


def generation(model: Any, n: int, tokens: int, generated: int, rounds: int) -> dict[str, Any]:
    """Generation alone, and read as it runs."""
    model.set_attn_implementation("sdpa")
    ids = torch.randint(0, model.config.vocab_size, (n, tokens), device=model.device)
    options = {"max_new_tokens": generated, "min_new_tokens": generated, "do_sample": False, "pad_token_id": 0}
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **options}
    readout = AttentionReadout(model)
    columns = torch.arange(min(COLUMNS, tokens))
    wanted = [
        RowRequest(i, 0, tokens + generated, torch.arange(tokens, tokens + generated - 1), columns) for i in range(n)
    ]

    def read() -> None:
        with reading_generation(readout, [tokens] * n) as reading:
            model.generate(**given)
        assert reading.read(wanted) is not None

    found = measure({"generate": lambda: model.generate(**given), "read": read}, model.device, rounds)
    ratio = found["read"]["ms"] / found["generate"]["ms"]
    return {"sequences": n, "prompt": tokens, "generated": generated, **found, "over_generate": ratio}


def update(model: Any, n: int, tokens: int, rows: int, rounds: int) -> dict[str, Any]:
    """Forward and backward of n sequences with gradient checkpointing, without and with the loss on the attention."""
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs, requests = inputs_of(model, n, tokens, rows)
    target = torch.full((1, len(requests[0].columns)), 1 / len(requests[0].columns), device=model.device)

    def loss_of(logits: Tensor) -> Tensor:
        predicted = logits[:, -rows - 1 : -1].flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(predicted, inputs["input_ids"][:, -rows:].flatten())

    def plain() -> None:
        loss_of(model(**inputs).logits).backward()
        model.zero_grad()

    def taught() -> None:
        with gradient_reading(AttentionReadout(model), requests) as reading:
            loss = loss_of(model(**inputs).logits)
            (loss + token_losses(target, torch.cat(reading.log_rows())).mean()).backward()
        model.zero_grad()

    with torch.enable_grad():
        found = measure({"plain": plain, "taught": taught}, model.device, rounds)
    model.gradient_checkpointing_disable()
    model.eval()
    ratios = {key: _ratio(found["taught"][key], found["plain"][key]) for key in ("ms", "peak_mib")}
    return {"tokens": tokens, "sequences": n, "rows": rows, **found, "taught_over_plain": ratios}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def machine(device: torch.device) -> dict[str, Any]:
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"device": device.type, "card": None, "driver": None}
    if device.type == "cuda":
        import triton

        found |= {"card": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "triton": triton.__version__}
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
        found["driver"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-tokens", type=int, default=32768, help="larger packs are left out")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    device, began = torch.device(arguments.device), time.perf_counter()
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here: --device cpu --smoke shows that this runs, and nothing else")
    model = build_model(SMOKE if arguments.smoke else QWEN_7B, device)
    lengths, rows = ((64, 128), 30) if arguments.smoke else ((1024, 4096, 16384), ROWS)
    result: dict[str, Any] = {"machine": machine(device), "shapes": SMOKE if arguments.smoke else QWEN_7B}
    result |= {"points": [], "packed": [], "generation": [], "update": [], "launches": []}

    def say(part: str, found: dict[str, Any]) -> None:
        result[part].append(found)
        seconds = time.perf_counter() - began
        print(f"{seconds:.0f} s: {part}, {found['sequences']} sequences", file=sys.stderr)
        if arguments.out:  # a run that is ended has left what it had
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    for tokens in lengths:
        for n in (1, 4, 8):
            if n * tokens <= arguments.most_tokens:
                eager = n == 1 and tokens <= 4096
                say("points", point(model, n, tokens, rows, arguments.rounds, eager))
    for n in (1, 4):
        say("update", update(model, n, 64 if arguments.smoke else 1024, rows, arguments.rounds))
    if device.type == "cuda":
        for n, tokens in ((4, 1024), (4, 4096)):
            with packing(model) as kernel:
                say("packed", {"kernel": kernel, **point(model, n, tokens, rows, arguments.rounds, False)})
    for n in (1, 8):
        size = (32, 8) if arguments.smoke else (512, GENERATED)
        say("generation", generation(model, n, *size, arguments.rounds))
    for n in (1, 4) if device.type == "cuda" else ():
        say("launches", launches(model, n, 1024, rows))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
