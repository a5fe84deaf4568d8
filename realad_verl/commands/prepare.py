"""``realad prepare``: dataset folder -> train.parquet, val.parquet, manifest.json."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from realad_verl.commands import options
from realad_verl.errors import UserError


def prepare(
    dataset: Annotated[str | None, typer.Argument(help="Name of the dataset; see --list.", show_default=False)] = None,
    root: Annotated[Path | None, options.root_option()] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write to.", show_default=False)] = None,
    size: Annotated[int, typer.Option(help="Side of the square images, in pixels (bicubic).")] = 420,
    keep_aspect: Annotated[
        bool, typer.Option("--keep-aspect", help="Keep the images' aspect: --size is their longest side.")
    ] = False,
    split: Annotated[str, typer.Option(help="Take images from this split of the dataset, or from all.")] = "all",
    val_fraction: Annotated[float, typer.Option(help="Share of images (pairs stay together) for val.parquet.")] = 0.1,
    max_per_class: Annotated[
        int | None,
        typer.Option(help="At most this many normal and this many anomalous images in all.", show_default=False),
    ] = None,
    balance: Annotated[bool, typer.Option(help="As many normal as anomalous images in each category.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the choice, the split and the order.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Decoding threads; the result does not depend on it.", show_default="CPU cores")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared directory or manifest that must share no image; may be repeated.", show_default=False
        ),
    ] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop-overlap", help="Leave overlapping images out instead of refusing.")
    ] = False,
    white: Annotated[
        float | None,
        typer.Option(
            help="Images of more than 8 bits: the pixel value that becomes white.",
            show_default="one for the set, from a first pass",
        ),
    ] = None,
    max_bad_share: Annotated[float, typer.Option(help="Share of unusable images that is not yet an error.")] = 0.01,
    overwrite: options.Overwrite = False,
    list_datasets: Annotated[bool, typer.Option("--list", help="List the datasets and stop.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn a dataset's images and image-level labels into training data for veRL. Masks are never read."""
    if list_datasets:
        _print_datasets(as_json)
        return
    if dataset is None or root is None or out is None:
        raise UserError("realad prepare needs DATASET, --root and --out. `realad prepare --list` names the datasets.")
    from realad_verl.commands.progress import progress
    from realad_verl.data.prepare import PrepareSettings
    from realad_verl.data.prepare import prepare as run

    settings = PrepareSettings(
        size=size,
        keep_aspect=keep_aspect,
        split=split,
        val_fraction=val_fraction,
        max_per_class=max_per_class,
        balance=balance,
        seed=seed,
        max_bad_share=max_bad_share,
        against=tuple(against or ()),
        drop_overlap=drop_overlap,
        white=white,
    )
    with progress(transient=True) as bars:
        task = bars.add_task(dataset, total=None)
        result = run(
            dataset,
            root,
            out,
            settings,
            workers=workers if workers is not None else len(os.sched_getaffinity(0)),
            overwrite=overwrite,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        shown = {key: value for key, value in result.items() if key != "images"}
        print(json.dumps({"out": str(out)} | shown, indent=1))
    else:
        _print_result(result, out)


def _print_result(result: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    counts = {(row["split"], row["category"], row["class"]): row["images"] for row in result["counts"]}
    columns = [(split, label) for split in ("train", "val") for label in ("normal", "anomalous")]
    table = Table("category", title=f"{result['dataset']} -> {escape(str(out))}", show_footer=True)
    table.columns[0].footer = "total"
    for split, label in columns:
        total = sum(n for (s, _, name), n in counts.items() if (s, name) == (split, label))
        table.add_column(f"{split} {label}", justify="right", footer=str(total))
    for category in sorted({row["category"] for row in result["counts"]}):
        table.add_row(escape(category), *(str(counts.get((split, category, label), 0)) for split, label in columns))
    console = Console()
    console.print(table)
    console.print("\n".join(_remarks(result)), markup=False, highlight=False)


def _remarks(result: dict[str, Any]) -> list[str]:
    from realad_verl.data.account import account_lines
    from realad_verl.data.depth import Depth

    lines = [f"{name}: {entry['rows']} rows, {entry['bytes'] / 1e6:.1f} MB" for name, entry in result["files"].items()]
    lines += account_lines(result["account"]) + result["remarks"]
    if result["depth"]:
        lines.append(f"images of more than 8 bits: {Depth(**result['depth'])}")
    lines += [f"left out to keep the balance: {c} ({why})" for c, why in result["dropped_categories"].items()]
    lines += [f"skipped: {entry['id']} ({entry['reason']}: {entry['detail']})" for entry in result["skipped"]]
    lines += [f"left out: {entry['id']} is the same as {entry['same_as']}" for entry in result["overlaps_dropped"]]
    for entry in result["duplicates"]:
        what = "labelled both normal and anomalous" if len(entry["labels"]) == 2 else "same content"
        lines.append(f"duplicates, {what}: {', '.join(entry['ids'])}")
    return lines


def _print_datasets(as_json: bool) -> None:
    from realad_verl.data.datasets import DATASETS

    keys = ("name", "title", "kind", "role", "normal", "anomalous", "licence", "source")
    rows = [{key: getattr(dataset, key) for key in keys} for dataset in DATASETS.values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("name", no_wrap=True)
    for head in ("kind", "in the paper", "normal", "anomalous", "licence (check it)", "where to get it"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(value for key, value in row.items() if key != "title"))
    Console().print(table)
