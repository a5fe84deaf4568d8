"""From one of verl's checkpoints to a Hugging Face folder: the weights that the actor computes with, LoRA merged.

Bounded memory: shards and base weights are memory-mapped, and one output file at a time is put together.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from realad_verl.calibration import add_to_model
from realad_verl.errors import UserError, bad_value
from realad_verl.verl_ext.job.checkpoint import Checkpoint, find_checkpoint
from realad_verl.verl_ext.job.model_card import write_card
from realad_verl.verl_ext.job.shards import Shards
from realad_verl.verl_ext.job.state import Adapter, TrainedState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_FILE = 4_000_000_000
MARK = "realad_export.json"
WEIGHTS = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Exported:
    """What was written where; ``new`` False: it was there already. ``parameters``: of the weights in the folder."""

    out: Path
    step: int
    parameters: int
    bytes: int
    new: bool = True


def export(
    source: Path,
    out: Path,
    *,
    dtype: str | None = None,
    adapter: bool = False,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the model of ``source`` (a run folder: its newest whole checkpoint; or a ``global_step_N``) to ``out``.

    ``dtype``: fp32, bf16 or fp16; default: as trained. ``adapter``: the LoRA adapter alone, as a PEFT folder. Raises
    UserError for what is no whole checkpoint, and where ``out`` holds something already.
    """
    if dtype is not None and dtype not in DTYPES:
        raise bad_value("dtype", dtype, ", ".join(DTYPES))
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty. Name another folder, or remove it.")
    checkpoint = find_checkpoint(source)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        state = TrainedState(Shards(checkpoint.actor), checkpoint)
        write = _write_adapter if adapter else _write_model
        parameters, written = write(state, checkpoint, partial, DTYPES.get(dtype or ""), on_file)
        (partial / MARK).write_text(json.dumps(_identity(checkpoint) | {"dtype": dtype}, indent=1))
        for file in partial.rglob("*.safetensors"):
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes for the owner alone
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(out, checkpoint.step, parameters, written)


def exported_once(source: Path, on_start: Callable[[Path], None] = lambda out: None) -> Exported:
    """The model of ``source`` inside its run folder, ``exported/global_step_N``; written if it is not there yet.

    ``on_start`` gets the folder before it is written.
    """
    checkpoint = find_checkpoint(source)
    out = checkpoint.run / "exported" / f"global_step_{checkpoint.step}"
    there = Exported(out, checkpoint.step, 0, 0, new=False)
    if _is_of(out, checkpoint):
        return there
    on_start(out)
    try:
        shutil.rmtree(out, ignore_errors=True)  # of another run that was in this folder before
        return export(checkpoint.folder, out)
    except (UserError, OSError) as error:
        if _is_of(out, checkpoint):  # another process was first, as where an evaluation runs in several parts
            return there
        if isinstance(error, OSError):
            raise UserError(
                f"{out} can't be written ({error}). Elsewhere: realad export {source} --out DIR."
            ) from error
        raise


def _is_of(out: Path, checkpoint: Checkpoint) -> bool:
    """Whether ``out`` was exported from this very checkpoint."""
    if not (out / MARK).is_file():
        return False
    return json.loads((out / MARK).read_text())["shards"] == _identity(checkpoint)["shards"]


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells this checkpoint from another one at the same path."""
    files = sorted(checkpoint.actor.glob("model_world_size_*.pt"))
    shards = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return {"source": str(checkpoint.folder), "step": checkpoint.step, "shards": shards}


def _write_model(
    state: TrainedState, checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None, on_file: Callable
) -> tuple[int, int]:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    like = state.layout(dtype)
    plan = split_torch_state_dict_into_shards(
        like, filename_pattern="model{suffix}.safetensors", max_shard_size=MAX_FILE
    )
    for done, (file, names) in enumerate(plan.filename_to_tensors.items()):
        on_file(done, len(plan.filename_to_tensors))
        save_file({name: state.tensor(name, like[name].dtype) for name in names}, out / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    _copy_rest(checkpoint, out, next(t.dtype for t in like.values() if t.is_floating_point()))
    calibration = checkpoint.setting("realad.method.calibration")
    if calibration and Path(calibration).expanduser().is_dir():
        add_to_model(Path(calibration).expanduser(), out)
    write_card(out, checkpoint, state.adapter)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return sum(tensor.numel() for tensor in like.values()), written


def _copy_rest(checkpoint: Checkpoint, out: Path, dtype: torch.dtype) -> None:
    """Processor, tokenizer and generation config as verl saved them; the config says the weights' precision."""
    for file in checkpoint.huggingface.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, out / file.name)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("torch_dtype", None)
        if "dtype" in part:
            part["dtype"] = config["dtype"]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (out / "generation_config.json").exists():
        from transformers import AutoConfig, GenerationConfig

        GenerationConfig.from_model_config(AutoConfig.from_pretrained(out)).save_pretrained(out)


def _write_adapter(
    state: TrainedState, checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None, on_file: Callable
) -> tuple[int, int]:
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapter = state.adapter
    if adapter is None:
        raise UserError(f"{checkpoint.folder} holds no LoRA adapter: the run trained the whole model. Leave --adapter.")
    on_file(0, 1)
    tensors = _adapter_tensors(adapter, dtype)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  (a whole number in every run of verl's)
        # Whole paths: the last part alone would also name modules of the vision blocks.
        target_modules=sorted(adapter.modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(checkpoint.base_path or ""),
        inference_mode=True,
    ).save_pretrained(str(out))
    write_card(out, checkpoint, adapter, library="peft")
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return sum(tensor.numel() for tensor in tensors.values()), written


def _adapter_tensors(adapter: Adapter, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """By PEFT's names in its own files: without the adapter's name."""
    found = {}
    for module in sorted(adapter.modules):
        for part, tensor in zip(("lora_A", "lora_B"), adapter.matrices(module), strict=True):
            value = tensor if dtype is None else tensor.to(dtype)
            found[f"base_model.model.{module}.{part}.weight"] = value.contiguous()
    return found
