"""vLLM's CPU build: keep the weights of linear layers alive, so that training can update them.

Entry point of vLLM's own group ``vllm.general_plugins``: vLLM calls :func:`register` in its engine and workers.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportArgumentType=false

import importlib.util
import inspect
import os


def register() -> None:
    """Patch ``dispatch_cpu_unquantized_gemm`` when ``VERL_PLATFORM=cpu``; otherwise do nothing.

    Stock vLLM-CPU repacks each linear weight once at load and drops the original, so a later weight update from the
    trainer would find nothing to update. With the patch a linear layer always multiplies by its live weight.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu" or importlib.util.find_spec("vllm") is None:
        return
    import torch
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    assert list(inspect.signature(original).parameters) == ["layer", "remove_weight"], (
        "vLLM's dispatch_cpu_unquantized_gemm changed its parameters"
    )

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = dispatch
