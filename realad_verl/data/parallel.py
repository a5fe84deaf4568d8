"""Work on several threads at a time, in order, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map(function, items)`` on ``workers`` threads. At most 3 * workers results exist at a time.

    Threads, not processes: Pillow decodes, resizes and compresses without the interpreter lock.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="realad") as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Overlap:
    """What is made of one part of a batch, on a thread, while the caller computes the next; one at a time, in order.

    Training: the evidence of a micro-batch, whose regions the CPU labels, beside the forward of the next.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="realad-evidence")
        self._running: tuple[Future, dict[str, Any]] | None = None
        self._awaited = 0

    def expect(self, samples: int) -> None:
        """A batch of so many samples comes now, in parts; what a failed one has left is dropped."""
        if self._running is not None:
            self._running[0].cancel()
        self._running, self._awaited = None, samples

    def submit(self, samples: int, output: dict[str, Any], reduce: Callable[[], dict[str, Any]]) -> None:
        """Lets ``reduce`` run, whose result goes into ``output`` before the next of its batch, or the batch, ends.

        ``samples`` of the batch are in it; with the last of them, and outside a batch, this returns with all results in
        place. Raises what the ``reduce`` before has raised, or this one where it is the last.
        """
        self._settle()
        self._running = (self._pool.submit(reduce), output)
        self._awaited -= samples
        if self._awaited <= 0:
            self._settle()

    def _settle(self) -> None:
        if self._running is not None:
            (result, output), self._running = self._running, None
            output.update(result.result())
