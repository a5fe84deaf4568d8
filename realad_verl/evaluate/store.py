"""The folder of a run: settings.json, results.jsonl (one file a shard), maps/, results.json. Stopping it loses nothing.

A row is appended and flushed when its image is done, so a stopped run continues where it was. The settings are written
once and compared on every later start: a folder never mixes rows of two set-ups.
"""

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from realad_verl.errors import UserError, bad_value


def parse_shard(text: str | None) -> tuple[int, int]:
    """``"2/4"`` -> (2, 4); None -> (1, 1). UserError for anything else."""
    if text is None:
        return 1, 1
    parts = text.split("/")
    if len(parts) == 2 and all(p.isdecimal() for p in parts):
        index, count = int(parts[0]), int(parts[1])
        if 1 <= index <= count:
            return index, count
    raise bad_value("shard", text, "I/N with 1 <= I <= N, such as 2/4")


class ResultStore:
    """Rows and settings below ``folder``. ``settings`` is a JSON object: what would change a row."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as it will be read back
        path = folder / "settings.json"
        if not write_once(path, settings):  # of several shards that start at once, one writes it
            _check_same(read_json(path), settings, path)

    def rows(self) -> list[dict[str, Any]]:
        """Every finished row of every shard."""
        return read_rows(self.folder)

    @contextmanager
    def writer(self, shard: tuple[int, int] = (1, 1)) -> Iterator["RowWriter"]:
        """Append rows of one shard. UserError while another process writes the same shard."""
        index, count = shard
        name = "results.jsonl" if count == 1 else f"results.shard-{index}-of-{count}.jsonl"
        with open(self.folder / name, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is writing {self.folder / name}. Wait for it or stop it.") from None
            _cut_torn_line(file)
            yield RowWriter(file)


class RowWriter:
    """Appends rows to an open file, each on disk before the call returns."""

    def __init__(self, file: TextIO):
        self._file = file

    def append(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of every results*.jsonl below ``folder``, a torn last line left out, sorted by id; an id counts once."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("results*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a response may hold U+2028
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn or empty
            try:
                row = json.loads(line)
                files = [row[key] for key in ("map", "thumb") if row.get(key) is not None]
                rows.setdefault(row["id"], row)
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number} is not a result row. Delete the line and start again."
                ) from None
            for file in files:
                if not stays_below(file):
                    raise UserError(f"{path}, line {number} names a file outside of its folder: {file!r}. Delete it.")
    return [rows[key] for key in sorted(rows)]


def stays_below(name: Any) -> bool:
    """Whether the file ``name`` of a row lies below the folder that it is taken from."""
    return isinstance(name, str) and not os.path.isabs(name) and ".." not in Path(name).parts


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. UserError where the file is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return value


def write_once(path: Path, value: dict[str, Any]) -> bool:
    """Write ``value`` unless ``path`` is there; whether this call did. Whoever sees the file sees all of it."""
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.partial")
    partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` so that a reader sees the old file or the new one, never half of one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _cut_torn_line(file: TextIO) -> None:
    size = os.fstat(file.fileno()).st_size
    with open(file.name, "rb+") as raw:
        keep = size
        while keep:  # back to the last line end, in blocks: a row may be long
            start = max(0, keep - 65536)
            raw.seek(start)
            end = raw.read(keep - start).rfind(b"\n")
            keep = start + end + 1 if end >= 0 else start
            if end >= 0:
                break
        if keep < size:
            raw.truncate(keep)
    file.seek(0, os.SEEK_END)


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    differing = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differing:
        shown = "; ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in differing)
        raise UserError(f"{path.parent} holds results of other settings: {shown}. Give another --out, or delete it.")
