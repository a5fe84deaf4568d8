"""Compose a recipe with Hydra on top of verl's own configuration, without importing verl."""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from realad_verl.calibration import BASELINES, method_settings
from realad_verl.errors import UserError
from realad_verl.recipes_dir import find_recipe, shipped_recipes
from realad_verl.verl_ext.recipe.overrides import require_grammar

TINY_MODEL_ENV = "REALAD_TINY_MODEL"
CALIBRATION = "realad.method.calibration"


def verl_config_dir() -> Path:
    """verl's ``trainer/config`` folder, found without importing verl. Raises UserError when verl is missing."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "verl is not installed. Install the training stack: make setup-gpu in a checkout (make setup: CPU)."
        )
    return Path(spec.submodule_search_locations[0]) / "trainer" / "config"


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The full configuration of ``recipe`` (a path or a shipped name) with Hydra ``overrides`` applied.

    ``realad.method.calibration=DIR`` also brings the settings of DIR's calibration.yaml; other overrides win over them.
    Raises UserError for an unknown recipe, key or group, with Hydra's reason.
    """
    folder, name = find_recipe(recipe)
    require_grammar(overrides)
    overrides = [*_calibration_settings(overrides), *overrides]
    set_tiny_model()
    search = [f"file://{path}" for path in (shipped_recipes(), verl_config_dir())]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base=None):
            config = compose(name, overrides=[f"hydra.searchpath=[{','.join(search)}]", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"recipe '{recipe}' does not compose: {error}") from error
    _place_calibration(config, folder)
    return config


def _calibration_settings(overrides: Sequence[str]) -> list[str]:
    """The settings of the calibration that an override names, as overrides; none for ``null``."""
    given = [value for key, _, value in (o.lstrip("+").partition("=") for o in overrides) if key == CALIBRATION]
    if not given or given[-1] in ("null", ""):
        return []
    settings = method_settings(Path(given[-1].strip("'\"")))
    del settings["calibration"]
    return [
        f"realad.method.{section}.{key}={json.dumps(value)}"
        for section, values in settings.items()
        for key, value in values.items()
    ]


def _place_calibration(config: DictConfig, recipe_folder: Path) -> None:
    """The calibration's folder as an absolute path, since workers run elsewhere: beside the recipe, or from here."""
    given = OmegaConf.select(config, CALIBRATION)
    if isinstance(given, str) and given and not Path(given).is_absolute():
        beside = recipe_folder / given
        place = beside if (beside / BASELINES).is_file() else Path(given)
        OmegaConf.update(config, CALIBRATION, str(place.resolve()))


def set_tiny_model() -> None:
    """Let recipes name the shipped tiny backbone as ``${oc.env:REALAD_TINY_MODEL}``."""
    from realad_verl.tiny import tiny_model_dir

    os.environ.setdefault(TINY_MODEL_ENV, str(tiny_model_dir()))
