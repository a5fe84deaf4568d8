"""Tables of what ``attention_loss.py`` measured: means, and differences with intervals over seeds and images.

python benchmarks/attention_loss_report.py out/attention [--pairs r1+a,r1 ...] [--picture out/maps.png]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from attention_loss import READOUTS, SEEDS
from learning import held_out
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from realad_verl.evaluate.pixel_metrics import PixelHistogram
from realad_verl.method.anomaly_map import resize_map
from realad_verl.tiny.arch import GRID, IMAGE_SIZE

Floats = NDArray[np.float64]
DRAWS = 4000
PIXEL = ("pixel AUROC", "pixel AP")
IMAGES = ("accuracy", "accuracy, sampled", "well-formed", "well-formed, sampled")


def per_image(result: dict[str, Any], maps: dict[str, Floats], masks: list[Floats]) -> dict[str, Floats]:
    """One value an image (accuracies, forms) or an anomalous image (pixel figures, by read-out)."""
    measured = {key: np.array(values) for key, values in result["measured"].items() if key != "jaccard"}
    label = measured["label"]
    out = {
        "accuracy": (measured["answer"] == label).astype(float),
        "accuracy, sampled": (measured["sampled"] == label[:, None]).mean(1),
        "well-formed": measured["well_formed"].astype(float),
        "well-formed, sampled": measured["sampled_formed"].mean(1),
    }
    for readout in READOUTS:
        values: dict[str, list[float]] = {name: [] for name in PIXEL}
        for i in np.flatnonzero(label):
            truth, score = masks[i].ravel() > 0, _resized(maps[readout][i]).ravel()
            values["pixel AUROC"].append(float(roc_auc_score(truth, score)))
            values["pixel AP"].append(float(average_precision_score(truth, score)))
        out |= {f"{name}, {readout}": np.array(each) for name, each in values.items()}
    return out


def whole(result: dict[str, Any], maps: dict[str, Floats], masks: list[Floats]) -> dict[str, float]:
    """Figures that are of all images together."""
    measured = result["measured"]
    known = [(label, j) for label, j in zip(measured["label"], measured["jaccard"], strict=True) if j is not None]
    numbers = {
        "image AUROC": float(roc_auc_score(measured["label"], measured["score"])),
        "AUROC of J": float(roc_auc_score(*zip(*known, strict=True))),
    }
    for readout in READOUTS:
        counted = PixelHistogram(max_bins=1 << 13)  # exact bins would take minutes a run
        for map_P, mask in zip(maps[readout], masks, strict=True):
            counted.add(_resized(map_P), mask > 0)
        numbers[f"AUPRO, {readout}"] = float(counted.curve().aupro())
    return numbers


def _resized(map_P: Floats) -> Floats:
    return resize_map(torch.from_numpy(map_P), (GRID, GRID), (IMAGE_SIZE, IMAGE_SIZE)).numpy()


def interval(first: Floats, second: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % interval of first - second [runs, images]: runs and images are both drawn with replacement."""
    difference = first - second
    runs, images = difference.shape
    random = np.random.default_rng(seed)
    means = [
        difference[np.ix_(random.integers(0, runs, runs), random.integers(0, images, images))].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def load_runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """variant -> seed -> per-image values and whole figures; computed once and kept beside the runs."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    masks: list[Floats] = []
    for path in sorted(folder.glob("*-[0-9].json")):
        name, seed = path.stem.rsplit("-", 1)
        kept = path.with_suffix(".values.npz")
        result = json.loads(path.read_text())
        maps = dict(np.load(path.with_suffix(".npz")))
        if not masks:
            samples = held_out(SEEDS[result["split"]], len(result["measured"]["label"]))
            masks = [sample.mask for sample in samples]
        if not kept.exists():
            values = per_image(result, maps, masks) | {
                f"whole: {key}": np.array([value]) for key, value in whole(result, maps, masks).items()
            }
            np.savez(kept, **values)
        runs.setdefault(name, {})[int(seed)] = dict(np.load(kept))
    return runs


def table(runs: dict[str, dict[int, dict[str, Floats]]]) -> str:
    """Markdown: a line a quantity, mean and standard deviation over seeds."""
    keys = list(next(iter(next(iter(runs.values())).values())))
    lines = ["| | " + " | ".join(f"{name} ({len(seeds)})" for name, seeds in runs.items()) + " |"]
    lines.append("|---" * (len(runs) + 1) + "|")
    for key in keys:
        cells = []
        for seeds in runs.values():
            means = [float(values[key].mean()) for values in seeds.values()]
            cells.append(f"{np.mean(means):.3f}" + (f" +- {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""))
        lines.append(f"| {key.removeprefix('whole: ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison(runs: dict[str, dict[int, dict[str, Floats]]], first: str, second: str) -> str:
    """Markdown: first - second in points on the seeds that both have ("start" has one, for all)."""
    seeds = sorted(set(runs[first]) & set(runs[second])) if second != "start" else sorted(runs[first])
    lines = [f"| {first} - {second} | points | 95 % over seeds and images | each seed |", "|---|---|---|---|"]
    keys = [key for key in next(iter(runs[first].values())) if not key.startswith("whole")]
    for key in keys:
        a = np.stack([runs[first][seed][key] for seed in seeds])
        b = np.stack([runs[second].get(seed, next(iter(runs[second].values())))[key] for seed in seeds])
        mean, low, high = (100 * value for value in interval(a, b))
        each = ", ".join(f"{100 * value:+.1f}" for value in (a - b).mean(1))
        lines.append(f"| {key} | {mean:+.1f} | {low:+.1f} to {high:+.1f} | {each} |")
    return "\n".join(lines)


def picture(folder: Path, names: list[str], readout: str, out: Path, count: int = 6) -> None:
    """The first ``count`` anomalous test images: image, mask, and the map of each variant's first run."""
    samples = held_out(SEEDS["test"], 60)
    chosen = [i for i, sample in enumerate(samples) if sample.label][:count]
    figure, axes = plt.subplots(count, 2 + len(names), figsize=(1.5 * (2 + len(names)), 1.5 * count), squeeze=False)
    maps = {name: np.load(sorted(folder.glob(f"{name}-[0-9].npz"))[0])[readout] for name in names}
    for row, i in zip(axes, chosen, strict=True):
        row[0].imshow(samples[i].image)
        row[1].imshow(samples[i].mask, cmap="gray")
        for axis, name in zip(row[2:], names, strict=True):
            axis.imshow(samples[i].image, alpha=0.45)
            axis.imshow(_resized(maps[name][i]), alpha=0.6, cmap="inferno")
    for axis, title in zip(axes[0], ("image", "mask (never read)", *names), strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=64)
    Image.open(out).convert("RGB").quantize(128).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", nargs="*", default=["r1+a,r1"])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--readout", choices=READOUTS, default="both", help="whose maps the picture shows")
    args = parser.parse_args()
    runs = load_runs(args.folder)
    print(table(runs))
    for pair in args.pairs:
        print(f"\n{comparison(runs, *pair.split(','))}")
    if args.picture:
        names = [name for name in ("start", "r1", "r1+a", "r1+shuffled") if name in runs]
        picture(args.folder, names, args.readout, args.picture)


if __name__ == "__main__":
    main()
