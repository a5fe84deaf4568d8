"""What the cost of the evidence grows with: sequence length, responses, reasoning and image tokens, layers.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--plot docs/images/growth.png] [--json]

One axis at a time around a base point. ``readout_s`` is what the attention read-out itself took in one forward
(``Reading.seconds``) of a decoder with Qwen2.5-0.5B's attention (14 heads of 64, 2 for keys) and a small MLP, which
the read-out never sees; ``reduce_s`` is the reduction of so many rows to evidence. Each is the CPU time of the least of
several rounds, since other work on the machine can only add. A line ``seconds = a + b * axis`` is fitted to each curve
by least squares, with its largest error as a share of the measured value.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from _timing import hardware
from evidence_overhead import build_model
from scipy import ndimage

from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import compute_evidence_batch

BASE = {"tokens": 512, "responses": 1, "reasoning": 128, "side": 15, "layers": 2}
AXES = {
    "tokens": [256, 512, 1024, 2048],
    "responses": [1, 2, 4, 8],
    "reasoning": [16, 32, 64, 128, 256],
    "side": [5, 7, 10, 14, 20],
    "layers": [1, 2, 4, 8],
}
WORDS = 8


@torch.no_grad()
def measure(point: dict[str, int], rounds: int) -> dict[str, float]:
    """The least seconds of read-out and reduction at ``point``, and of the forward that carries the read-out."""
    model = build_model(point["layers"], vocabulary=256, mlp=128)
    tokens, responses, reasoning, side = (point[k] for k in ("tokens", "responses", "reasoning", "side"))
    ids = torch.randint(0, 256, (responses, tokens), generator=torch.Generator().manual_seed(0))
    queries, columns = torch.arange(tokens - reasoning, tokens), torch.arange(side * side + WORDS)
    requests = [RowRequest(row, 0, tokens, queries, columns) for row in range(responses)]
    readout = AttentionReadout(model)
    triples = smooth_rows(responses, reasoning, side)
    taken: dict[str, list[float]] = {"forward_s": [], "readout_s": [], "reduce_s": []}
    for _ in range(rounds + 1):
        start = time.process_time()
        with patch.object(time, "perf_counter", time.process_time), readout.reading(requests) as reading:
            model(input_ids=ids, use_cache=False)
        taken["forward_s"].append(time.process_time() - start)
        assert reading.rows()[0].shape == (reasoning, side * side + WORDS)
        taken["readout_s"].append(reading.seconds)
    for _ in range(5):
        start = time.process_time()
        compute_evidence_batch(triples, MethodConfig())
        taken["reduce_s"].append(time.process_time() - start)
    return {name: min(values) for name, values in taken.items()}


def smooth_rows(responses: int, reasoning: int, side: int) -> list:
    """Rows like a trained model's (a random model's attention is noise, which has many more components)."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(responses):
        maps = ndimage.gaussian_filter(rng.random((reasoning, side, side), dtype=np.float32), sigma=(0, 1, 1))
        rows = torch.from_numpy(maps.reshape(reasoning, -1))
        s_t = torch.from_numpy(rng.random(reasoning, dtype=np.float32))
        made.append((rows / rows.sum(1, keepdim=True), s_t, (side, side)))
    return made


def line(values: list[int], seconds: list[float]) -> dict[str, float]:
    """``a`` (ms), ``b`` (ms a unit) and the largest relative error of seconds = a + b * value."""
    b, a = np.polyfit(values, seconds, 1)
    error = max(abs(a + b * v - s) / s for v, s in zip(values, seconds, strict=True))
    return {"a_ms": 1e3 * a, "b_ms": 1e3 * b, "largest_error": error}


def plot(curves: dict[str, list[dict]], path: Path) -> None:
    """One panel an axis, both parts, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3 * len(curves), 2.8), sharey=True, layout="constrained")
    for panel, (axis, records) in zip(axes, curves.items(), strict=True):
        for name, label in (("readout_s", "read-out"), ("reduce_s", "reduction")):
            panel.loglog([r["value"] for r in records], [1e3 * r[name] for r in records], "o-", label=label)
        panel.set_xlabel({"side": "image tokens"}.get(axis, f"{axis} tokens" if axis == "reasoning" else axis))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.set_xticks([r["value"] for r in records])
        panel.grid(True, alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="write the curves as a picture")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[str, list[dict]] = {}
    for axis, values in AXES.items():
        points = [BASE | {axis: value} for value in values]
        # the axis "side" is plotted and fitted in image tokens
        shown = [value**2 if axis == "side" else value for value in values]
        curves[axis] = [{"value": v, **measure(p, arguments.rounds)} for v, p in zip(shown, points, strict=True)]
        print(f"{axis} done", file=sys.stderr)
    fits = {
        axis: {part: line([r["value"] for r in rs], [r[part] for r in rs]) for part in ("readout_s", "reduce_s")}
        for axis, rs in curves.items()
    }
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.json:
        print(json.dumps({"hardware": hardware(), "base": BASE, "curves": curves, "fits": fits}, indent=1))
        return
    for axis, records in curves.items():
        print(axis)
        for part, fit in fits[axis].items():
            print(f"  {part[:-2]}: {fit['a_ms']:.2f} ms + {fit['b_ms']:.4f} ms each, within {fit['largest_error']:.0%}")
        for r in records:
            times = ", ".join(f"{name[:-2]} {1e3 * r[name]:.2f} ms" for name in ("readout_s", "reduce_s", "forward_s"))
            print(f"  {r['value']:>5}: {times}")


if __name__ == "__main__":
    main()
