"""A model whose configuration keeps its language model's sizes in ``text_config`` (GLM-4.1V) can be updated.

Without it the first update ends with AttributeError: verl counts such a model's FLOPs from ``config.hidden_size``,
which its configuration does not have. (A type that verl does not know gets an MFU of 0.)
"""

import functools
from typing import Any

TARGET = "verl.utils.flops_counter"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch the entries of ``ESTIMATE_FUNC`` that read the sizes from the configuration itself."""
    plain = module._estimate_qwen2_flops
    assert module.ESTIMATE_FUNC["glm4v"] is plain, "verl counts GLM-4.1V's FLOPs by another function"

    @functools.wraps(plain)
    def of_text(config: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(config if hasattr(config, "hidden_size") else config.text_config, *args, **kwargs)

    module.ESTIMATE_FUNC |= {name: of_text for name, count in module.ESTIMATE_FUNC.items() if count is plain}
