"""A CPU platform for verl's platform registry."""

import os
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class _CpuDevice(str):
    """The id of the only CPU device.

    verl uses ``current_device()`` in two ways: ``tensor.to(current_device())``, which on CPU wants ``"cpu"``, and
    ``f"{device_name}:{current_device()}"``, which wants an index. This string is ``"cpu"`` and formats as ``0``.
    """

    def __format__(self, spec: str) -> str:
        return format(0, spec)

    def __int__(self) -> int:
        return 0


def _device_module() -> ModuleType:
    """``torch.cpu`` plus the memory functions that verl calls on every device module.

    Allocated and reserved are this process's resident set; free and total are the machine's.
    """
    module = ModuleType("realad_verl_torch_cpu", "torch.cpu with the memory functions of torch.cuda")
    for name in dir(torch.cpu):
        setattr(module, name, getattr(torch.cpu, name))

    def resident(_device=None) -> int:
        return psutil.Process().memory_info().rss

    def mem_get_info(_device=None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def nothing(*_args, **_kwargs) -> None:
        return None

    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(module, name, resident)
    for name in (
        "empty_cache",
        "ipc_collect",
        "reset_peak_memory_stats",
        "set_device",
        "set_per_process_memory_fraction",
    ):
        setattr(module, name, nothing)
    module.get_device_name = lambda _device=None: "CPU"  # type: ignore[attr-defined]
    module.mem_get_info = mem_get_info  # type: ignore[attr-defined]
    module.current_device = lambda: _CpuDevice("cpu")  # type: ignore[attr-defined]
    module.device = lambda _device=None: nullcontext()  # type: ignore[attr-defined]
    module.manual_seed = torch.manual_seed  # type: ignore[attr-defined]
    module.manual_seed_all = torch.manual_seed  # type: ignore[attr-defined]
    module.get_rng_state = lambda _device=None: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, _device=None: torch.set_rng_state(state)  # type: ignore[attr-defined]
    return module


class PlatformCPU(PlatformBase):
    """CPU as a verl platform: gloo, shared memory for weight transfer, Ray's "GPU" as a logical resource."""

    _module = None

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        if PlatformCPU._module is None:
            PlatformCPU._module = _device_module()
        return PlatformCPU._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Opt-in: auto-detection on a machine with an accelerator must never pick the CPU.
        return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"

    def current_device(self) -> Any:
        return _CpuDevice("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        # Ray schedules verl's workers by this resource; `ray.init(num_gpus=N)` makes it a logical count.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def register() -> None:
    """Register the platform under the name ``cpu`` (chosen by ``VERL_PLATFORM=cpu``)."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
