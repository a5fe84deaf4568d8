"""What a wrapped attention kernel reports, and who is listening.

A kernel call belongs to the reading that is active in the same thread (a context variable), so models that run beside
it in other threads, and layers that autograd recomputes in its own threads, are not observed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class KernelCall:
    """One call of an attention kernel, described by what decides its probabilities.

    The token axis N is one batch row's padded length in a dense call, and the whole pack where ``cu_seqlens`` is given
    (then B = 1). H query heads, G key heads (H a multiple of G), D head width.

    Attributes:
        query_BHND, key_BGND: as the kernel saw them, after rotary embedding.
        scale: factor on QK^T.
        mask: [B or 1, H or 1, N, N], bool (True = visible) or additive; None if the kernel got none.
        causal: the kernel itself hides keys after the query.
        window: (left, right) keys visible beside the query's own, -1 = unlimited (flash-attn's ``window_size``).
        softcap: logits become ``softcap * tanh(logits / softcap)``; 0 = off.
        sink_H: logit of one more key per head that takes probability and has no column (attention sinks).
        cu_seqlens: [S + 1] boundaries of the packed sequences.
        padding_mask_BT: the mask [B, T] by which a padded batch was unpadded into this pack, if it was.
        weights_BHNN: the kernel's own probabilities, if it makes them (eager attention); nothing else is used then.
    """

    query_BHND: Tensor
    key_BGND: Tensor
    scale: float
    mask: Tensor | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink_H: Tensor | None = None
    cu_seqlens: Tensor | None = None
    padding_mask_BT: Tensor | None = None
    weights_BHNN: Tensor | None = None

    def kind(self) -> tuple:
        """What calls that differ in their numbers only have in common, as those of like layers of a forward do."""
        query, key = self.query_BHND, self.key_BGND
        of_tensors = query.stride(), query.dtype, key.stride(), key.dtype, id(self.mask), self.sink_H is None
        return *self.layout(), of_tensors, self.scale, self.window, self.softcap

    def layout(self) -> tuple:
        """What decides where a request's rows and columns lie, and how they are cut."""
        packed, unpadded = self.cu_seqlens is not None, self.padding_mask_BT is not None
        shapes = self.query_BHND.shape, self.key_BGND.shape
        return *shapes, self.causal, packed, unpadded, self.weights_BHNN is not None


class Observer(Protocol):
    """A reading in progress."""

    padding_mask_BT: Tensor | None

    def wants_call(self, module: Any = None) -> bool:
        """Whether the running layer is one that is read and has not been seen yet.

        ``module`` is its, where the kernel is told; where not, a hook has said which layer runs.
        """
        ...

    def saw(self, call: KernelCall) -> None:
        """Takes one kernel call of the running layer; a layer's second call is ignored."""
        ...


_ACTIVE: ContextVar[Observer | None] = ContextVar("realad_verl_attention_reading", default=None)


def active_observer() -> Observer | None:
    """The reading of this thread, or None."""
    return _ACTIVE.get()


def listening_observer(module: Any = None) -> Observer | None:
    """The reading of this thread if it wants the kernel call that is about to run, else None.

    ``module``: whose call it is, where the kernel is told (sdpa and eager are, flash-attn is not).
    """
    observer = _ACTIVE.get()
    return observer if observer is not None and observer.wants_call(module) else None


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Makes ``observer`` the reading of this thread. Raises RuntimeError if there is one already."""
    if _ACTIVE.get() is not None:
        raise RuntimeError("attention is already being read in this thread: readings cannot be nested")
    token = _ACTIVE.set(observer)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
