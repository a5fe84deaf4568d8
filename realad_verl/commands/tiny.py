"""``realad tiny``: the tiny backbone that ships with the package, and the procedural images it learned from."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from realad_verl.commands import options
from realad_verl.errors import UserError, bad_value
from realad_verl.tiny.build import build as build_model
from realad_verl.tiny.config import TrainConfig

app = typer.Typer(help="The tiny backbone and its procedural images.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write the model to.", show_default=False)],
    steps: Annotated[int, typer.Option(help="Steps in which the language model learns to talk.")] = TrainConfig.steps,
    naming_steps: Annotated[
        int, typer.Option(help="Steps before, in which the vision tower learns to name.")
    ] = TrainConfig.naming_steps,
    joint_steps: Annotated[
        int, typer.Option(help="Steps after, in which both learn together.")
    ] = TrainConfig.joint_steps,
    batch: Annotated[int, typer.Option(help="Images a step.")] = TrainConfig.batch,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the images and the wordings.")] = TrainConfig.seed,
    threads: Annotated[int, typer.Option(help="Threads of the training; one more process draws the images.")] = 2,
    report_images: Annotated[int, typer.Option(help="Held-out images a domain for the report.")] = 256,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Warm-start the tiny backbone by captions on procedural images, measure it and write it with its model card."""
    counts = {"steps": steps, "naming-steps": naming_steps, "joint-steps": joint_steps, "batch": batch}
    for name, value in (counts | {"threads": threads, "report-images": report_images}).items():
        if value < 1:
            raise bad_value(name, value, "1 or more")
    # The drawing process needs a core now and then; threads that wait for a displaced one should not burn theirs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.set_num_threads(threads)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=steps + naming_steps + joint_steps)

        def on_step(step: int, losses: dict[str, float]) -> None:
            parts = ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
            progress.update(task, completed=step, description=f"loss: {parts}")

        cfg = TrainConfig(steps=steps, naming_steps=naming_steps, joint_steps=joint_steps, batch=batch, seed=seed)
        report = build_model(out, cfg, report_images=report_images, overwrite=overwrite, on_step=on_step)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print_report(report, out)


@app.command()
def images(
    out: Annotated[Path, typer.Option(help="Folder to make: normal/, anomalous/, masks/.", show_default=False)],
    count: Annotated[int, typer.Option(help="Images in all, half of them anomalous.")] = 200,
    domain: Annotated[str, typer.Option(help="source (what the tiny backbone learned) or shifted.")] = "shifted",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 168,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    start: Annotated[int, typer.Option(help="Index of the first image, to cut splits from one sequence.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Write procedural images in the plain folder layout that ``realad prepare folder`` reads."""
    from realad_verl.data.procedural import write_folder

    if start < 0:
        raise bad_value("start", start, "0 or more")
    counts = write_folder(out, count, domain=domain, size=size, seed=seed, start=start)
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(f"{out}: {counts['normal']} normal, {counts['anomalous']} anomalous with masks")


@app.command()
def path() -> None:
    """Print the folder of the shipped tiny model."""
    from realad_verl.tiny import tiny_model_dir

    folder = tiny_model_dir()
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} holds no model. Build one: realad tiny build --out {folder} --overwrite")
    typer.echo(str(folder))


def _print_report(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from realad_verl.tiny.build import CARD_ROWS

    table = Table(title=f"{out}: {report['parameters']:,} parameters, {report['seconds']} s of training")
    for column in ("", "source", "shifted"):
        table.add_column(column, justify="left" if not column else "right")
    for name, key in CARD_ROWS:
        table.add_row(name, *(f"{report[domain][key]:.3f}" for domain in ("source", "shifted")))
    for select in report["source"]["map_auroc"]:
        values = (f"{report[domain]['map_auroc'][select]:.3f}" for domain in ("source", "shifted"))
        table.add_row(f"pixel AUROC of the ReAL map, tokens: {select}", *values)
    Console().print(table)
