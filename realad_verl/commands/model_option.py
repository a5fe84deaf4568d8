"""What ``--model`` of every command may be: a model folder, a hub id, ``tiny``, or a training run."""

from pathlib import Path

import typer

TINY = "tiny"
HELP = "Model folder, hub id, run folder of `realad train` or its global_step_N, or tiny."


def model_or_tiny(model: str | None) -> str:
    """The folder or hub id of ``--model`` where it may be left out: then the shipped backbone, which stderr says."""
    if model in (None, TINY):
        typer.echo("note: the tiny backbone shows the path; it detects nothing on photographs. See --model.", err=True)
    return resolve_model(model or TINY)


def resolve_model(model: str) -> str:
    """The folder or hub id that ``model`` means.

    ``tiny`` is the shipped backbone. A run's newest whole checkpoint, or the ``global_step_N`` that is named, is
    exported once into the run folder, which stderr says. Raises UserError for a run without a whole checkpoint.
    """
    if model == TINY:
        from realad_verl.tiny import tiny_model_dir

        return str(tiny_model_dir())
    from realad_verl.verl_ext.job.checkpoint import is_run_or_checkpoint

    path = Path(model).expanduser()
    if not is_run_or_checkpoint(path):
        return model
    from realad_verl.verl_ext.job.export import exported_once

    made = exported_once(path, lambda out: typer.echo(f"model: exporting {model} to {out}, once", err=True))
    typer.echo(f"model: step {made.step} of {made.out.parent.parent}, from {made.out}", err=True)
    return str(made.out)
