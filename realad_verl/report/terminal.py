"""The result of an evaluation as tables on the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from realad_verl.data.account import account_lines
from realad_verl.data.depth import Depth
from realad_verl.evaluate.ground_truth import ground_truth_lines
from realad_verl.report.tables import CATEGORY, percent

TABLES = (("Image and answers, %", ("image", "answers")), ("Pixel, %", ("pixel",)))


def print_results(results: dict[str, Any], out: Path) -> None:
    """Figures by category, their mean, all images pooled; then what could not be used."""
    console = Console()
    named = [*results["categories"].items(), ("macro mean", results["macro_mean"]), ("pooled", results["pooled"])]
    for title, groups in TABLES:
        columns = [column for column in CATEGORY if column[0] in groups]
        table = Table("category", *(label for _, _, label in columns), title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, figures in named:
            if name == "macro mean":
                table.add_section()
            table.add_row(escape(name), *(percent(figures.get(group, {}).get(key)) for group, key, _ in columns))
        console.print(table)
    for line in _remarks(results, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _remarks(results: dict[str, Any], out: Path) -> list[str]:
    lines = [f"thresholds: {results['threshold_source']}", *_found(results)]
    lines += [f"not readable: {entry['id']} ({entry['error']})" for entry in results["bad_images"]]
    if results["anomalous_without_mask"]:
        names = ", ".join(results["anomalous_without_mask"][:5])
        lines.append(f"anomalous without a mask, not in the pixel figures: {names}")
    return [*lines, f"Look at it: realad report {out} --out report.html"]


def _found(results: dict[str, Any]) -> list[str]:
    """What was found in the data set's folder, in words."""
    lines = [f"{results['pooled']['image']['n_images']} of {results['n_in_split']} images of split {results['split']}"]
    lines += account_lines(results["account"]) + results["remarks"] + ground_truth_lines(results["masks"])
    depth = results["settings"].get("depth")
    return lines + ([f"images of more than 8 bits: {Depth(**depth)}"] if depth else [])
