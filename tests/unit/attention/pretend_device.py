"""A CUDA device that is not there: tensors that say cuda:0 and compute on the CPU.

Under ``pretend()`` an operation that mixes the two devices raises, and what a GPU would pay for is counted by source
line: launches (operations that are neither views nor allocations) and synchronisations (values that the host waits
for, copies across).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::item",
    "aten::_unique2",
}
NO_LAUNCH = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::detach",
    "aten::lift_fresh",
}
NO_LAUNCH |= {"aten::_unsafe_view"}


class DeviceMismatch(RuntimeError):
    """Tensors of two devices met."""


class OnDevice(torch.Tensor):
    """``held``, said to lie on cuda:0."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device="cuda:0", **layout)

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self):
        _counts().waits[_where()] += 1
        return self.held.tolist()

    def numpy(self, *_, **__):
        raise DeviceMismatch(f"numpy() of a tensor on the device at {_where()}")

    def __repr__(self) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended tensor outside pretend()")


class Counts(TorchDispatchMode):
    """What a GPU would have been asked for, by (file, line) of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, OnDevice)]
        here = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if target is not None:
            kwargs |= {"device": torch.device("cpu"), **({"pin_memory": None} if "pin_memory" in kwargs else {})}
        self._count(func, name, args, there, here, target)
        given = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
        with _disable_current_modes():
            result = func(*given[0], **given[1])
        lies_there = target == "cuda" or (target is None and bool(there))
        if name in ("aten::copy_", "aten::index", "aten::index_put_"):
            lies_there = isinstance(args[0], OnDevice)
        known = {id(x.held): x for x in there}

        def wrapped(x):
            if not isinstance(x, torch.Tensor) or not lies_there:
                return x
            return known.get(id(x)) if id(x) in known else OnDevice(x)

        return tree_map(wrapped, result)

    def _count(self, func, name: str, args, there: list, here: list, target: str | None) -> None:
        where = _where()
        crosses = name in ("aten::copy_", "aten::_to_copy")
        # CUDA takes indices from the CPU, by a copy.
        by_cpu = name in ("aten::index", "aten::index_put_") and isinstance(args[0], OnDevice) and bool(here)
        if there and here and not crosses and not by_cpu:
            raise DeviceMismatch(f"{name} of {[(type(x).__name__, tuple(x.shape)) for x in there + here]} at {where}")
        leaves = name == "aten::_to_copy" and target == "cpu" and bool(there)
        enters = name == "aten::_to_copy" and target == "cuda" and not there
        by_mask = name == "aten::index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if (
            leaves
            or enters
            or by_mask
            or by_cpu
            or (there and name in WAITS)
            or (name == "aten::copy_" and there and here)
        ):
            self.waits[where] += 1
        views = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
        if (there or target == "cuda") and not views and name not in NO_LAUNCH:
            self.launches[where] += 1


class _Made(TorchFunctionMode):
    """``torch.tensor`` of a list, which would look for the device itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None or torch.device(kwargs["device"]).type != "cuda":
            return func(*args, **kwargs)
        values = [x.item() if isinstance(x, torch.Tensor) else x for x in args[0]] if args[0] else args[0]
        return torch.tensor(values, *args[1:], **(kwargs | {"device": "cpu"})).to(kwargs["device"])


_running: list[Counts] = []


def _counts() -> Counts:
    return _running[-1]


def _where() -> str:
    """The innermost line of the package that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/realad_verl/" in file:
            return f"{file.rsplit('/realad_verl/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def pretend() -> Iterator[Counts]:
    """Inside, ``tensor.to("cuda")`` gives a pretended tensor, and what it would cost is counted."""
    counts, lifted = Counts(), torch._C._only_lift_cpu_tensors()
    with FakeTensorMode(allow_non_fake_inputs=True):  # for its guard: no CUDA is asked for
        torch._C._set_only_lift_cpu_tensors(True)
        _running.append(counts)
        try:
            with _Made(), counts:
                yield counts
        finally:
            _running.pop()
            torch._C._set_only_lift_cpu_tensors(lifted)
