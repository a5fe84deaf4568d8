"""verl on a machine without an accelerator: opt in with ``VERL_PLATFORM=cpu``; inert otherwise.

Registered through verl's hooks: the platform (:mod:`.platform`) and the FSDP engines. Without a hook, so patched:
see :mod:`.patches`. vLLM's CPU build needs one patch of its own, loaded by vLLM: :mod:`realad_verl.verl_ext.vllm_cpu`.
"""

from wrapt import register_post_import_hook


def activate() -> list[str]:
    """Register the CPU platform and arm the patches; returns the names of what is active."""
    from realad_verl.verl_ext.cpu import patches, platform

    platform.register()
    patches.vllm_version()
    register_post_import_hook(patches.loopback_store, "torch.distributed.rendezvous")
    register_post_import_hook(patches.gloo_process_group, "verl.utils.distributed")
    register_post_import_hook(patches.fsdp_engines, "verl.workers.engine.fsdp.transformer_impl")
    return ["platform cpu"]
