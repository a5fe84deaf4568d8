"""``realad demo``: the whole path once, on this machine: images, evaluation, CGRO training, evaluation, report."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from realad_verl.commands import options
from realad_verl.errors import UserError

RECIPE = "local/cgro_tiny_cpu"
SIZE = 168  # what the tiny backbone was trained at, in pixels
RESULTS = (
    ("image ACC", "image", "image_acc"),
    ("image AUROC", "image", "image_auroc"),
    ("pixel AUROC", "pixel", "pixel_auroc"),
    ("pixel AUPR", "pixel", "pixel_aupr"),
    ("well-formed answers", "answers", "well_formed"),
)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the demo; must be new.", show_default="outputs/demo-DATE-TIME")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 24,
    images: Annotated[int, typer.Option(help="Procedural images to train on.", min=16)] = 256,
    test_images: Annotated[int, typer.Option(help="Images of each evaluation.", min=4)] = 64,
    dataset: Annotated[
        str | None, typer.Option(help="Data set with train and test splits.", show_default="procedural images")
    ] = None,
    root: Annotated[Path | None, options.root_option()] = None,
) -> None:
    """Train the tiny backbone with CGRO on Ray, verl, FSDP2 and vLLM on a CPU, evaluate before and after, compare."""
    if (dataset is None) != (root is None):
        raise UserError("--dataset and --root go together. Give both, or neither for procedural images.")
    from realad_verl.data.datasets import get_dataset
    from realad_verl.data.datasets.base import ALL
    from realad_verl.tiny import tiny_model_dir

    if dataset is not None and get_dataset(dataset).test_split == ALL:
        raise UserError(f"--dataset {dataset} has no test split, so the demo would test on what it trained on.")
    folder = (out or Path("outputs") / time.strftime("demo-%Y%m%d-%H%M%S")).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out = {folder} is not empty. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    run = _Steps(folder)
    name, roots, split = dataset or "folder", (root, root), ["--split", "train"]
    if dataset is None:
        roots, split = (folder / "images" / "train", folder / "images" / "test"), []
        run("drawing images", "tiny", "images", "--out", roots[0], "--count", images, "--size", SIZE)
        where = ["--count", test_images, "--start", images]
        run("drawing test images", "tiny", "images", "--out", roots[1], "--size", SIZE, *where)
    data = folder / "data"
    bounds = ["--size", SIZE, "--max-per-class", images // 2]
    run("preparing training data", "prepare", name, "--root", roots[0], "--out", data, *bounds, *split)
    test = [name, "--root", roots[1], "--limit", test_images, "--image-size", SIZE, "--max-new-tokens", 64]
    test += ["--engine", "transformers", "--device", "cpu"]
    run("evaluating before", "evaluate", *test, "--model", tiny_model_dir(), "--out", folder / "before")
    run("training with CGRO", "train", RECIPE, *_overrides(folder / "cgro", data, steps))
    run("evaluating after", "evaluate", *test, "--model", folder / "cgro", "--out", folder / "after")
    page = folder / "report.html"
    runs = [folder / "before", folder / "after", folder / "cgro"]
    run("writing the report", "report", *runs, "--out", page, "--title", "realad demo")
    typer.echo(f"\nreport: {page}")
    for line in result_lines(_pooled(folder / "before"), _pooled(folder / "after")):
        typer.echo(line)


def _overrides(run: Path, data: Path, steps: int) -> list[str]:
    """What the demo changes in the recipe."""
    return [
        f"data.train_files={data / 'train.parquet'}",
        f"data.val_files={data / 'val.parquet'}",
        f"trainer.default_local_dir={run}",
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={steps}",
    ]


def result_lines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Five figures in percent, before -> after training; a figure that does not exist is a dash."""

    def percent(results: dict[str, Any], group: str, key: str) -> str:
        value = results.get(group, {}).get(key)
        return "-" if value is None else f"{100 * value:.1f}"

    return [
        f"{label:<20} {percent(before, group, key):>5} -> {percent(after, group, key):>5} %"
        for label, group, key in RESULTS
    ]


def _pooled(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["pooled"]


class _Steps:
    """Runs `realad` commands one after another: progress on the terminal, tables in ``log.txt``."""

    def __init__(self, folder: Path) -> None:
        self.log, self.start = folder / "log.txt", time.monotonic()

    def __call__(self, title: str, *arguments: object) -> None:
        """Run one command; its failure ends the demo with its exit code."""
        command = [sys.executable, "-m", "realad_verl.cli", *map(str, arguments)]
        elapsed = time.monotonic() - self.start
        print(f"[{elapsed / 60:4.1f} min] {title}: realad {' '.join(command[3:])}", file=sys.stderr, flush=True)
        with self.log.open("a") as log:
            done = subprocess.run(command, stdout=log, env={"OMP_NUM_THREADS": "1"} | os.environ)
        if done.returncode:
            print(f"error: '{title}' failed; output is in {self.log}", file=sys.stderr)
            raise typer.Exit(done.returncode)
