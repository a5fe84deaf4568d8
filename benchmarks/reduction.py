"""The reduction of attention rows to evidence, against a loop that labels each token's map with scipy.

Run: ``OMP_NUM_THREADS=1 python benchmarks/reduction.py [--json]``. One thread, CPU time, interleaved, medians.
Two comparisons on the same rows, each of like with like and checked to give the same numbers: the entropy alone, and
the whole reduction (entropy, normalisation, selection, map, Jaccard). The loop is lean: numpy and one
``scipy.ndimage.label`` a token, no Python loop over components. Labelling alone is timed too: no arrangement around it
can be faster. Growth: tokens per second from 1,000 to 1,000,000 tokens, each size in a process of its own so that peak
memory above the inputs is its own.
"""

import itertools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from _timing import hardware, interleaved, ratio
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


def loop_evidence(rows: np.ndarray, s_t: np.ndarray, side: int, cfg: MethodConfig) -> tuple[np.ndarray, float]:
    """The map [P] and the Jaccard index of one response, by the loop's entropy and numpy; default settings only."""
    text, image = (_stretched(scores) for scores in (s_t, -scipy_entropy(rows, side)))
    weights = cfg.scoring.alpha * text + cfg.scoring.beta * image
    order = np.argsort(-weights, kind="stable")
    kept = np.flatnonzero((text > cfg.scoring.tau_t) & (image > cfg.scoring.tau_i))
    if not len(kept):
        kept = order[: cfg.scoring.fallback_tokens]
    anomaly_map = weights[kept] @ rows[kept] / weights[kept].sum()
    top = rows[order[: cfg.consistency.t]].astype(float)
    regions = [row >= np.percentile(row, cfg.consistency.percentile) for row in top]
    pairs = itertools.combinations(regions, 2)
    return anomaly_map, float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def _stretched(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def check_same(responses: Sequence[Triple], side: int) -> None:
    """The loop and the package agree on every response, or this benchmark compares nothing."""
    found = compute_evidence_batch(responses, MethodConfig())
    for (rows, s_t, _), evidence in zip(responses, found, strict=True):
        anomaly_map, jaccard = loop_evidence(rows.numpy(), s_t.numpy(), side, MethodConfig())
        assert evidence.anomaly_map_P is not None and evidence.jaccard is not None
        np.testing.assert_allclose(evidence.anomaly_map_P.numpy(), anomaly_map, atol=1e-6)
        np.testing.assert_allclose(evidence.jaccard, jaccard, atol=1e-9)


def label_all(rows: torch.Tensor, side: int) -> None:
    """The part that cannot be left out: threshold every map and label all components in one call of OpenCV."""
    canvas = np.zeros((len(rows), side + 1, side), dtype=np.uint8)
    canvas[:, :side] = (rows > rows.mean(dim=1, keepdim=True)).reshape(-1, side, side).numpy()
    cv2.connectedComponents(canvas.reshape(-1, side), connectivity=8, ltype=cv2.CV_32S)


def compare(n_tokens: int, side: int, response_tokens: int, repeats: int) -> dict[str, float]:
    """Medians of interleaved runs over the same rows."""
    responses = make_responses(n_tokens, side, response_tokens)
    rows = torch.cat([r[0] for r in responses])
    tokens = len(rows)
    check_same(responses[:8], side)
    arrays = [(r.numpy(), s_t.numpy()) for r, s_t, _ in responses]
    cfg = MethodConfig()
    calls: dict[str, Callable[[], Any]] = {
        "reduction": lambda: compute_evidence_batch(responses, cfg),
        "loop_reduction": lambda: [loop_evidence(r, s_t, side, cfg) for r, s_t in arrays],
        "entropy": lambda: spatial_entropy(rows, (side, side)),
        "loop_entropy": lambda: scipy_entropy(rows.numpy(), side),
        "labelling": lambda: label_all(rows, side),
    }
    times = interleaved(calls, repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tokens": tokens,
        "response_tokens": response_tokens,
        **{f"{name}_us_a_token": 1e6 * value / tokens for name, value in median.items()},
        "reduction_tokens_per_s": tokens / median["reduction"],
        "reduction_ratio": ratio(times, "loop_reduction", "reduction"),
        "entropy_ratio": ratio(times, "loop_entropy", "entropy"),
        "labelling_ratio": ratio(times, "loop_reduction", "labelling"),
    }


def growth_point(n_tokens: int, side: int, response_tokens: int) -> dict[str, float]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    responses = make_responses(n_tokens, side, response_tokens)
    compute_evidence_batch(responses[:1], MethodConfig())  # start-up costs are not growth
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    compute_evidence_batch(responses, MethodConfig())
    taken = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tokens = len(responses) * response_tokens
    return {"tokens": tokens, "cpu_seconds": taken, "tokens_per_s": tokens / taken, "peak_extra_mib": peak / 1024}


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
        "hardware": hardware(),
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    for name, value in comparison.items():
        console.print(f"{name:>26} {value:,.4g}")
    table = Table(*growth[0], title="Growth")
    for line in growth:
        table.add_row(*(f"{value:,.4g}" for value in line.values()))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
