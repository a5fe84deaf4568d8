"""``realad report``: run folders -> one HTML page."""

import json
from pathlib import Path
from typing import Annotated

import typer

from realad_verl.commands import options


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `realad evaluate` or of training runs; the first is the baseline.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default="names of the runs")] = None,
    max_images: Annotated[
        int, typer.Option(help="Images in the gallery; of more, the worst half and an even choice of the rest.")
    ] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Write one self-contained HTML page about RUNS: figures, curves, gallery, settings. It needs no network."""
    from realad_verl.report.page import build_report

    made = build_report(runs, out, title=title, max_images=max_images)
    if as_json:
        print(json.dumps(made))
    else:
        print(f"{made['out']}: {made['images']} of {made['images_total']} images, {made['bytes'] / 1e6:.1f} MB")
