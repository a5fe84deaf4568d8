"""A micro-batch in which no sample holds an image, as when verl fills up the places of dropped responses.

verl 0.9.1 then runs the vision encoder on zeros, so that every rank takes part, and asks the result for ``mean``; that
of transformers 5 has none, and the run dies.
"""

import functools
import inspect
from typing import Any

TARGET = "verl.models.transformers.qwen2_vl"
SEEN_IN = ("verl 0.9.1",)


class _Unpacked:
    """``model`` with a vision encoder that returns its features alone."""

    def __init__(self, model: Any, unpack: Any):
        self._model, self._unpack = model, unpack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def visual(self, *args: Any, **kwargs: Any) -> Any:
        return self._unpack(self._model.visual(*args, **kwargs))[0]


def repair(module: Any) -> None:
    """Patch ``module._get_input_embeds`` (verl.models.transformers.qwen2_vl)."""
    original = module._get_input_embeds
    signature = inspect.signature(original)

    @functools.wraps(original)
    def get_input_embeds(model: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(model, *args, **kwargs).arguments
        if given.get("pixel_values") is None and given.get("pixel_values_videos") is None:
            model = _Unpacked(model, module.unpack_visual_output)
        return original(model, *args, **kwargs)

    module._get_input_embeds = get_input_embeds
