"""verl on a machine without an accelerator: opt in with ``VERL_PLATFORM=cpu``; inert otherwise.

Registered through verl's hooks: the platform (:mod:`.platform`). Without a hook, so patched: ``ON_CPU`` of
:mod:`realad_verl.verl_ext.repairs`. vLLM's CPU build has an entry point of its own, :mod:`.vllm_entry`.
"""


def activate() -> list[str]:
    """Register the CPU platform and arm the patches; returns the names of what is active."""
    from realad_verl.verl_ext import repairs
    from realad_verl.verl_ext.cpu import platform

    platform.register()
    repairs.arm(repairs.ON_CPU)
    return ["platform cpu"]
