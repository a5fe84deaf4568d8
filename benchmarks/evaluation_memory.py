"""Memory and time of the pixel metrics over many full-size maps, against anomalib's metrics on the same maps.

    python benchmarks/evaluation_memory.py --maps 2000 --compare-maps 100 --anomalib-python PATH
    python benchmarks/evaluation_memory.py --maps 100 --size 3000 --workers 1 2 --compare-maps 12 --anomalib-python PATH

Peak memory is that of the whole process (ru_maxrss); `before_gib` is what imports had taken. The maps are made in the
loop (15 x 15 random grids resized to full size, half of the images with one to three elliptic defects); making them is
not in the time. Times are CPU seconds of one thread, so that other load on the machine does not count. anomalib keeps
every pixel, so it is run on ``--compare-maps`` of the same maps, in its own Python (its requirements differ from this
package's), and both are compared there; its sorting grows faster than the number of maps.

``--workers`` adds the whole of ``realad evaluate``'s figures, on so many threads: maps and masks read from files,
counted, and the intervals. There the seconds are those of the wall clock.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np


def make_maps(n: int, size: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``n`` pairs of anomaly_map [size, size] float32 and gt_mask [size, size] bool; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        mask = np.zeros((size, size), np.uint8)
        for _ in range(int(rng.integers(1, 4)) if i % 2 else 0):
            centre = tuple(int(v) for v in rng.integers(size // 10, size * 9 // 10, 2))
            axes = tuple(int(v) for v in rng.integers(size // 100 + 1, size // 12 + 2, 2))
            cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        grid = rng.random((15, 15), np.float32) ** 3
        grid += 0.6 * cv2.resize(mask.astype(np.float32), (15, 15), interpolation=cv2.INTER_AREA)
        yield cv2.resize(grid * np.float32(1e-3), (size, size), interpolation=cv2.INTER_LINEAR), mask.astype(bool)


def run_ours(n: int, size: int) -> dict[str, float]:
    """Figures, seconds and peak memory of this package's metrics over ``n`` maps."""
    from realad_verl.evaluate.pixel_metrics import PixelHistogram, pixel_summary

    before = _peak()
    histogram, seconds = PixelHistogram(), 0.0
    for anomaly_map, mask in make_maps(n, size):
        start = time.process_time()
        histogram.add(anomaly_map, mask)
        seconds += time.process_time() - start
    start = time.process_time()
    summary = pixel_summary(histogram)
    seconds += time.process_time() - start
    names = ("pixel_auroc", "pixel_aupr", "pixel_f1_max", "pixel_aupro", "pixel_auroc_error_bound")
    return {k: summary[k] for k in names} | _cost(seconds, before)


def run_summary(n: int, size: int, workers: int) -> dict[str, float]:
    """The same figures by ``summarise``, which is what `realad evaluate` calls, out of files, on ``workers`` threads.

    The maps are the grids of ``make_maps`` cut to 15 x 15 cells and kept as the command keeps them.
    """
    from realad_verl.evaluate.records import save_map
    from realad_verl.evaluate.summary import SummaryConfig, summarise

    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for i, (anomaly_map, mask) in enumerate(make_maps(n, size)):
            scale = save_map(folder / f"maps/{i}.png", cv2.resize(anomaly_map, (15, 15), interpolation=cv2.INTER_AREA))
            cv2.imwrite(str(folder / f"{i}.png"), mask.astype(np.uint8) * 255)
            rows.append(_row(i, size, i % 2) | {"map": f"maps/{i}.png", "map_scale": scale})
        del anomaly_map, mask
        before, counted = _peak(), []
        start = time.perf_counter()
        results, _ = summarise(
            rows,
            folder,
            lambda row: cv2.imread(str(folder / f"{row['id']}.png"), cv2.IMREAD_GRAYSCALE) > 0,
            SummaryConfig(),
            on_image=lambda: counted.append(time.perf_counter() - start),
            workers=workers,
        )
        seconds = time.perf_counter() - start
    names = ("pixel_auroc", "pixel_aupr", "pixel_f1_max", "pixel_aupro", "pixel_auroc_error_bound")
    figures = {k: results["pooled"]["pixel_kept"][k] for k in names}
    return figures | {"counting_seconds": round(counted[-1], 2)} | _cost(seconds, before)


def _row(i: int, size: int, label: int) -> dict:
    """Row ``i`` of a results.jsonl, without its map."""
    from realad_verl.evaluate.records import FIELDS

    known = {"id": str(i), "category": "made up", "gt_label": label, "pred_label": label, "pred_score": float(label)}
    return dict.fromkeys(FIELDS) | known | {"image_size": [size, size]}


def run_anomalib(n: int, size: int) -> dict[str, float]:
    """The same figures by anomalib's metric classes (AUROC, AUPR, F1Max, AUPRO), fed one map at a time."""
    import torch
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    torch.set_num_threads(1)
    before = _peak()
    metrics = {"pixel_auroc": _AUROC(), "pixel_aupr": _AUPR(), "pixel_f1_max": _F1Max(), "pixel_aupro": _AUPRO()}
    seconds = 0.0
    for anomaly_map, mask in make_maps(n, size):
        batch, target = torch.from_numpy(anomaly_map)[None], torch.from_numpy(mask.astype(np.int64))[None]
        start = time.process_time()
        metrics["pixel_aupro"].update(batch, target)
        for name in ("pixel_auroc", "pixel_aupr", "pixel_f1_max"):
            metrics[name].update(batch.flatten(), target.flatten())
        seconds += time.process_time() - start
    start = time.process_time()
    figures = {name: float(metric.compute()) for name, metric in metrics.items()}
    return figures | _cost(seconds + time.process_time() - start, before)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cost(seconds: float, before: float) -> dict[str, float]:
    return {"seconds": round(seconds, 2), "peak_gib": round(_peak(), 3), "before_gib": round(before, 3)}


def _child(python: str, who: str, n: int, size: int, workers: int = 1) -> dict[str, float]:
    """Run one side in a process of its own, so that its peak memory is its own."""
    command = [python, __file__, "--only", who, "--maps", str(n), "--size", str(size), "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{who} failed with exit code {done.returncode} (its error is above)")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print JSON, and say whether the goals are met (exit code 1 if not)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=2000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--compare-maps", type=int, default=100)
    parser.add_argument(
        "--anomalib-python", help="a Python that has anomalib; without it only this package is measured"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[], help="time the command's whole way on so many")
    parser.add_argument("--only", choices=("ours", "anomalib", "summary"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "summary":
        print(json.dumps(run_summary(options.maps, options.size, options.workers[0])))
        return
    if options.only:
        run = run_ours if options.only == "ours" else run_anomalib
        print(json.dumps(run(options.maps, options.size)))
        return
    report: dict = {"maps": options.maps, "size": options.size}
    report["ours"] = _child(sys.executable, "ours", options.maps, options.size)
    if options.workers:
        summary = {n: _child(sys.executable, "summary", options.maps, options.size, n) for n in options.workers}
        report["summary_by_workers"] = summary
    met = report["ours"]["peak_gib"] <= 2.0
    if options.anomalib_python:
        report["compare_maps"] = options.compare_maps
        report["ours_compare"] = _child(sys.executable, "ours", options.compare_maps, options.size)
        report["anomalib"] = _child(options.anomalib_python, "anomalib", options.compare_maps, options.size)
        report["time_ratio"] = round(report["ours_compare"]["seconds"] / report["anomalib"]["seconds"], 3)
        met = met and report["time_ratio"] <= 0.5
    print(json.dumps(report | {"goals_met": met}, indent=1))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
