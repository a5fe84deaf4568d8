"""What became of every file below a data set's root: used, skipped by a rule, or unusable with a reason.

    used + skipped + unusable = all files

Nothing disappears: `realad prepare` and `realad evaluate` print the account and store it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from realad_verl.data.files import is_image, relative_id, walk
from realad_verl.data.mask_names import TRIED

NOT_READ = "an image where this layout reads none"
UNMATCHED = "a mask that matches no anomalous image"
SOUND_NORMAL = frozenset({"ok", "normal", "good", "pass", "non_defective", "no_defect", "defect_free"})
LISTED = 20  # unusable files that a summary names; all are counted


@dataclass
class Account:
    """``files``: by file (``relative_id``) its state, ("used" | "skipped" | "unusable", kind | rule | reason)."""

    files: dict[str, tuple[str, str]] = field(default_factory=dict)

    def use(self, files: Iterable[str], kind: str) -> None:
        """These are used, as ``kind``. What is no file below the root (only listed somewhere) does not count."""
        self._set(files, ("used", kind))

    def skip(self, files: Iterable[str], rule: str) -> None:
        """These are left out by ``rule``."""
        self._set(files, ("skipped", rule))

    def refuse(self, files: Iterable[str], reason: str) -> None:
        """These cannot be used, because of ``reason``."""
        self._set(files, ("unusable", reason))

    def _set(self, files: Iterable[str], state: tuple[str, str]) -> None:
        for file in files:
            if file in self.files:
                self.files[file] = state

    def count(self, state: str) -> int:
        """Files in ``state``."""
        return sum(1 for found, _ in self.files.values() if found == state)

    def to_dict(self) -> dict[str, Any]:
        """Counts, one example a rule, and the first unusable files, as JSON holds them."""
        kinds = Counter(what for state, what in self.files.values() if state == "used")
        skipped: dict[str, dict[str, Any]] = {}
        for file, (state, rule) in sorted(self.files.items()):
            if state == "skipped":
                skipped.setdefault(rule, {"rule": rule, "count": 0, "example": file})["count"] += 1
        bad = [{"file": f, "reason": why} for f, (state, why) in sorted(self.files.items()) if state == "unusable"]
        return {
            "files": len(self.files),
            "used": {kind: kinds[kind] for kind in sorted(kinds)},
            "skipped": list(skipped.values()),
            "n_unusable": len(bad),
            "unusable": bad[:LISTED],
        }


def account(
    root: Path,
    used: Mapping[str, Iterable[Path]],
    *,
    lists: Iterable[str] = (),
    mask_folders: Iterable[str] = (),
) -> Account:
    """The account of every file below ``root``.

    ``used``: paths by kind. ``lists`` and ``mask_folders``: patterns (fnmatch, of paths below the root) of files that a
    reader takes labels from, and of the places where it looks for masks.
    """
    taken: dict[str, str] = {}
    for kind, paths in used.items():
        for path in paths:
            taken.setdefault(str(path), kind)
    found = Account()
    folders = {path for path in taken if Path(path).is_dir()}  # masks of several files each
    for path, rule in walk(root):
        name = relative_id(path, root)
        kind = taken.get(str(path)) or (taken.get(str(path.parent)) if str(path.parent) in folders else None)
        found.files[name] = _state(path, name, rule, kind, tuple(lists), tuple(mask_folders))
    return found


def _state(
    path: Path, name: str, rule: str | None, kind: str | None, lists: tuple[str, ...], mask_folders: tuple[str, ...]
) -> tuple[str, str]:
    if kind is not None:
        return "used", kind
    if rule is not None:
        return "skipped", rule
    if not path.exists():
        return "unusable", "a link to nothing"
    if not path.is_file():
        return "skipped", "no file (a socket, a pipe or a device)"
    if any(fnmatchcase(name, pattern) for pattern in lists):
        return "used", "lists"
    if not is_image(path):
        return "skipped", f"no image by its name (*{path.suffix.lower()})" if path.suffix else "no image by its name"
    return "skipped", UNMATCHED if any(fnmatchcase(name, pattern) for pattern in mask_folders) else NOT_READ


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """The account (``Account.to_dict``) in words, a line each."""
    used = ", ".join(f"{count:,} {kind}" for kind, count in account["used"].items()) or "nothing"
    lines = [f"{account['files']:,} files found; used: {used}"]
    lines += [f"skipped: {s['count']:,} x {s['rule']}, as {s['example']}" for s in account["skipped"]]
    lines += [f"unusable: {entry['file']} ({entry['reason']})" for entry in account["unusable"]]
    more = account["n_unusable"] - len(account["unusable"])
    return lines + ([f"unusable: {more:,} more"] if more else [])


def remarks(samples: Sequence[Any], account: Account) -> list[str]:
    """What is worth saying of the ``samples`` (``datasets.base.Sample``) of one split: categories of one class, masks
    without an image, and anomalous images without a mask where others have one."""
    lines = []
    for category in sorted({sample.category for sample in samples}):
        types = Counter(sample.defect_type for sample in samples if sample.category == category)
        normal = types.pop("good", 0)
        if not types:
            lines.append(f"category {category}: {normal} normal images and no anomalous one")
        elif not normal:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(types.items()))
            lines.append(f"category {category}: no normal image; all are taken as anomalous ({counts})")
        sound = sorted(name for name in types if name.lower() in SOUND_NORMAL)
        if sound:
            lines.append(f"category {category}: '{sound[0]}' is taken as a defect type. A folder of normal images is "
                         "named good (in the layout folder: normal)")  # fmt: skip
    unmatched = sorted(file for file, state in account.files.items() if state == ("skipped", UNMATCHED))
    bare = [sample.id for sample in samples if sample.label and sample.mask_path is None]
    if bare and (unmatched or any(sample.mask_path for sample in samples)):
        anomalous = sum(sample.label for sample in samples)
        lines.append(f"{len(bare)} of {anomalous} anomalous images have no mask, as {bare[0]}")
    if unmatched:
        lines.append(f"{len(unmatched)} masks match no anomalous image, as {unmatched[0]}. Names tried: {TRIED}")
    return lines
