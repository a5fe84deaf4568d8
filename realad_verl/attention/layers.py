"""Finds the language model's attention layers of a Hugging Face model, however it is wrapped."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from realad_verl.errors import UserError


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside ``model``: itself, or below PEFT, FSDP, DDP or a value head."""
    for module in model.modules():  # outermost first
        if isinstance(module, PreTrainedModel):
            return module
    raise UserError(
        f"{type(model).__name__} contains no transformers PreTrainedModel; attention can be read from one only."
    )


def language_attention(model: nn.Module) -> tuple[nn.Module, Sequence[tuple[str, nn.Module]]]:
    """The language decoder of ``model`` and its (name, attention module) pairs, in order of depth.

    The modules are the instances, inside ``get_decoder()``, of the class that the decoder declares in
    ``_can_record_outputs["attentions"]``. So a vision tower that calls the same attention functions is not meant,
    layers without attention (linear-attention hybrids) do not count, and wrapping changes nothing: PEFT replaces
    projections inside these modules, fully_shard makes subclasses of their classes.

    Raises:
        UserError: the model declares no such class, or has no instance of it.
    """
    root = pretrained_model(model)
    decoder = root.get_decoder()
    declared = _declared_attention(decoder)
    found = [(name, module) for name, module in decoder.named_modules() if _matches(declared, name, module)]
    if not found:
        raise UserError(
            f"no attention layers found in {type(decoder).__name__}, the decoder of {type(root).__name__}: it declares "
            f"_can_record_outputs['attentions'] = {declared!r}. The read-out needs a model that follows transformers' "
            "attention interface."
        )
    return decoder, found


def _declared_attention(decoder: nn.Module) -> list[Any]:
    """The entries of ``_can_record_outputs["attentions"]`` of the decoder, or of the first model inside it."""
    for module in decoder.modules():
        specs = (getattr(module, "_can_record_outputs", None) or {}).get("attentions")
        if specs is not None:
            return specs if isinstance(specs, list) else [specs]
    return []


def _matches(declared: list[Any], name: str, module: nn.Module) -> bool:
    for spec in declared:
        if isinstance(spec, type):
            found = isinstance(module, spec)
        elif isinstance(spec, str):
            found = bool(name) and name.endswith(spec)
        else:  # transformers' OutputRecorder
            by_class = spec.target_class is not None and isinstance(module, spec.target_class)
            by_name = spec.class_name is not None and bool(name) and name.endswith(spec.class_name)
            found = (by_class or by_name) and (spec.layer_name is None or spec.layer_name in name)
        if found:
            return True
    return False


def chosen_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """Indices 0..count-1 of the layers to read; None means all, negatives count from the end.

    Raises:
        UserError: an index out of range, a layer named twice, an empty choice.
    """
    if layers is None:
        return list(range(count))
    chosen = []
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"layers = {tuple(layers)!r}: layer {layer} does not exist. Allowed: {-count} to {count - 1}."
            )
        chosen.append(layer % count)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(f"layers = {tuple(layers)!r}: name at least one layer and each only once ({count} layers).")
    return chosen
