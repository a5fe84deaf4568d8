"""``realad train``: a thin front for verl's own PPO main."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (paper/qwen2_5_vl_7b_lora) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, as in verl: key=value, +key=value, ~key.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, print the plan (processes, batches, estimates), start nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in trainer.default_local_dir.")] = False,
) -> None:
    """Train with CGRO (the R1 baseline is realad.w_cons=0) on Ray, verl, FSDP and vLLM."""
    from realad_verl.verl_ext.job.launch import RunFailed, run_folder, set_environment
    from realad_verl.verl_ext.job.launch import train as launch
    from realad_verl.verl_ext.recipe.check import require_ok
    from realad_verl.verl_ext.recipe.compose import compose_recipe
    from realad_verl.verl_ext.recipe.estimate import plan
    from realad_verl.verl_ext.run_folder.checkpoints import last_complete

    config = compose_recipe(recipe, overrides or [])
    set_environment(config)
    for warning in require_ok(config):
        typer.echo(f"warning: {warning}", err=True)
    if dry_run:
        typer.echo(plan(config).text())
        return
    folder = run_folder(config)
    say = typer.echo
    say(f"run folder: {folder} (metrics.jsonl, samples/, global_step_*/, config.yaml)", err=True)
    again = shlex.join(["realad", "train", recipe, *(overrides or []), "--resume"])
    try:
        stopped_at = launch(config, resume)
    except RunFailed as error:
        resume_with = f"\nresume: {again}" if last_complete(folder) is not None else ""
        say(f"error: {error}{resume_with}", err=True)
        sys.stderr.flush()
        # Not sys.exit: Ray's own exit handler would wait for what has died. A local Ray ends with this process.
        os._exit(1)
    if stopped_at is not None:
        say(f"stopped on request after step {stopped_at}, saved. Continue with: {again}", err=True)
        sys.exit(0)
    say(f"done. Next:\n{next_commands(folder, config.data.val_files)}", err=True)


def next_commands(folder: Path, val_files: str | list[str]) -> str:
    """What to do with a finished run: evaluate its newest checkpoint, look at its curves.

    Data set and image size are those of the manifest beside the validation data; the test images are the person's to
    name, since those that it was trained on would flatter.
    """
    from realad_verl.verl_ext.run_folder.checkpoints import last_complete

    report = f"  realad report {shlex.quote(str(folder))}"
    if last_complete(folder) is None:
        return f"{report}\n  no checkpoint was saved, so there is no model to evaluate: set trainer.save_freq"
    first = val_files if isinstance(val_files, str) else next(iter(val_files), "")
    manifest = Path(first).expanduser().parent / "manifest.json"
    made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    size = made.get("settings", {}).get("size")
    out = folder / "evaluation"
    evaluate = ["realad", "evaluate", made.get("dataset", "DATASET"), "--root", "TEST_IMAGES", "--model", str(folder)]
    evaluate += ["--out", str(out), *(["--image-size", str(size)] if size else [])]
    return f"  {shlex.join(evaluate)}\n{report} {shlex.quote(str(out))}"
