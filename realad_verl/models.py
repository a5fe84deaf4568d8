"""The one reader of models: a folder or a hub id -> a model with all of its weights, and its processor.

A model of which some weights are missing answers, too: with random numbers in their place. So what is not whole, and
what is another kind of folder (an adapter, a checkpoint of a run), is refused, with the command that makes it right.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from realad_verl.backbones import backbone_for
from realad_verl.errors import UserError

WEIGHTS = ("*.safetensors", "*.bin")
SHARDS = "model_world_size_*_rank_*.pt"


def load_model(model: str | Path, dtype: torch.dtype, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model, on the CPU, its language model with sdpa attention, and its processor.

    Raises UserError where it cannot be loaded, is of no known family, or lacks weights.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if trust_remote_code:
        warnings.warn(f"code from the repository of '{model}' may run on this machine", stacklevel=3)
    refuse_other_folders(model)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        backbone_for(AutoConfig.from_pretrained(model, **options))
        processor = AutoProcessor.from_pretrained(model, **options)
        attention = {"text_config": "sdpa"}  # a vision tower of convolutions (Gemma 3n) knows no sdpa
        options |= {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
        both: Any = AutoModelForImageTextToText.from_pretrained(model, **options)
    except UserError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, pickle.UnpicklingError) as error:
        # no such model there, a package that it needs is missing, or shapes that are not its config's
        raise UserError(f"cannot load a model from '{model}': {error}") from error
    loaded, report = both
    _require_all(model, report)
    return loaded, processor


def refuse_other_folders(model: str | Path) -> None:
    """Raise UserError for a folder that is not one of a model, naming the command that makes one of it."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    checkpoint = _checkpoint(folder)
    if checkpoint is not None:
        raise UserError(
            f"'{model}' is part of a training run, whose weights are in shards. Make a model of it: realad export "
            f"{checkpoint} --out MODEL. Or give the run itself to --model, which does that once."
        )
    if any(folder.glob(SHARDS)):
        raise UserError(
            f"'{model}' holds shards of a checkpoint outside its run folder. Put it back into RUN/global_step_N/actor, "
            "then: realad export RUN/global_step_N --out MODEL."
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"'{model}' is a LoRA adapter, not a whole model. Of one of our runs: realad export RUN --out MODEL. Of "
            "any other: merge it into its base (peft: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload())."
        )
    if (folder / "config.json").is_file() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(
            f"'{model}' holds a config but no weights ({', '.join(WEIGHTS)}). Of a run of ours: realad export RUN "
            "--out MODEL. Of a download: fetch it again, with its weights."
        )


def _checkpoint(folder: Path) -> Path | None:
    """The run folder or global_step_N that ``folder`` is, or is inside of; a folder with weights of its own is none.

    ``huggingface/`` of a checkpoint counts even with weights: for LoRA runs verl writes them there by wrong names.
    """
    folder = folder.resolve()
    if any(folder.glob("global_step_*/actor")) or (folder / "actor").is_dir():
        return folder
    for actor in (folder, folder.parent):
        if actor.name == "actor" and any(actor.glob(SHARDS)):
            return actor.parent
    return None


def _require_all(model: str | Path, report: dict[str, Any]) -> None:
    """Nothing missing, nothing unknown, nothing of another shape; transformers leaves tied weights out by itself."""
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys") or [])
    if not (missing or unknown or mismatched):
        return
    found = {"missing (they would be random)": missing, "unknown": unknown, "of another shape": mismatched}
    counts = "; ".join(f"{len(keys)} {what}, as {keys[0]}" for what, keys in found.items() if keys)
    raise UserError(
        f"the weights in '{model}' are not those of its config: {counts}. Of a training run: realad export RUN --out "
        "MODEL (verl's own hf_model and model_merger lose the adapter of a LoRA run). Of a download: fetch it again."
    )
