"""``realad train``: a thin front for verl's own PPO main."""

import typer

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": False}


def train(
    context: typer.Context,
    recipe: str = typer.Argument(..., help="A shipped recipe's name (paper/qwen2_5_vl_7b_lora) or a YAML file."),
    overrides: list[str] = typer.Argument(None, help="Hydra overrides, as in verl: key=value, +key=value, ~key."),
) -> None:
    """Train with CGRO (or the R1 baseline: realad.w_cons=0) on Ray, verl, FSDP and vLLM."""
    from realad_verl.verl_ext.compose import compose_recipe
    from realad_verl.verl_ext.launch import run_folder
    from realad_verl.verl_ext.launch import train as launch

    config = compose_recipe(recipe, overrides or [])
    print(f"run folder: {run_folder(config)} (metrics.jsonl, samples/, checkpoints)", flush=True)
    launch(config)
