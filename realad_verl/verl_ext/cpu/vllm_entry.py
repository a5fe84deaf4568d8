"""vLLM's CPU build, for training: live weights in linear layers, and workers that start in a moment.

Entry point of vLLM's own group ``vllm.general_plugins``: vLLM calls :func:`register` in its engine and workers.
"""

import importlib.util
import os


def register() -> None:
    """With ``VERL_PLATFORM=cpu``: the repairs of ``IN_VLLM_ON_CPU``; otherwise nothing."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu" or importlib.util.find_spec("vllm") is None:
        return
    from realad_verl.verl_ext import repairs

    repairs.arm(repairs.IN_VLLM_ON_CPU)
