"""The best step of a run by its validation: its checkpoint, kept where the rotation of the others does not reach.

``best/global_step_N`` holds the checkpoint's files, as hard links where the file system has them, so that it costs no
disk while the checkpoint itself is still there; ``best_step.txt`` names N.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from realad_verl.errors import UserError

BEST, STEP, MARK = "best", "best_step.txt", "best.json"


@dataclass(frozen=True)
class Best:
    """``value`` of ``metric`` at ``step``."""

    step: int
    metric: str
    value: float


def read_best(folder: Path) -> Best | None:
    """The best step of the run in ``folder`` so far, None where none was kept."""
    try:
        return Best(**json.loads((folder / BEST / MARK).read_text()))
    except FileNotFoundError:
        return None


def keep_best(folder: Path, best: Best) -> Best:
    """Keep the checkpoint of ``best.step``, which must be there, in place of the one kept before.

    ``best.json`` says which one counts, and is written when the new one is whole: a run that dies in between keeps the
    one before.
    """
    kept, name = folder / BEST, f"global_step_{best.step}"
    coming = kept / ".coming"
    shutil.rmtree(coming, ignore_errors=True)
    shutil.copytree(folder / name, coming, copy_function=_link)
    shutil.rmtree(kept / name, ignore_errors=True)
    coming.rename(kept / name)
    if (folder / "config.yaml").exists():
        shutil.copy2(folder / "config.yaml", kept / "config.yaml")
    _write(kept / MARK, json.dumps(asdict(best)))
    _write(folder / STEP, f"{best.step}\n")
    for other in kept.glob("global_step_*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return best


def best_of(folder: Path) -> Path:
    """Where the best checkpoint of the run in ``folder`` lies. UserError where none was kept."""
    best = read_best(folder)
    if best is None:
        raise UserError(
            f"{folder} holds no best step: `realad train` keeps one where realad.val.best names a metric of validation "
            f"(image_auroc, accuracy, ...) and trainer.test_freq is > 0. Without --best the newest step is taken."
        )
    return folder / BEST / f"global_step_{best.step}"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _write(path: Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
