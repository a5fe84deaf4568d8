"""What lies between a family's processor and model and what verl and vLLM expect of them.

Nothing here goes by a family's name: a processor is asked what it returns and whether it computes positions, a model
how it is built, and a backbone entry for its oddities (``Backbone``). The order is a sample's: its prompt, its place in
a batch, the module that reads it. The names under which vLLM knows the weights: weights.py.
"""

# verl's and torch's FSDP classes are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from realad_verl.attention.sites import Site, read_flash
from realad_verl.backbones import Backbone, backbone_for
from realad_verl.backbones.base import image_token_id
from realad_verl.backbones.inputs import batched, bos_once, prepare
from realad_verl.errors import UserError
from realad_verl.verl_ext.train.weights import base_model

# Follow the tokens of the batch, so the model gets them from the engine, if at all.
ALONG_TOKENS = ("token_type_ids", "mm_token_type_ids")


def trainable(model_config: Any) -> Backbone:
    """The entry of a model that is to be trained; UserError where it has none or cannot be."""
    backbone = backbone_for(model_config)
    if backbone.untrainable:
        raise UserError(f"model_type '{model_config.model_type}' localizes but does not train: {backbone.untrainable}.")
    return backbone


@dataclass(frozen=True)
class Rendered:
    """A prompt as vLLM wants it (``plain_ids``: one placeholder an image) and as the model sees it (``ids``)."""

    plain_ids: list[int]
    ids: list[int]
    features: dict[str, Tensor]


def render(processor: Any, text: str, images: Sequence[Any], options: Mapping[str, Any]) -> Rendered:
    """One run of the processor. ``text``: the chat template's output; ``options``: the processor's own."""
    prompt = prepare(processor, text, *images, **options)
    plain_ids = processor.tokenizer(text, **bos_once(processor.tokenizer, text))["input_ids"]
    features = dict(prompt.image)
    if hasattr(processor, "get_rope_index") and "mm_token_type_ids" in prompt.token_types:
        features["mm_token_type_ids"] = prompt.token_types["mm_token_type_ids"][None]  # verl's positions need them
    return Rendered(list(plain_ids), prompt.input_ids.tolist(), features)


class PlainPrompts:
    """A client of verl's LLM servers that sends ``plain_ids`` in place of the expanded prompt."""

    def __init__(self, client: Any, plain_ids: list[int]):
        self._client, self._plain_ids = client, plain_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, *, prompt_ids: Sequence[int], **kwargs: Any) -> Any:
        return await self._client.generate(prompt_ids=self._plain_ids, **kwargs)


def collate_features(
    backbone: Backbone, samples: Sequence[Mapping[str, Tensor] | None], device: torch.device
) -> dict[str, Tensor]:
    """The features of a micro-batch, put together as the model wants them."""
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        for key, value in (sample or {}).items():
            if value is not None and key not in ALONG_TOKENS:
                found.setdefault(key, []).append(torch.as_tensor(value))
    return {key: batched(backbone, key, values).to(device) for key, values in found.items()}


def token_types(backbone: Backbone, config: Any, input_ids: Tensor) -> dict[str, Tensor]:
    """``token_type_ids`` as vLLM's attention of the device has them.

    vLLM's GPU backends let image tokens see each other both ways where the family does; its CPU backend is causal.
    """
    if not backbone.both_ways:
        return {}
    types = torch.zeros_like(input_ids)
    return {
        "token_type_ids": types if input_ids.device.type == "cpu" else types + (input_ids == image_token_id(config))
    }


@contextlib.contextmanager
def own_forward(backbone: Backbone, model_type: str) -> Iterator[None]:
    """Keep transformers' forward of the family's classes over whatever verl does to them inside."""
    if not backbone.keep_forward:
        yield
        return
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    kept = {cls: cls.forward for cls in (getattr(module, name) for name in backbone.keep_forward)}
    try:
        yield
    finally:
        for cls, forward in kept.items():
            cls.forward = forward


def layers_to_wrap(module: nn.Module) -> nn.Module:
    """Take classes that hold an embedding off the list of layers that FSDP wraps; returns ``module``.

    verl wraps every embedding too, but after the layer around it: the weight is then sharded twice and gathered once
    ("mixed torch.Tensor and DTensor").
    """
    names = set(module._no_split_modules or ())
    holders = {
        type(child).__name__
        for child in module.modules()
        if type(child).__name__ in names and any(isinstance(part, nn.Embedding) for part in child.modules())
    }
    if holders:
        module._no_split_modules = sorted(names - holders)
    return module


def open_read_embeddings(module: nn.Module) -> None:
    """Gather the vision encoder's sharded embeddings before the layer around them runs.

    FSDP2 gathers a wrapped embedding when it is called. Some encoders interpolate their position embeddings and so read
    the weight instead.
    """
    parents = dict(module.named_modules())
    texts = {id(child) for child in base_model(module).get_decoder().modules()}
    for name, child in list(parents.items()):
        if isinstance(child, nn.Embedding) and isinstance(child, FSDPModule) and id(child) not in texts:
            _gather_around(parents[name.rpartition(".")[0]], child)


def _gather_around(parent: nn.Module, child: Any) -> None:
    def gather(_module: nn.Module, _args: Any) -> None:
        child.unshard()

    def release(_module: nn.Module, _args: Any, _output: Any) -> None:
        if not torch.is_grad_enabled():  # with gradients, the end of the backward pass reduces and shards it
            child.reshard()

    parent.register_forward_pre_hook(gather)
    parent.register_forward_hook(release)


def verl_sites() -> tuple[Site, ...]:
    """Where the installed verl calls flash-attn's kernels itself; empty where flash-attn is not installed.

    With ``use_remove_padding`` verl replaces the attention of Qwen2-VL and Qwen2.5-VL by a function that holds
    ``flash_attn_varlen_func``, for packs of several sequences: a read-out at transformers' sites alone would see none
    of it. Packs of one sequence, and all other families, end in transformers' sites, after Ulysses' all-to-all: the
    heads are then spread over ranks, which ``reading(..., head_group=...)`` undoes.
    """
    from verl.models.transformers import glm4v, qwen2_vl

    parameters = ("q", "k", "cu_seqlens_q", "causal")
    return tuple(
        Site(module, "flash_attn_varlen_func", read_flash, parameters)
        for module in (qwen2_vl, glm4v)
        if hasattr(module, "flash_attn_varlen_func")
    )
