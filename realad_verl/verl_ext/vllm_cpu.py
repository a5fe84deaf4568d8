"""vLLM's CPU build, for training: live weights in linear layers, and workers that start in a moment.

Entry point of vLLM's own group ``vllm.general_plugins``: vLLM calls :func:`register` in its engine and workers.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportArgumentType=false

import importlib.util
import inspect
import multiprocessing
import os


def register() -> None:
    """With ``VERL_PLATFORM=cpu``: :func:`keep_weights` and :func:`fork_workers`; otherwise nothing."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu" or importlib.util.find_spec("vllm") is None:
        return
    keep_weights()
    fork_workers()


def keep_weights() -> None:
    """Linear layers multiply by their live weight.

    Stock vLLM-CPU repacks each linear weight once at load and drops the original, so a later weight update from the
    trainer would find nothing to update.
    """
    import torch
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    assert list(inspect.signature(original).parameters) == ["layer", "remove_weight"], (
        "vLLM's dispatch_cpu_unquantized_gemm changed its parameters"
    )

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = dispatch


def fork_workers() -> None:
    """In vLLM's engine process, fork the workers instead of spawning them: saves an import of torch and vLLM each.

    Fork is vLLM's default. Its CPU platform asks for spawn so that a worker's OpenMP starts with the thread binding in
    its environment; with ``VLLM_CPU_OMP_THREADS_BIND=nobind`` and one thread there is none to apply, and no thread pool
    that a fork could leave behind. The engine's own start is not touched: inside a Ray actor it has to be spawned.
    """
    in_engine = multiprocessing.current_process().name.startswith("EngineCore")
    unbound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind" and os.environ.get("OMP_NUM_THREADS") == "1"
    if in_engine and unbound:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
