"""Speed and memory of ``realad prepare`` against a plain Pillow loop. Run: ``python benchmarks/prepare.py [--json]``.

Both get the same JPEG files and end with the same kind of parquet file. The loop opens, converts, resizes and saves
each image as PNG with Pillow's defaults, keeps all rows, and writes them at once. ``realad prepare`` also hashes the
content and checks for overlap. Each run is a process of its own; the two kinds take turns; medians are compared.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DISTINCT = 64  # image files that are really made; the others are hard links to them


def link_images(root: Path, count: int, source: Path) -> None:
    """``count`` links to the images below ``source``, half in normal/, half in anomalous/."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for i in range(count):
        original = found[i % len(found)]
        path = root / ("normal", "anomalous")[i % 2] / f"{i:05}{original.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(original.resolve())


def make_images(root: Path, count: int, side: int) -> None:
    """``count`` textured JPEG files of ``side`` x ``side`` pixels, half in normal/, half in anomalous/.

    They are noisier than photos, so PNG compression is slower at every level, and more alike between levels.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / ("normal", "anomalous")[i % 2] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT:
            coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)).resize((side, side))
            fine = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (side, side, 3))
            Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            first = i % DISTINCT
            os.link(root / ("normal", "anomalous")[first % 2] / f"{first:05}.jpg", path)


def plain_loop(root: Path, out: Path, size: int) -> None:
    """What one would write in ten lines."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rows = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append({"images": [{"bytes": buffer.getvalue()}], "label": path.parent.name})
    pq.write_table(pa.Table.from_pylist(rows), out)


def child(kind: str, root: Path, size: int, workers: int) -> None:
    """One timed run in this process; prints seconds and peak memory as JSON. Imports are not timed."""
    from realad_verl.data.prepare import PrepareSettings, prepare

    with tempfile.TemporaryDirectory(dir=root.parent) as out:
        start, cpu = time.perf_counter(), time.process_time()
        if kind == "loop":
            plain_loop(root, Path(out) / "loop.parquet", size)
        else:
            prepare("folder", root, Path(out) / "out", PrepareSettings(size=size, val_fraction=0), workers=workers)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}))


def measure(options: argparse.Namespace, root: Path) -> dict:
    """Alternate the two kinds ``options.rounds`` times; medians, and the ratio of images a second."""
    runs: dict[str, list[dict]] = {"loop": [], "prepare": []}
    for _ in range(options.rounds):
        for kind, results in runs.items():
            arguments = [
                "--child",
                kind,
                "--root",
                str(root),
                "--size",
                str(options.size),
                "--workers",
                str(options.workers),
            ]
            done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    report: dict = {key: getattr(options, key) for key in ("images", "size", "workers", "rounds")}
    report["source"] = options.source.name if options.source else f"made, {options.side} x {options.side}"
    for kind, results in runs.items():
        middle = {key: statistics.median(run[key] for run in results) for key in results[0]}
        report[kind] = {
            "images_per_s": round(options.images / middle["seconds"], 1),
            "images_per_cpu_s": round(options.images / middle["cpu_seconds"], 1),
            "peak_mib": round(middle["peak_mib"]),
        }
    for key in ("images_per_s", "images_per_cpu_s"):
        report[f"ratio_{key}"] = round(report["prepare"][key] / report["loop"][key], 2)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--source", type=Path, help="take the images below this folder instead of made ones")
    parser.add_argument("--side", type=int, default=1000, help="side of the source images in pixels")
    parser.add_argument("--size", type=int, default=420, help="side of the prepared images in pixels")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--child", choices=("loop", "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.root, options.size, options.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.source:
            link_images(Path(folder) / "images", options.images, options.source)
        else:
            make_images(Path(folder) / "images", options.images, options.side)
        report = measure(options, Path(folder) / "images")
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{options.images} images ({report['source']}) -> {options.size} pixels, {options.workers} threads")
    for kind in ("loop", "prepare"):
        print(f"{kind:>8}: {report[kind]['images_per_s']:7.1f} images/s, peak memory {report[kind]['peak_mib']} MiB")
    print(f"ratio of images/s: {report['ratio_images_per_s']}")


if __name__ == "__main__":
    main()
