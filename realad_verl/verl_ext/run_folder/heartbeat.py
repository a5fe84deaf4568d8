"""Where a run is: one small file in the run folder, written by the trainer at every phase, read by the launcher.

It also carries the request to stop: the launcher leaves ``stop`` beside it, the trainer saves and ends.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HEARTBEAT = "heartbeat.json"
STOP = "stop_requested"


@dataclass(frozen=True)
class Beat:
    """``phase`` in words, the step it belongs to (0 before the first), and when it began (seconds since the epoch)."""

    phase: str
    step: int
    total_steps: int
    since: float
    pid: int


def write(folder: Path, phase: str, step: int = 0, total_steps: int = 0) -> None:
    """Say that ``phase`` begins now. Atomic: a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{HEARTBEAT}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(Beat(phase, step, total_steps, time.time(), os.getpid()))))
    temporary.replace(folder / HEARTBEAT)


def read(folder: Path) -> Beat | None:
    """The last beat; None when the run has not written one, or when a shared file system shows an unreadable one."""
    try:
        return Beat(**json.loads((folder / HEARTBEAT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def clear(folder: Path) -> None:
    """Forget the beat and stop request of an earlier run in this folder."""
    for name in (HEARTBEAT, STOP):
        (folder / name).unlink(missing_ok=True)


def request_stop(folder: Path) -> None:
    """Ask the trainer to save a checkpoint after the step it is in, and to end."""
    (folder / STOP).touch()


def stop_requested(folder: Path) -> bool:
    """Whether somebody asked for a stop."""
    return (folder / STOP).exists()
