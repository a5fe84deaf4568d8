"""Compose a recipe with Hydra on top of verl's own configuration, without importing verl."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from realad_verl.errors import UserError
from realad_verl.recipes_dir import find_recipe, shipped_recipes

TINY_MODEL_ENV = "REALAD_TINY_MODEL"


def verl_config_dir() -> Path:
    """verl's ``trainer/config`` folder, found without importing verl. Raises UserError when verl is missing."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("verl is not installed. Install the training stack: pip install 'realad-verl[gpu]' (or [cpu]).")
    return Path(spec.submodule_search_locations[0]) / "trainer" / "config"


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The full configuration of ``recipe`` (a path or a shipped name) with Hydra ``overrides`` applied.

    Raises UserError for an unknown recipe, key or group, with Hydra's reason.
    """
    folder, name = find_recipe(recipe)
    set_tiny_model()
    search = [f"file://{path}" for path in (shipped_recipes(), verl_config_dir())]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base=None):
            return compose(name, overrides=[f"hydra.searchpath=[{','.join(search)}]", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"recipe '{recipe}' does not compose: {error}") from error


def set_tiny_model() -> None:
    """Let recipes name the shipped tiny backbone as ``${oc.env:REALAD_TINY_MODEL}``."""
    from realad_verl.tiny import tiny_model_dir

    os.environ.setdefault(TINY_MODEL_ENV, str(tiny_model_dir()))
