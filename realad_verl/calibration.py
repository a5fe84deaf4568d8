"""The folder that ``realad calibrate`` leaves and everything else reads: baselines, and the settings that go with them.

- ``calibration.safetensors``: the baselines of normal images, and in its metadata the grid, the heads and the model
  that they belong to.
- ``calibration.yaml``: a recipe fragment that sets heads, baseline, smoothing and the thresholds of CGRO.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from realad_verl.errors import UserError
from realad_verl.method.baseline import Baseline
from realad_verl.method.config import MethodConfig

BASELINES, FRAGMENT, IN_MODEL = "calibration.safetensors", "calibration.yaml", "calibration"
FORMAT = "realad-calibration/1"


def model_shape(model_config: Any) -> dict[str, Any]:
    """What of a model a calibration belongs to: another with these values may still be another model."""
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    names = ("num_hidden_layers", "num_attention_heads", "vocab_size")
    return {"model_type": model_config.model_type} | {name: getattr(text, name, None) for name in names}


def write_baselines(folder: Path, baseline: Baseline, method: MethodConfig, model_config: Any) -> None:
    """Write ``calibration.safetensors``. ``method``: the settings whose rows the baseline is the mean of."""
    of = {"format": FORMAT, "grid": list(baseline.grid), "model": model_shape(model_config)}
    of |= {"heads": method.readout.heads, "layers": method.readout.layers, "query": method.readout.query}
    tensors = {"normal": baseline.normal_P, "word_ids": baseline.ids_V, "words": baseline.words_VP}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / BASELINES, metadata={"realad": json.dumps(of)})


def read_baselines(folder: Path) -> tuple[Baseline, dict[str, Any]]:
    """The baselines of a calibration folder, and what they belong to. UserError where the folder holds none."""
    path = Path(folder) / BASELINES
    if not path.is_file():
        raise UserError(
            f"method.calibration = {folder} holds no {BASELINES}. Give a folder made by `realad calibrate`."
        )
    try:
        with safe_open(path, "pt") as file:
            of = json.loads((file.metadata() or {})["realad"])
            tensors = {name: file.get_tensor(name) for name in ("normal", "word_ids", "words")}
        if of["format"] != FORMAT:
            raise ValueError(of["format"])
        grid = (int(of["grid"][0]), int(of["grid"][1]))
        baseline = Baseline(grid, tensors["normal"], tensors["word_ids"], tensors["words"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a file of `realad calibrate` ({FORMAT}): {error}") from error
    return baseline, of


def baseline_for(method: MethodConfig, model_config: Any) -> Baseline | None:
    """The baseline that ``scoring.baseline`` asks for, None where it asks for none.

    UserError where it was made with other heads, layers or query, or for another kind of model.
    """
    if method.scoring.baseline == "none":
        return None
    assert method.calibration is not None
    baseline, of = read_baselines(Path(method.calibration))
    wanted = {"heads": method.readout.heads, "layers": method.readout.layers, "query": method.readout.query}
    wanted |= {"model": model_shape(model_config)}
    for key, value in json.loads(json.dumps(wanted)).items():
        if of.get(key) != value:
            name = "the model" if key == "model" else f"readout.{key}"
            raise UserError(
                f"method.calibration = {method.calibration} was made with {name} = {of.get(key)}, and here it is "
                f"{value}. Its baselines do not fit: use the settings of its {FRAGMENT}, or calibrate again."
            )
    return baseline


def method_settings(folder: Path) -> dict[str, Any]:
    """The ``realad.method`` settings of a calibration, its own place included. UserError where there are none."""
    path = Path(folder) / FRAGMENT
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))["realad"]["method"]
    except FileNotFoundError:
        raise UserError(f"calibration = {folder} holds no {FRAGMENT}. Give a folder of `realad calibrate`.") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of `realad calibrate`: {error!r}") from error
    if not isinstance(settings, Mapping):
        raise UserError(f"{path} is not a file of `realad calibrate`: realad.method is no mapping.")
    return {**settings, "calibration": str(Path(folder).resolve())}


def find_calibration(model: str | Path) -> Path | None:
    """The calibration inside a model folder (``MODEL/calibration``), None where there is none."""
    folder = Path(model) / IN_MODEL
    return folder if (folder / FRAGMENT).is_file() and (folder / BASELINES).is_file() else None


def add_to_model(calibration: Path, model: Path) -> Path:
    """Copy a calibration into a model folder, where ``find_calibration`` looks; returns its place there."""
    baseline, _ = read_baselines(calibration)
    settings = (Path(calibration) / FRAGMENT).read_bytes()
    method_settings(calibration)
    assert len(baseline.normal_P)
    target = Path(model) / IN_MODEL
    target.mkdir(parents=True, exist_ok=True)
    (target / FRAGMENT).write_bytes(settings)
    (target / BASELINES).write_bytes((Path(calibration) / BASELINES).read_bytes())
    return target


def calibrated_method(folder: Path | None, overrides: Mapping[str, Any] | None = None) -> MethodConfig:
    """The method with a calibration's settings (None: the defaults), and ``overrides`` (sections) on top."""
    settings: dict[str, Any] = {} if folder is None else method_settings(folder)
    for name, values in (overrides or {}).items():
        inner = settings.get(name)
        settings[name] = {**inner, **values} if isinstance(inner, Mapping) and isinstance(values, Mapping) else values
    return MethodConfig.from_dict(settings)
