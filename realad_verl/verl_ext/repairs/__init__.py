"""Patches of verl and vLLM where neither has a hook, one a file. An upgrade reads this folder and deletes what can go.

Each module says in its docstring what breaks without it, and holds

- ``TARGET``: the module that is patched; the plugin arms the patch so that it is applied when that module is imported;
- ``SEEN_IN``: the releases in which the fault was seen;
- ``repair(module)``: applies it, after asserting that what it patches still looks as it did.

``tests/contract/test_repairs.py`` has a test a file that fails once the release no longer has the fault.
"""

import importlib

from wrapt import register_post_import_hook

EVERYWHERE = (
    "padding_with_image",
    "any_processor",
    "processor_once",
    "merged_root",
    "logger_flush",
    "saved_weights",
    "nested_flops",
)
ON_CPU = ("vllm_version", "loopback_store", "gloo_process_group", "fsdp_engines_on_cpu")
IN_VLLM_ON_CPU = ("vllm_live_weights", "vllm_fork_workers")
# Called by the worker on each batch, so it patches nothing and has no TARGET.
IN_THE_WORKER = ("position_ids",)


def arm(names: tuple[str, ...]) -> None:
    """Apply each patch as soon as its target is imported, now if it is already."""
    for name in names:
        patch = importlib.import_module(f"{__name__}.{name}")
        register_post_import_hook(patch.repair, patch.TARGET)
