"""Progress bars on stderr, with the time that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress(title: str | None = None, *, transient: bool = False) -> Iterator["Progress"]:
    """rich's bars; ``title`` is printed above them, ``transient`` ones leave nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if title is not None:
        console.print(title, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), Remaining(), console=console, transient=transient) as bars:
        yield bars


def counter(bars: "Progress", name: str, total: int, left: int | None = None) -> Callable[[], None]:
    """A new bar of ``total``, all but ``left`` of it done; returns what moves it by one."""
    task = bars.add_task(name, total=total, completed=total - (total if left is None else left))
    return lambda: bars.advance(task)
