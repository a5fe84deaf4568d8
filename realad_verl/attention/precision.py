"""Products in full fp32, whatever precision the forward around them runs in."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()  # the switches are global: another thread must not put them back in the middle


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Leaves autocast, and turns TF32 and bf16 products of fp32 matrices off for its time.

    verl runs a bf16 model inside ``torch.autocast``, which would turn even ``x.float() @ y.float()`` into a bf16
    product; ``torch.set_float32_matmul_precision("high")`` and its kin keep 10 bits of mantissa of 23.
    """
    with torch.autocast(device_type, enabled=False), _lock:
        matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
        before = [matmul.fp32_precision for matmul in matmuls]
        if all(value in ("none", "ieee") for value in before):
            yield
            return
        legacy = _legacy_precision()
        try:
            # Old and new switch must agree: where they do not, torch refuses the next product on a GPU.
            if legacy is not None:
                torch.set_float32_matmul_precision("highest")
            for matmul in matmuls:
                matmul.fp32_precision = "ieee"
            yield
        finally:
            if legacy is not None:
                torch.set_float32_matmul_precision(legacy)
            for matmul, value in zip(matmuls, before, strict=True):
                matmul.fp32_precision = value


def _legacy_precision() -> str | None:
    """What the old switch says, None where only the new ones were used: torch will not tell then."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
