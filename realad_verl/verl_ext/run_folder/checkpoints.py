"""Which checkpoint of a run is whole: what a resume may start from.

verl writes a checkpoint file by file and its number into the tracker last, but not atomically: a process that is killed
there, or a disk that is full, leaves a tracker without a number. So the trainer leaves a list of the finished
checkpoint's files and their sizes beside the weights, and a resume takes the newest checkpoint that fits its list.
"""

import json
import os
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
# Inside the folder that verl removes when it keeps only the newest checkpoints: the list goes with the weights.
COMPLETE = "actor/complete.json"
# Without the first there are no weights, without the second the data would begin again.
NEEDED = ("actor", "data.pt")


def unmark(folder: Path, step: int) -> None:
    """A checkpoint of ``step`` is about to be written, perhaps over a damaged one."""
    (_checkpoint(folder, step) / COMPLETE).unlink(missing_ok=True)


def mark_complete(folder: Path, step: int) -> None:
    """Say that the checkpoint of ``step`` in run folder ``folder`` is whole, as it is now."""
    checkpoint = _checkpoint(folder, step)
    sizes = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path != checkpoint / COMPLETE
    }
    _write(checkpoint / COMPLETE, json.dumps(sizes, indent=1))


def last_complete(folder: Path) -> int | None:
    """The step of the newest whole checkpoint of a run, or None.

    That is the tracker's, unless the tracker is torn or what it names is not whole. A checkpoint without a list (the
    process died right after verl wrote the tracker) counts only if the tracker names it.
    """
    tracker = folder / TRACKER
    text = tracker.read_text().strip() if tracker.exists() else ""
    if text.isdigit() and _is_whole(_checkpoint(folder, int(text)), listed=False):
        return int(text)
    steps = [path.name.removeprefix("global_step_") for path in folder.glob("global_step_*")]
    whole = (int(s) for s in steps if s.isdigit() and _is_whole(_checkpoint(folder, int(s)), listed=True))
    return max(whole, default=None)


def repair_tracker(folder: Path) -> None:
    """Make verl resume from :func:`last_complete`."""
    step = last_complete(folder)
    if step is not None and (not (folder / TRACKER).exists() or (folder / TRACKER).read_text() != str(step)):
        _write(folder / TRACKER, str(step))


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"global_step_{step}"


def _is_whole(checkpoint: Path, listed: bool) -> bool:
    """Whether all files of the list are there with their sizes; without a list, what ``listed`` allows."""
    if not all((checkpoint / name).exists() for name in NEEDED):
        return False
    if not (checkpoint / COMPLETE).exists():
        return not listed
    sizes = json.loads((checkpoint / COMPLETE).read_text())
    found = ((checkpoint / name, size) for name, size in sizes.items())
    return all(path.is_file() and path.stat().st_size == size for path, size in found)


def _write(path: Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
