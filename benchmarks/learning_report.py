"""Tables, paired comparison and picture of what ``learning.py`` measured."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]
Runs = list[dict[str, Any]]
SMOOTH = 10  # steps averaged in the picture
COLORS = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]


def table(results: dict[str, Runs]) -> str:
    """Markdown: one line a quantity, mean and standard deviation over seeds."""
    keys = list(next(iter(results.values()))[0]["summary"])
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for key in keys:
        cells = []
        for runs in results.values():
            values = [run["summary"][key] for run in runs]
            cells.append(f"{np.mean(values):.3f}" + (f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""))
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_image(measured: dict[str, Any], quantity: str) -> Floats:
    """One value an image: the share of right answers; else ``measured[quantity]`` where it is known (anomalous images).

    "accuracy" is that of the greedy answer, "accuracy_sampled" the mean over the answers sampled at temperature 1.
    """
    if quantity.startswith("accuracy"):
        answer = np.array(measured["answer" if quantity == "accuracy" else "sampled"]).reshape(
            len(measured["label"]), -1
        )
        return (np.array(measured["label"])[:, None] == answer).mean(1)
    return np.array([value for value in measured[quantity] if value is not None], dtype=float)


def paired(first: Runs, second: Runs, quantity: str) -> dict[str, Any]:
    """``first`` less ``second`` on the same images: the mean, a 95 % interval over images, each seed's mean.

    Runs are paired in order (the same seeds). The interval bootstraps images (BCa, 9,999 draws) with the runs held
    fixed: it says how far these models differ on other images, and nothing about other seeds; the seeds' means do.
    """
    difference = np.stack(
        [
            per_image(a["measured"], quantity) - per_image(b["measured"], quantity)
            for a, b in zip(first, second, strict=True)
        ]
    )
    mean = difference.mean(0)
    low = high = float(mean.mean())
    if np.ptp(mean) > 0:
        interval = bootstrap((mean,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"mean": float(mean.mean()), "low": low, "high": high, "seeds": difference.mean(1).tolist()}


def paired_ranking(first: Runs, second: Runs, quantity: str) -> dict[str, Any]:
    """As `paired`, for how well a score tells the classes apart: AUROC of ``quantity`` for the label, no score as 0.

    The interval is of percentiles, over 2,000 resamples of the images of each class.
    """
    label = np.array(first[0]["measured"]["label"])
    scores = [[np.nan_to_num(np.array(r["measured"][quantity], float)) for r in runs] for runs in (first, second)]
    places = [np.flatnonzero(label == value) for value in (0, 1)]
    random = np.random.default_rng(0)

    def differences(at: NDArray[np.int64]) -> list[float]:
        return [
            float(roc_auc_score(label[at], a[at]) - roc_auc_score(label[at], b[at]))
            for a, b in zip(*scores, strict=True)
        ]

    drawn = [
        np.mean(differences(np.concatenate([random.choice(part, len(part)) for part in places]))) for _ in range(2000)
    ]
    seeds = differences(np.arange(len(label)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(np.mean(seeds)), "low": float(low), "high": float(high), "seeds": seeds}


def comparison(results: dict[str, Runs], pairs: list[tuple[str, str]]) -> str:
    """Markdown of `paired` and `paired_ranking` in points (hundredths): accuracies, maps, image scores and J."""
    known = next(iter(results.values()))[0]["measured"]
    of_images = (
        "accuracy",
        "accuracy_sampled",
        "auroc_all",
        "auroc_both",
        "ap_both",
        "auroc_calibrated",
        "ap_calibrated",
    )
    rankings = ("score", "jaccard", "jaccard_calibrated")
    lines = ["| | quantity | points | 95 % over images | each seed |", "|---|---|---|---|---|"]
    for first, second in pairs:
        runs = results[first], results[second]
        found = {q: paired(*runs, q) for q in of_images if q.startswith("accuracy") or q in known}
        found |= {f"AUROC of {q}": paired_ranking(*runs, q) for q in rankings if q in known}
        for quantity, one in found.items():
            seeds = ", ".join(f"{100 * value:+.1f}" for value in one["seeds"])
            cells = f"{100 * one['mean']:+.1f} | {100 * one['low']:+.1f} to {100 * one['high']:+.1f} | {seeds}"
            name = quantity.replace("auroc_", "pixel AUROC, ").replace("ap_", "pixel AP, ")
            lines.append(f"| {first} - {second} | {name} | {cells} |")
    return "\n".join(lines)


def by_surface(surfaces: list[str], results: dict[str, Runs]) -> str:
    """Markdown: share of "yes" among sampled answers, normal / anomalous images of each surface (one name an image)."""
    lines = ["| surface | images | " + " | ".join(results) + " |", "|---" * (len(results) + 2) + "|"]
    for surface in sorted(set(surfaces)):
        here = np.array([name == surface for name in surfaces])
        cells = []
        for runs in results.values():
            yes = np.mean([(np.array(run["measured"]["sampled"]) == 1).mean(1) for run in runs], axis=0)
            label = np.array(runs[0]["measured"]["label"])
            cells.append(" / ".join(f"{yes[here & (label == value)].mean():.2f}" for value in (0, 1)))
        lines.append(f"| {surface} | {here.sum()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve(paths: list[Path], key: str) -> Floats:
    """A logged quantity of runs, smoothed over ``SMOOTH`` steps: [runs, steps - SMOOTH + 1]"""
    logged = np.array([[json.loads(line)[key] for line in path.read_text().splitlines()] for path in paths])
    return np.apply_along_axis(np.convolve, 1, logged, np.full(SMOOTH, 1 / SMOOTH), "valid")


def plot(logs: dict[str, list[Path]], results: dict[str, Runs], out: Path) -> None:
    """Curves over the steps (mean over seeds, band: +- 1 sd), and J of the held-out images by class."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for color, (name, paths) in zip(COLORS, logs.items(), strict=False):
        _line(axes[0, 0], curve(paths, "accuracy"), color, name)
        _line(axes[0, 1], curve(paths, "kl"), color, name)
        _line(axes[1, 0], curve(paths, "jaccard_1"), color, name)
        _line(axes[1, 0], curve(paths, "jaccard_0"), color, None, "--")
    axes[0, 0].set(title="accuracy of the sampled responses, training images")
    axes[0, 1].set(title="KL to the warm start, nats a token", yscale="log")
    axes[1, 0].set(title="J, training images: anomalous (solid), normal (dashed)", xlabel="step")
    axes[0, 0].legend(fontsize=8)
    _jaccard_boxes(axes[1, 1], results)
    for axis in axes.flat:
        axis.title.set_fontsize(9)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def _jaccard_boxes(axis: Any, results: dict[str, Runs]) -> None:
    """J of every held-out image and seed, side by side: normal, then anomalous."""
    for i, runs in enumerate(results.values()):
        label = np.concatenate([run["measured"]["label"] for run in runs])
        jaccard = np.concatenate([np.array(run["measured"]["jaccard"], dtype=float) for run in runs])
        known = np.isfinite(jaccard)
        by_class = [jaccard[known & (label == value)] for value in (0, 1)]
        boxes = axis.boxplot(by_class, positions=[i - 0.2, i + 0.2], widths=0.3, patch_artist=True, sym="")
        for box, shade in zip(boxes["boxes"], ("white", "lightgray"), strict=True):
            box.set_facecolor(shade)
    axis.set_xticks(range(len(results)), list(results), fontsize=8)
    axis.set(title="J, held-out images: normal (white), anomalous (gray)")


def _line(axis: Any, runs: Floats, color: Any, name: str | None, style: str = "-") -> None:
    """The mean of ``runs`` [runs, steps] and its band."""
    steps, mean = np.arange(runs.shape[1]) + SMOOTH, runs.mean(0)
    axis.plot(steps, mean, style, color=color, label=name)
    if len(runs) > 1:
        spread = runs.std(0, ddof=1)
        axis.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
