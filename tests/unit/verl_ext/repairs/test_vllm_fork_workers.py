"""Which process forks vLLM's workers: the engine's alone, and only where no thread binding has to reach them."""

import multiprocessing
import os

import pytest

from realad_verl.verl_ext.repairs import vllm_fork_workers

UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def _method_in_process(environment: dict[str, str], sender) -> None:
    os.environ.update(environment)
    vllm_fork_workers.repair(None)
    sender.send(os.environ[METHOD])


@pytest.mark.parametrize(
    ("process", "environment", "method"),
    [
        ("EngineCore", UNBOUND, "fork"),
        ("EngineCore_DP0", UNBOUND, "fork"),
        ("MainProcess", UNBOUND, "spawn"),  # the Ray actor that starts the engine
        ("VllmWorker-0", UNBOUND, "spawn"),
        ("EngineCore", UNBOUND | {"OMP_NUM_THREADS": "2"}, "spawn"),
        ("EngineCore", UNBOUND | {"VLLM_CPU_OMP_THREADS_BIND": "auto"}, "spawn"),
    ],
)
def test_fork_workers(process, environment, method):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    # vLLM's CPU platform sets "spawn" before it starts the engine.
    arguments = (environment | {METHOD: "spawn"}, sender)
    child = context.Process(target=_method_in_process, args=arguments, name=process)
    child.start()
    assert receiver.poll(30) and receiver.recv() == method
    child.join(30)
    assert child.exitcode == 0
