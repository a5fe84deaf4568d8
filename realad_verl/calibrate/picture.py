"""One picture of a calibration: J by class before and after, the heads, and maps of a few anomalous images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realad_verl.calibrate.figures import Figures, Scored
from realad_verl.calibrate.heads import Choice

COLOURS = {0: "tab:blue", 1: "tab:orange"}
NAMES = {0: "normal", 1: "anomalous"}


@dataclass(frozen=True)
class Shown:
    """An anomalous image with its maps [rows, cols] of the two read-outs, the mean over its responses."""

    image: Image.Image
    default: np.ndarray
    calibrated: np.ndarray


def draw(
    path: Path,
    readouts: Sequence[tuple[str, Scored, Figures, tuple[float, float]]],
    choice: Choice,
    shown: Sequence[Shown],
) -> None:
    """Write the picture. ``readouts``: (title, responses, figures, (delta_1, delta_2)) of default and calibrated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2 + 4.6 * bool(shown)), dpi=90, layout="constrained")
    top, *below = figure.subfigures(1 + bool(shown), 1, height_ratios=[3.2, 4.6][: 1 + bool(shown)], squeeze=False)[
        :, 0
    ]
    axes = top.subplots(1, 3)
    for axis, (title, scored, found, deltas) in zip(axes, readouts, strict=False):
        _by_class(axis, scored, deltas)
        axis.set_title(f"J, {title}: AUROC {found.auroc:.2f}", fontsize=10)
    _heads(axes[2], choice)
    if shown:
        rows = below[0].subplots(3, len(shown), squeeze=False)
        for column, one in enumerate(shown):
            for axis, picture in zip(rows[:, column], (one.image, one.default, one.calibrated), strict=True):
                axis.imshow(picture, cmap=None if picture is one.image else "inferno")
                axis.set_xticks([])
                axis.set_yticks([])
        for axis, name in zip(rows[:, 0], ("anomalous image", "default map", "calibrated map"), strict=True):
            axis.set_ylabel(name, fontsize=9)
    figure.savefig(path)


def _by_class(axis: Any, scored: Scored, deltas: tuple[float, float]) -> None:
    known = np.isfinite(scored.jaccard_In)
    top = max(0.02, float(scored.jaccard_In[known].max())) if known.any() else 1.0
    for label, name in NAMES.items():
        values = scored.jaccard_In[scored.label_I == label]
        axis.hist(
            values[np.isfinite(values)], bins=np.linspace(0, top, 26), alpha=0.6, color=COLOURS[label], label=name
        )
    for delta, style, name in zip(deltas, ("--", ":"), ("delta_1", "delta_2"), strict=True):
        if delta <= top:
            axis.axvline(delta, color="black", linestyle=style, linewidth=1, label=name)
    outside = [
        f"{name} = {delta:.2f}" for delta, name in zip(deltas, ("delta_1", "delta_2"), strict=True) if delta > top
    ]
    axis.set_xlabel("J of a response" + (f" (outside: {', '.join(outside)})" if outside else ""), fontsize=8)
    axis.set_ylabel("responses", fontsize=8)
    axis.legend(fontsize=7)


def _heads(axis: Any, choice: Choice) -> None:
    order = np.argsort(-choice.auroc_H, kind="stable")
    chosen = np.isin(order, choice.heads)
    axis.bar(np.arange(len(order)), choice.auroc_H[order], color=np.where(chosen, "tab:green", "lightgray"))
    axis.axhline(0.5, color="black", linewidth=0.8)
    axis.set_ylim(min(0.4, float(choice.auroc_H.min()) - 0.02), max(0.6, float(choice.auroc_H.max()) + 0.02))
    axis.set_title(f"AUROC of each head's contrast; {len(choice.heads)} chosen", fontsize=10)
    axis.set_xlabel("heads, best first", fontsize=8)
