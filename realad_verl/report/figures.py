"""Figures as SVG that follow the page's theme: drawn in placeholder colours, which become CSS variables."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from markupsafe import Markup

from realad_verl.report.load import Run

# Placeholder -> CSS variable of report.css. The placeholders are colours that nothing else uses.
_INK, _MUTED, _LINE, _CARD = "#010203", "#020304", "#030405", "#040506"
SERIES = tuple(f"#0{k}0607" for k in range(1, 7))
_NORMAL, _ANOMALOUS = "#070809", "#08090a"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _CARD: "--card"}
_VARIABLES |= {colour: f"--series-{k}" for k, colour in enumerate(SERIES, 1)}
_VARIABLES |= {_NORMAL: "--normal", _ANOMALOUS: "--anomalous"}
_RC = {
    **{"svg.fonttype": "none", "font.size": 9, "text.color": _INK, "axes.labelcolor": _MUTED, "axes.edgecolor": _LINE},
    **{"xtick.color": _MUTED, "ytick.color": _MUTED, "axes.facecolor": "none", "figure.facecolor": "none"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _LINE},
    **{"grid.linewidth": 0.7, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.titlecolor": _INK, "legend.frameon": False, "legend.fontsize": 8, "xtick.major.size": 0},
    **{"ytick.major.size": 0, "lines.linewidth": 1.8, "axes.axisbelow": True, "svg.hashsalt": "realad"},
}
_CURVES = (  # level, curve, title, x label, y label
    ("image", "roc", "Image ROC", "false positive rate", "true positive rate"),
    ("image", "pr", "Image precision-recall", "recall", "precision"),
    ("pixel", "roc", "Pixel ROC", "false positive rate", "true positive rate"),
    ("pixel", "pr", "Pixel precision-recall", "recall", "precision"),
    ("pixel", "pro", "Per-region overlap", "false positive rate", "mean region overlap"),
)


@contextmanager
def _axes(title: str, size: tuple[float, float] = (3.5, 2.7), mark: str = "") -> Iterator[tuple[Any, list[Markup]]]:
    """An Axes to draw on and a list that holds the finished SVG afterwards; title and ``mark`` together are unique."""
    import matplotlib
    from matplotlib.figure import Figure

    out: list[Markup] = []
    with matplotlib.rc_context(cast(Any, _RC)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes, out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        out.append(_themed(buffer.getvalue(), title, mark))


def _themed(svg: str, title: str, mark: str) -> Markup:
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", svg)
    # Ids are unique in one figure only, and the page holds several.
    mark = re.sub(r"\W+", "-", f"{title} {mark}".lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}"', 1))


def curve_figures(runs: Sequence[Run], variant: str | None) -> list[Markup]:
    """ROC, PR and PRO curves. One run: its categories thin, pooled bold; several: each run's pooled curve.

    ``variant``: "kept" or "zeroed" gives the pixel curves with the maps of images called normal so; None the image's.
    """
    figures = []
    for level, curve, title, x_label, y_label in _CURVES:
        if (level == "pixel") != (variant is not None):
            continue
        lines = _curve_lines(runs, level if variant is None else f"{level}_{variant}", curve)
        if not lines:
            continue
        with _axes(title, mark=variant or "") as (axes, out):
            for label, points, style in lines:
                axes.plot(*np.array(points).T, label=label, **style)
            limit = max((run.results or {}).get("fpr_limit", 0) for run in runs) if curve == "pro" else 1.0
            axes.set(xlim=(0, limit), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
            if curve == "roc":
                axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            if any(label and not label.startswith("_") for label, _, _ in lines):
                axes.legend(loc="best")
        figures.append(out[0])
    return figures


def score_figure(runs: Sequence[Run]) -> list[Markup]:
    """How pred_score spreads over normal and anomalous images of the one run; nothing for several runs."""
    evaluated = [run for run in runs if run.results]
    rows = [row for run in evaluated for view in run.views for row in view.rows.values()]
    if len(evaluated) != 1 or not rows:
        return []
    with _axes("Score by true class") as (axes, out):
        for label, name, colour in ((0, "normal", _NORMAL), (1, "anomalous", _ANOMALOUS)):
            scores = [r["pred_score"] for r in rows if r["gt_label"] == label and r["pred_score"] is not None]
            bins = np.linspace(0, 1, 21).tolist()
            axes.hist(scores, bins=bins, color=colour, alpha=0.6, label=f"{name} ({len(scores)})", linewidth=0)
        axes.set(xlim=(0, 1), xlabel="pred_score", ylabel="images")
        axes.margins(y=0.2)
        axes.legend(loc="upper center", ncols=2)
    return out


def _curve_lines(runs: Sequence[Run], level: str, curve: str) -> list[tuple[str, list, dict[str, Any]]]:
    lines: list[tuple[str, list, dict[str, Any]]] = []
    evaluated = [run for run in runs if run.results]
    for k, run in enumerate(evaluated):
        results = run.results or {}
        if len(evaluated) == 1 and len(results["categories"]) > 1:
            few = len(results["categories"]) <= 5
            for j, (name, category) in enumerate(results["categories"].items()):
                points = category["curves"][level].get(curve)
                if points:
                    colour = SERIES[(j + 1) % len(SERIES)] if few else _MUTED
                    style = {"color": colour, "linewidth": 1.1 if few else 0.7, "alpha": 0.9 if few else 0.5}
                    lines.append((name if few else "_" + name, points, style))
        points = results["pooled"]["curves"][level].get(curve)
        if points:
            label = run.name if len(evaluated) > 1 else "pooled"
            lines.append((label, points, {"color": SERIES[k % len(SERIES)], "linewidth": 2.2}))
    if len(lines) == 1 and len(evaluated) == 1:
        lines = [("", lines[0][1], lines[0][2])]
    return lines


VALIDATION = ("val/image_auroc", "val/image_ap", "val/jaccard_auroc", "val/well_formed")
LABELS = {"val/image_auroc": "image AUROC", "val/image_ap": "image AP", "val/jaccard_auroc": "AUROC of J"}


def training_figures(runs: Sequence[Run]) -> list[Markup]:
    """Each figure that was logged by class (``GROUP/NAME/<normal|anomalous>``), one of validations, one of times."""
    trained = [run for run in runs if run.steps]
    keys = {key for run in trained for step in run.steps for key in step}
    names = sorted({k.rsplit("/", 1)[0] for k in keys if k.rsplit("/", 1)[-1] in ("normal", "anomalous")}, key=_order)
    figures = []
    for name in names:
        with _axes(_panel_title(name)) as (axes, out):
            for k, run in enumerate(trained):
                for part, dashes, colour in (("anomalous", "-", _ANOMALOUS), ("normal", "--", _NORMAL)):
                    label = part if len(trained) == 1 else f"{run.name}, {part}"
                    colour = colour if len(trained) == 1 else SERIES[k % len(SERIES)]
                    line = "-" if len(trained) == 1 else dashes
                    _plot_steps(axes, run.steps, f"{name}/{part}", label, colour, line)
            axes.set_xlabel("step")
            axes.locator_params(axis="x", integer=True)
            axes.margins(y=0.12)
            axes.legend(loc="best")
        figures.append(out[0])
    validation = [key for key in VALIDATION if key in keys]
    several = (("Validation", validation, {}), ("Time, seconds a step", _time_keys(trained), {"ylim": (0, None)}))
    return figures + [_together(title, shown, trained, axis) for title, shown, axis in several if shown]


def _together(title: str, keys: Sequence[str], runs: Sequence[Run], axis: dict[str, Any]) -> Markup:
    """Several figures that were logged by step in one panel; a run more than one by its dashes."""
    with _axes(title) as (axes, out):
        for j, key in enumerate(keys):
            for k, run in enumerate(runs):
                name = LABELS.get(key, key.split("/", 1)[1].replace("_", " "))
                label = name if len(runs) == 1 else f"{run.name}, {name}"
                _plot_steps(axes, run.steps, key, label, SERIES[j], ("-", "--", ":", "-.")[k % 4])
        axes.set(xlabel="step", **axis)
        axes.locator_params(axis="x", integer=True)
        axes.legend(loc="best")
    return out[0]


def _time_keys(runs: Sequence[Run]) -> list[str]:
    """The logged times that take longest on average, as many as there are colours (verl logs dozens)."""
    seen: dict[str, list[float]] = {}
    for step in (step for run in runs for step in run.steps):
        for key, value in step.items():
            if key.startswith(("time/", "timing_s/")) and value is not None:
                seen.setdefault(key, []).append(value)
    return sorted(seen, key=lambda k: -float(np.mean(seen[k])))[: len(SERIES)]


def _plot_steps(axes: Any, steps: list[dict[str, Any]], key: str, label: str, colour: str, line: str) -> None:
    points = np.array([(s["step"], s[key]) for s in steps if s.get(key) is not None], float)
    if not len(points):
        return
    x, y = points.T
    if len(x) > 40:  # the raw line is noise: show it faint, and a moving average over it
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
        width = max(5, len(x) // 25)
        kernel = np.ones(width)
        y = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    axes.plot(x, y, color=colour, linestyle=line, label=label, marker="o" if len(x) < 3 else None)


def _order(name: str) -> tuple[int, str]:
    order = ("reward/format", "reward/accuracy", "reward/consistency", "reward/total", "evidence/jaccard")
    return (order.index(name) if name in order else len(order), name)


def _panel_title(name: str) -> str:
    titles = {
        "evidence/jaccard": "Evidence: Jaccard J of regions",
        "val/jaccard": "Validation: Jaccard J of regions",
        "val/accuracy": "Validation: accuracy",
        "attention_loss": "Loss on the attention",
    }
    group, _, rest = name.partition("/")
    return titles.get(name, f"{group.capitalize()}: {rest.replace('_', ' ').replace('/', ', ')}")
