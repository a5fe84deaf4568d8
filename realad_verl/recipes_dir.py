"""Where recipes are: the shipped ones, in a checkout or an installed wheel, and a user's own by path."""

from pathlib import Path

from realad_verl.errors import UserError

SUFFIX = ".yaml"


def shipped_recipes() -> Path:
    """The folder of shipped recipes: ``realad_verl/recipes`` in a wheel, ``recipes`` in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "cgro.yaml").is_file():
            return folder
    raise UserError(f"the shipped recipes are missing from this installation (looked in {package} and its parent)")


def list_recipes() -> list[str]:
    """Names of the shipped training recipes, e.g. ``local/cgro_tiny_cpu`` (sweeps and launch files left out)."""
    root = shipped_recipes()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{SUFFIX}"))
    return sorted(n for n in names if n != "cgro" and n.split("/")[0] not in ("sweeps", "launch"))


def find_recipe(recipe: str) -> tuple[Path, str]:
    """Folder and Hydra name of a recipe given by path, or by the name of a shipped one.

    Raises UserError listing the shipped names when there is no such recipe.
    """
    path = Path(recipe)
    if path.is_file():
        root = shipped_recipes()
        resolved = path.resolve()
        if resolved.is_relative_to(root):
            return root, resolved.relative_to(root).with_suffix("").as_posix()
        return resolved.parent, resolved.stem
    name = recipe.removesuffix(SUFFIX).removeprefix("recipes/")
    root = shipped_recipes()
    if (root / f"{name}{SUFFIX}").is_file():
        return root, name
    raise UserError(f"no recipe '{recipe}': not a file, and not among the shipped ones: {', '.join(list_recipes())}.")
