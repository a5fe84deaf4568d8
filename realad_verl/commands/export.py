"""``realad export``: a run's checkpoint -> a model folder that transformers and vLLM load."""

import json
from pathlib import Path
from typing import Annotated

import typer

from realad_verl.commands import options


def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its newest whole checkpoint) or RUN/global_step_N.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not hold anything.")],
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the weights: fp32, bf16 or fp16.", show_default="as trained")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter alone, as a PEFT folder; default: merged.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="The step that was best in validation (realad.val.best), not the newest.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the model of RUN as a Hugging Face folder: weights with LoRA merged, processor, model card.

    Whatever verl saved: the whole model or the adapter alone, by one rank or many. `--model RUN` of the other commands
    does this by itself.
    """
    from realad_verl.verl_ext.job.export import export as write
    from realad_verl.verl_ext.run_folder.best import best_of

    def on_file(done: int, total: int) -> None:
        if not as_json:
            typer.echo(f"writing file {done + 1} of {total}", err=True)

    made = write(best_of(run) if best else run, out, dtype=dtype, adapter=adapter, on_file=on_file)
    if as_json:
        state = {"out": str(made.out), "step": made.step, "parameters": made.parameters, "bytes": made.bytes}
        typer.echo(json.dumps(state))
    else:
        what = "adapter" if adapter else "model"
        typer.echo(f"{made.out}: {what} of step {made.step}, {made.parameters:,} parameters, {made.bytes / 1e6:.1f} MB")
