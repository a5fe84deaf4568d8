"""Shared by the benchmarks: interleaved CPU-time medians, and peak memory of a call in a process of its own."""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every variant in every round, all variants once in each round after one warm-up round.

    CPU time of the process rather than wall time, so that other processes on the machine disturb less. The order turns
    from round to round.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            variants[name]()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of the time of ``name`` to the time of ``base`` in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def peak_memory(call: Callable[[], Any]) -> dict[str, float]:
    """Peak resident memory while ``call`` runs, in MiB: of the process, and above what it held before. Linux only."""
    gc.collect()
    before = _status_mib("VmRSS")
    # The high-water mark of imports and set-up would hide a smaller call: 5 resets it (man 5 proc, clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    call()
    peak = _status_mib("VmHWM")
    return {"above_model_mib": peak - before, "peak_mib": peak}


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def in_own_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs ``script`` with ``arguments`` in a new process and reads the JSON object that it prints last."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ})
    return json.loads(done.stdout.strip().splitlines()[-1])


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
