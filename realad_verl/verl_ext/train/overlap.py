"""Evidence of one micro-batch, reduced on a thread while the device runs the forward of the next.

Regions are components that the CPU labels: between two forwards, a GPU would stand idle meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Overlap:
    """One reduction at a time, in the order of the micro-batches, each into its own output."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="realad-evidence")
        self._running: tuple[Future, dict[str, Any]] | None = None
        self._awaited = 0

    def expect(self, samples: int) -> None:
        """A batch of so many samples comes now, in micro-batches; what a failed one has left is dropped."""
        if self._running is not None:
            self._running[0].cancel()
        self._running, self._awaited = None, samples

    def submit(self, samples: int, output: dict[str, Any], reduce: Callable[[], dict[str, Any]]) -> None:
        """Lets ``reduce`` run, whose result goes into ``output`` before the next of its batch, or the batch, ends.

        ``samples`` of the batch are in it; with the last of them, and outside a batch, this returns with all results in
        place. Raises what an earlier ``reduce`` has raised, or this one where it is the last.
        """
        self._settle()
        self._running = (self._pool.submit(torch.no_grad()(reduce)), output)
        self._awaited -= samples
        if self._awaited <= 0:
            self._settle()

    def _settle(self) -> None:
        if self._running is not None:
            (result, output), self._running = self._running, None
            output.update(result.result())
