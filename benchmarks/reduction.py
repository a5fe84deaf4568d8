"""The reduction of attention rows to evidence, against a loop that labels each token's map with scipy.

Run: ``OMP_NUM_THREADS=1 python benchmarks/reduction.py [--json]``. Single thread, the two sides interleaved, medians.
The whole reduction (entropy, normalisation, selection, map, Jaccard) is timed, and the loop beside its entropy alone as
well as with the same remaining steps. Growth: tokens per second from 1,000 to 1,000,000 tokens, each size in a process
of its own so that peak memory above the inputs is its own.
"""

import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Triple, compute_evidence_batch
from realad_verl.method.scoring import spatial_entropy

GROWTH = (1_000, 10_000, 100_000, 1_000_000)


def make_responses(n_tokens: int, side: int, response_tokens: int, seed: int = 0) -> list[Triple]:
    """Responses of smooth random maps (attention is no white noise); the same 64 are repeated to reach ``n_tokens``."""
    rng = np.random.default_rng(seed)
    count = max(1, n_tokens // response_tokens)
    made = []
    for _ in range(min(count, 64)):
        noise = rng.random((response_tokens, side, side), dtype=np.float32)
        maps = ndimage.gaussian_filter(noise, sigma=(0, 1, 1)).reshape(response_tokens, -1)
        s_t = torch.from_numpy(rng.random(response_tokens, dtype=np.float32))
        made.append((torch.from_numpy(maps / maps.sum(axis=1, keepdims=True)), s_t, (side, side)))
    return [made[i % len(made)] for i in range(count)]


def scipy_entropy(rows: np.ndarray, side: int) -> np.ndarray:
    """Spatial entropy the usual way: a loop over tokens, one scipy.ndimage.label each."""
    entropy = np.empty(len(rows))
    for i, row in enumerate(rows):
        labels, _ = ndimage.label((row > row.mean()).reshape(side, side), structure=np.ones((3, 3)))
        p = np.bincount(labels.ravel())[1:].astype(float)
        p /= p.sum()
        entropy[i] = -(p * np.log(p)).sum()
    return entropy


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(n_tokens: int, side: int, response_tokens: int, repeats: int) -> dict[str, float]:
    """Medians of interleaved runs over the same rows."""
    responses = make_responses(n_tokens, side, response_tokens)
    rows = torch.cat([r[0] for r in responses])
    tokens = len(rows)
    times: dict[str, list[float]] = {"reduction": [], "entropy": [], "scipy_entropy": []}
    for _ in range(repeats):
        times["reduction"].append(seconds(lambda: compute_evidence_batch(responses, MethodConfig())))
        times["entropy"].append(seconds(lambda: spatial_entropy(rows, (side, side))))
        times["scipy_entropy"].append(seconds(lambda: scipy_entropy(rows.numpy(), side)))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tokens": tokens,
        "response_tokens": response_tokens,
        **{f"{name}_s": value for name, value in median.items()},
        "reduction_tokens_per_s": tokens / median["reduction"],
        "scipy_loop_tokens_per_s": tokens / median["scipy_entropy"],
        "entropy_ratio": median["scipy_entropy"] / median["entropy"],
        # the loop would have to do the remaining steps too; leaving them out counts against us
        "reduction_ratio": median["scipy_entropy"] / median["reduction"],
    }


def growth_point(n_tokens: int, side: int, response_tokens: int) -> dict[str, float]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    responses = make_responses(n_tokens, side, response_tokens)
    compute_evidence_batch(responses[:1], MethodConfig())  # start-up costs are not growth
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = seconds(lambda: compute_evidence_batch(responses, MethodConfig()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tokens = len(responses) * response_tokens
    return {"tokens": tokens, "seconds": taken, "tokens_per_s": tokens / taken, "peak_extra_mib": peak / 1024}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    tokens: Annotated[int, typer.Option(help="Tokens in the comparison.")] = 16_384,
    side: Annotated[int, typer.Option(help="The grid is side x side.")] = 15,
    response_tokens: Annotated[int, typer.Option(help="Reasoning tokens of a response.")] = 256,
    repeats: Annotated[int, typer.Option(help="Interleaved runs, the median counts.")] = 7,
) -> None:
    """Measure the reduction; ratios are against the per-token scipy loop of the same rows."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    comparison = compare(tokens, side, response_tokens, repeats)
    spawn = multiprocessing.get_context("spawn")
    growth = []
    for size in GROWTH:
        with spawn.Pool(1) as pool:
            growth.append(pool.apply(growth_point, (size, side, response_tokens)))
    result = {
        "grid": [side, side],
        "comparison": comparison,
        "growth": growth,
        "machine": {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1},
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    for title, lines in (("Against the scipy loop", [comparison]), ("Growth", growth)):
        table = Table(*lines[0], title=title)
        for line in lines:
            table.add_row(*(f"{value:,.4g}" for value in line.values()))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
