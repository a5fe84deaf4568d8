"""The result of an evaluation as tables on the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from realad_verl.data.account import account_lines
from realad_verl.data.depth import Depth
from realad_verl.evaluate.ground_truth import first_of, ground_truth_lines
from realad_verl.report.tables import CATEGORY, Figure, interval_text, percent

TABLES = (("Image and answers, %", ("image", "answers")), ("Pixel, %", ("pixel",)))


def print_results(results: dict[str, Any], out: Path) -> None:
    """Figures by category, their mean, all images pooled; then what could not be used."""
    console = Console()
    named = [*results["categories"].items(), ("macro mean", results["macro_mean"]), ("pooled", results["pooled"])]
    chosen = "kept" if results["predicted_normal"] == "keep" else "zeroed"
    intervals = (results["intervals"] or {}).get(chosen, {})
    for title, groups in TABLES:
        columns = [figure for figure in CATEGORY if figure.group in groups]
        table = Table("category", *(figure.label for figure in columns), title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, figures in named:
            if name == "macro mean":
                table.add_section()
            table.add_row(escape(name), *(_with_ends(figures, f, intervals.get(name, {})) for f in columns))
        console.print(table)
    for line in _remarks(results, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _with_ends(figures: dict[str, Any], figure: Figure, intervals: dict[str, Any]) -> str:
    value, ends = percent(figures.get(figure.group, {}).get(figure.key)), interval_text(intervals.get(figure.key))
    return f"{value}\n{ends}" if ends else value


def _remarks(results: dict[str, Any], out: Path) -> list[str]:
    lines = [f"thresholds: {results['threshold_source']}", *_found(results)]
    lines += first_of("not readable", results["bad_images"], "error")
    misfits = {entry["id"] for entry in results["masks"]["misfits"]}  # said already, each with its reason
    if unmasked := [name for name in results["anomalous_without_mask"] if name not in misfits]:
        lines.append(f"{len(unmasked)} anomalous without a mask, not in the pixel figures: {', '.join(unmasked[:5])}")
    return [*lines, f"Look at it: realad report {out} --out report.html"]


def _found(results: dict[str, Any]) -> list[str]:
    """What was found in the data set's folder, in words."""
    lines = [f"{results['pooled']['image']['n_images']} of {results['n_in_split']} images of split {results['split']}"]
    lines += account_lines(results["account"]) + results["remarks"] + ground_truth_lines(results["masks"])
    depth = results["settings"].get("depth")
    return lines + ([f"images of more than 8 bits: {Depth(**depth)}"] if depth else [])
