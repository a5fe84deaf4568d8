"""The process group of a Ray worker uses plain ``gloo``.

Without it verl composes ``"cpu:gloo,cpu:gloo"``, which torch refuses as a duplicate device.
"""

import functools
import inspect
from typing import Any

TARGET = "verl.utils.distributed"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.initialize_global_process_group_ray`` (verl.utils.distributed)."""
    original = module.initialize_global_process_group_ray
    assert list(inspect.signature(original).parameters) == ["timeout_second", "backend"], (
        "verl's initialize_global_process_group_ray changed its parameters"
    )
    module.initialize_global_process_group_ray = functools.partial(original, backend="gloo")
