"""``realad check``: is a recipe right, and will it fit? Without a GPU."""

import json

import typer

from realad_verl.commands import options

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": False}


def check(
    arguments: list[str] = typer.Argument(
        ..., metavar="RECIPE... [OVERRIDES]", help="Recipes (names or YAML files), then Hydra overrides for all."
    ),
    estimate: bool = typer.Option(False, "--estimate", help="Print the plan: batches, memory and speed (estimates)."),
    as_json: options.AsJson = False,
) -> None:
    """Compose recipes and check them: keys, arithmetic, pairs that do not work, files, and verl's own validation."""
    from realad_verl.errors import UserError
    from realad_verl.verl_ext.recipe.check import check_config
    from realad_verl.verl_ext.recipe.compose import compose_recipe
    from realad_verl.verl_ext.recipe.estimate import plan

    recipes = [a for a in arguments if not is_override(a)]
    overrides = [a for a in arguments if is_override(a)]
    if not recipes:
        raise UserError(f"no recipe among {arguments}: name one, e.g. paper/qwen2_5_vl_7b_lora.")
    report, failed = {}, False
    for recipe in recipes:
        config = compose_recipe(recipe, overrides)
        problems = check_config(config)
        failed |= any(p.level == "error" for p in problems)
        report[recipe] = {"problems": [p.to_dict() for p in problems]}
        if estimate:
            report[recipe]["plan"] = plan(config).to_dict()
        if not as_json:
            _print(recipe, problems)
            if estimate:
                print(plan(config).text())
    if as_json:
        print(json.dumps(report, indent=2))
    raise typer.Exit(1 if failed else 0)


def is_override(argument: str) -> bool:
    """Hydra's forms: key=value, +key=value, ++key=value, ~key."""
    return argument.startswith(("+", "~")) or "=" in argument


def _print(recipe: str, problems) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    errors = sum(p.level == "error" for p in problems)
    verdict = f"[red]{errors} error{'s' if errors > 1 else ''}[/]" if errors else "[green]ok[/]"
    console.print(f"[bold]{escape(recipe)}[/]: {verdict}")
    for problem in problems:
        style = "red" if problem.level == "error" else "yellow"
        console.print(f"  [{style}]{problem.level}[/] {escape(str(problem))}")
