"""The trained model as one set of tensors: shards put together, LoRA merged, names as the hub checkpoint has them."""

# transformers' conversion of names is typed loosely; the tests run it for real.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from realad_verl.errors import UserError
from realad_verl.verl_ext.job.checkpoint import Checkpoint
from realad_verl.verl_ext.job.shards import Shards

PEFT = "base_model.model."
LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.[^.]+\.weight")


class Adapter:
    """The LoRA matrices of a checkpoint: for each module, A [r, in] and B [out, r]."""

    def __init__(self, shards: Shards, names: list[str], alpha: float) -> None:
        self._shards, self.alpha = shards, alpha
        self._names: dict[str, dict[str, str]] = {}
        for name in names:
            match = LORA.fullmatch(name)
            if match is None or len(shards.shape(name)) != 2:
                raise UserError(
                    f"{shards.actor} holds an adapter that is not plain LoRA on linear layers ({name}): it can't be "
                    "merged here."
                )
            self._names.setdefault(match["module"], {})[match["part"]] = name
        half = [module for module, parts in self._names.items() if parts.keys() != {"A", "B"}]
        if half:
            raise UserError(f"{shards.actor} is torn: it holds one of A and B of {half[0]}.")
        self.rank = shards.shape(self._names[min(self._names)]["A"])[0]

    @property
    def modules(self) -> set[str]:
        """Paths of the adapted modules, as transformers names them."""
        return set(self._names)

    @property
    def dtype(self) -> torch.dtype:
        """Precision that it was trained in."""
        return self._shards.dtype(self._names[min(self._names)]["A"])

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B of one module."""
        return self._shards.whole(self._names[module]["A"]), self._shards.whole(self._names[module]["B"])

    def merged(self, module: str, base: Tensor) -> Tensor:
        """W + alpha / r * B A, in float32."""
        a, b = (matrix.float() for matrix in self.matrices(module))
        return base.float() + b @ a * (self.alpha / self.rank)


class TrainedState:
    """What the actor computes with, by hub names. Raises UserError where the tensors are not those of the model."""

    def __init__(self, shards: Shards, checkpoint: Checkpoint) -> None:
        self._shards, self._checkpoint = shards, checkpoint
        self.model = _empty_model(checkpoint)
        lora = [name for name in shards.names() if "lora_" in name]
        self.adapter = Adapter(shards, lora, _alpha(checkpoint)) if lora else None
        own = [name for name in shards.names() if name not in set(lora)]
        self._own = {name.removeprefix(PEFT).replace(".base_layer.", "."): name for name in own}
        self._base = None if own else BaseWeights(checkpoint, self.model)
        expected = self.model.state_dict()
        self._names = self._check(expected)
        self._shapes = {name: expected[name].shape for name in self._names}
        self._hub = _hub_names(self.model, self._shapes)

    def _check(self, expected: dict[str, Tensor]) -> list[str]:
        """The module's names, tied copies left out, all of which are there."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        have = set(self._own) if self._base is None else self._base.names()
        modules = set() if self.adapter is None else {f"{m}.weight" for m in self.adapter.modules}
        missing = sorted(set(expected) - have - tied)
        unknown = sorted((have | modules) - set(expected))
        if missing or unknown:
            raise UserError(
                f"{self._checkpoint.folder} does not fit the model that its huggingface/config.json describes: "
                f"{len(missing)} weights missing ({', '.join(missing[:3])}), {len(unknown)} unknown "
                f"({', '.join(unknown[:3])})."
            )
        for name in self._own:
            if name in expected and self._shards.shape(self._own[name]) != expected[name].shape:
                raise UserError(f"{self._checkpoint.folder}: {name} is not of the shape that its config describes.")
        return [name for name in expected if name in have and name not in tied]

    def layout(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Empty tensors by hub name, of the shapes and precision that :meth:`tensor` will have."""
        found = {}
        for hub, name in self._hub.items():
            own = self.adapter.dtype if self._base is not None and self.adapter else None
            own = own or self._shards.dtype(self._own[name])
            wanted = dtype if dtype is not None and own.is_floating_point else own
            found[hub] = torch.empty(self._shapes[name], dtype=wanted, device="meta")
        return found

    def tensor(self, hub: str, dtype: torch.dtype) -> Tensor:
        """The weight of a hub name, merged, in ``dtype``."""
        name = self._hub[hub]
        value = self._shards.whole(self._own[name]) if self._base is None else self._base.tensor(name)
        if value.shape != self._shapes[name]:
            raise UserError(f"{self._checkpoint.folder}: {name} is not of the shape that its config describes.")
        module = name.removesuffix(".weight")
        if self.adapter is not None and name.endswith(".weight") and module in self.adapter.modules:
            value = self.adapter.merged(module, value)
        return value.to(dtype, copy=True).contiguous()


class BaseWeights:
    """The frozen weights of a run that saved its adapter alone, out of the model that it began with."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        from safetensors import safe_open

        rename = _to_module(model)
        self._stack = ExitStack()
        self._where: dict[str, tuple[Any, str]] = {}
        for file in _base_files(checkpoint):
            opened = self._stack.enter_context(safe_open(file, framework="pt"))
            for key in opened.keys():  # noqa: SIM118  (no mapping)
                self._where[rename(key)] = (opened, key)

    def names(self) -> set[str]:
        """The module's names."""
        return set(self._where)

    def tensor(self, name: str) -> Tensor:
        """One weight, in the precision of the base's file."""
        opened, key = self._where[name]
        return opened.get_tensor(key)


def _base_files(checkpoint: Checkpoint) -> list[Path]:
    path = checkpoint.base_path
    if path is None:
        raise UserError(
            f"{checkpoint.folder} holds the adapter alone (save_lora_only), and {checkpoint.run} no config.yaml that "
            "names the base model. Export it from its own run folder."
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise UserError(
                f"{checkpoint.folder} holds the adapter alone, and its base model {path} can't be read: {error}"
            ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{checkpoint.folder} holds the adapter alone, and its base {folder} has no *.safetensors.")
    return files


def _alpha(checkpoint: Checkpoint) -> float:
    """lora_alpha, which verl writes beside the shards."""
    if checkpoint.setting("actor_rollout_ref.model.lora_adapter_path"):
        raise UserError(
            f"{checkpoint.run} began with an adapter of its own (model.lora_adapter_path), whose scaling this export "
            "does not know. Merge it into the base model before training."
        )
    try:
        return json.loads((checkpoint.actor / "lora_train_meta.json").read_text())["lora_alpha"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{checkpoint.actor} is torn: it lacks a readable lora_train_meta.json.") from None


def _empty_model(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(checkpoint.huggingface)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint.huggingface} describes no model that can be exported: {error}") from error


def _to_module(model: Any) -> Callable[[str], str]:
    """From a name in a checkpoint to transformers' name in the module, as ``from_pretrained`` finds it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms, own = get_model_conversion_mapping(model), model.state_dict()
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]

    def rename(key: str) -> str:
        name, converter = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
        if converter is not None:
            raise UserError(
                f"the base model stores {key} in another form than it is used in, which the export of an adapter does "
                "not know. Save whole checkpoints: actor_rollout_ref.actor.checkpoint.save_lora_only=false."
            )
        return name

    return rename


def _hub_names(model: Any, shapes: dict[str, torch.Size]) -> dict[str, str]:
    """Hub name -> the module's name, by the conversion with which transformers saves.

    Of a model that was not loaded, transformers leaves out the prefixes that it dropped (SigLIP's and CLIP's
    ``vision_model``); the family's published checkpoints, and so vLLM's loader, have them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    names = {id(tensor): name for name, tensor in empty.items()}
    saved = revert_weight_conversion(model, dict(empty))
    if any(id(tensor) not in names for tensor in saved.values()) or len(saved) != len(empty):
        raise UserError(
            f"{type(model).__name__} stores weights in another form than it uses them in, which is not exported here."
        )
    return {hub: names[id(tensor)] for hub, tensor in saved.items()}
