"""``realad demo``: the whole path once, on this machine: images, evaluation, calibration, CGRO, evaluation, report."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from realad_verl.commands import options
from realad_verl.errors import UserError

if TYPE_CHECKING:
    from realad_verl.report.load import Run

PAID = "reward/consistency/anomalous"
SIZE = 168  # what the tiny backbone was trained at, in pixels
# `--learn`: what benchmarks/learning.py found to teach this backbone, in one pass over the images.
BATCH = 48
LEARN = (
    f"data.train_batch_size={BATCH}",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.optim.lr=4.0e-4",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=4",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_coef=0.005",
    "trainer.n_gpus_per_node=2",  # ranks: a core each
)
# Figures of the closing lines, keys of realad_verl.report.tables.HEADLINE.
SHOWN = ("image_acc", "sampled_acc", "image_auroc", "pixel_auroc", "pixel_aupr", "pixel_aupro")
SHOWN += ("jaccard_anomalous", "jaccard_normal")


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the demo; must be new.", show_default="outputs/demo-DATE-TIME")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps.", min=1, show_default="24; with --learn 40")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Procedural images to train on.", min=16, show_default="256; with --learn 48 a step"),
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(help="Images of each evaluation.", min=4, show_default="200; with --learn 400")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set with train and test splits.", show_default="procedural images")
    ] = None,
    root: Annotated[Path | None, options.root_option()] = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="Larger batches, so that sampled answers get better; 25 minutes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the training images and of the training.", min=0)] = 0,
) -> None:
    """Calibrate the tiny backbone, train it with CGRO on Ray, verl, FSDP2 and vLLM on a CPU, evaluate in between."""
    _refuse_without_test_images(dataset, root)
    from realad_verl.tiny import tiny_model_dir

    steps, test_images = steps or (40 if learn else 24), test_images or (400 if learn else 200)
    images = images or (math.ceil(BATCH * steps / 0.9) if learn else 256)  # a tenth is for val.parquet
    folder = (out or Path("outputs") / time.strftime("demo-%Y%m%d-%H%M%S")).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out = {folder} is not empty. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    run = _Steps(folder)
    name, roots, split = dataset or "folder", (root, root), ["--split", "train"]
    if dataset is None:
        roots, split = (folder / "images" / "train", folder / "images" / "test"), []
        draw = ["tiny", "images", "--size", SIZE, "--seed", seed]
        run("drawing images", *draw, "--out", roots[0], "--count", images)
        run("drawing test images", *draw, "--out", roots[1], "--count", test_images, "--start", images)
    data, calibration, trained = folder / "data", folder / "calibration", folder / "cgro"
    bounds = ["--size", SIZE, "--max-per-class", images // 2]
    run("preparing training data", "prepare", name, "--root", roots[0], "--out", data, *bounds, *split)
    tiny, here = tiny_model_dir(), ["--engine", "transformers", "--device", "cpu", "--max-new-tokens", 64]
    test = ["evaluate", name, "--root", roots[1], "--limit", test_images, "--image-size", SIZE, *here]
    test += ["--samples", 4] if learn else []
    evaluated = [folder / "before", folder / "calibrated", folder / "after"]
    run("evaluating before", *test, "--model", tiny, "--out", evaluated[0])
    how = ["--images", 160, "--n", 4, "--seed", seed, *here]
    run("calibrating", "calibrate", data / "train.parquet", "--model", tiny, "--out", calibration, *how)
    run("evaluating calibrated", *test, "--model", tiny, "--calibration", calibration, "--out", evaluated[1])
    settings = [*_overrides(trained, data, steps, seed), *(LEARN if learn else ())]
    run("training with CGRO", "train", calibration / "calibration.yaml", *settings)
    run("evaluating after", *test, "--model", trained, "--out", evaluated[2])
    page = folder / "report.html"
    run("writing the report", "report", *evaluated, trained, "--out", page, "--title", "realad demo")
    _closing_lines(evaluated, trained)
    typer.echo(f"\nreport: {page}")


def _refuse_without_test_images(dataset: str | None, root: Path | None) -> None:
    if (dataset is None) != (root is None):
        raise UserError("--dataset and --root go together. Give both, or neither for procedural images.")
    from realad_verl.data.datasets import get_dataset
    from realad_verl.data.datasets.base import ALL

    if dataset is not None and get_dataset(dataset).test_split == ALL:
        raise UserError(f"--dataset {dataset} has no test split, so the demo would test on what it trained on.")


def _closing_lines(evaluated: list[Path], trained: Path) -> None:
    """What the calibration changed, what the training changed, and whom the reward paid."""
    from realad_verl.report.load import load_run

    before, calibrated, after = (load_run(folder) for folder in evaluated)
    typer.echo("\ncalibrated read-out, the same model and answers:")
    for line in changes(before, calibrated):
        typer.echo(line)
    typer.echo("\ntrained with CGRO, calibrated read-out:")
    for line in changes(calibrated, after):
        typer.echo(line)
    paid = [step[PAID] for step in load_run(trained).steps if PAID in step]
    if paid:
        typer.echo(f"\nconsistency reward of anomalous images: paid to {100 * fmean(paid):.0f} % of their responses")


def changes(first: "Run", second: "Run") -> list[str]:
    """A line a figure on the images of both, in percent: first -> second, the difference, its paired 95 % interval."""
    from realad_verl.evaluate.compare import compare
    from realad_verl.report.tables import comparison_headline

    runs, lines = [first, second], []
    compared = compare([run.evaluated() for run in runs])
    if compared.refused:
        raise UserError(f"{first.name} and {second.name} are not compared: {compared.refused}.")
    for entry in comparison_headline(runs, compared, "kept"):
        old, new = entry["cells"]
        if entry["key"] not in SHOWN or new["verdict"] == "":  # "": the same, or no figure
            continue
        noise = "  within noise" if new["verdict"] == "noise" else ""
        values = f"{old['value']:>5} -> {new['value']:>5} %  {new['delta']:>6} {new['interval']}"
        lines.append(f"  {entry['label']:<14} {values}{noise}")
    return lines


def _overrides(run: Path, data: Path, steps: int, seed: int) -> list[str]:
    """What the demo changes in the recipe."""
    return [
        f"data.train_files={data / 'train.parquet'}",
        f"data.val_files={data / 'val.parquet'}",
        f"trainer.default_local_dir={run}",
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={steps}",
        f"data.seed={seed + 1}",
    ]


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
