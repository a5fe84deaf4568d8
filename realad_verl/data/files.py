"""Files below a data set's folder: which there are, which are images by name, and how a name is written.

Links to files and folders are followed; a link back to a folder that it lies in ends there. Litter of cameras, NAS
boxes and file managers is left out by name. :mod:`realad_verl.data.account` says what became of each file.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

# What Pillow opens, by the names that cameras and labelling tools give (.heic and .heif with the package pillow-heif).
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
    | {".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif"}
)
LITTER = frozenset(
    {"@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "thumbs.db", "desktop.ini", "lost+found"}
    | {"system volume information"}
)
MAX_LINKS = 3  # links to folders on one path: bounds what folders that link to each other can unfold to

HIDDEN = "hidden (.*, *~) or litter (@eaDir, __MACOSX, Thumbs.db ...)"
LOOP = f"a link back to a folder that it lies in, or the {MAX_LINKS + 1}th link on its path"


def walk(root: Path, links: int = 0) -> Iterator[tuple[Path, str | None]]:
    """Every file below ``root``, sorted, as (path, rule): the rule that leaves it out by its name or place, or None.

    Links to folders are followed. A link that is not (see LOOP) is one entry of its own. The content of a hidden folder
    is listed too, by the folder's rule. ``links``: how many are on the path to ``root``.
    """
    yield from _walk(root, None, (os.path.realpath(root),), links)


def _walk(folder: Path, rule: str | None, above: tuple[str, ...], links: int) -> Iterator[tuple[Path, str | None]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        here = rule or (HIDDEN if is_litter(entry.name) else None)
        if not _is_folder(entry):
            yield path, here
            continue
        hops = links + entry.is_symlink()
        real = os.path.realpath(path)
        back = any(folder == real or folder.startswith(real + os.sep) for folder in above)
        if entry.is_symlink() and (back or hops > MAX_LINKS):
            yield path, here or LOOP
        else:
            yield from _walk(path, here, (*above, real), hops)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_litter(name: str) -> bool:
    """Hidden, a backup, or what a system leaves behind, by its name."""
    return name.startswith(".") or name.endswith("~") or name.lower() in LITTER


def is_image(path: Path) -> bool:
    """An image by its name; whether it opens is another question."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def images_in(directory: Path, recursive: bool = False) -> list[Path]:
    """Image files in ``directory``, sorted; litter and other suffixes are left out. [] if it is missing."""
    if not directory.is_dir():
        return []
    if recursive:
        found = [path for path, rule in walk(directory, int(directory.is_symlink())) if rule is None]
    else:
        found = [path for path in directory.iterdir() if not is_litter(path.name)]
    return sorted(path for path in found if is_image(path) and path.is_file())


def subdirectories(directory: Path) -> list[Path]:
    """Sub-directories, links to directories too, sorted; hidden ones and litter are left out. [] if it is missing."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not is_litter(path.name))


def written(name: str | os.PathLike[str]) -> str:
    """``name`` as text that can be printed and stored: bytes that are not UTF-8 become ``\\xb5``; see ``unwritten``.

    A name that holds such a text itself gets its backslash written as ``\\x5c``; every other name stays as it is.
    """
    text = re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", os.fspath(name))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unwritten(text: str) -> str:
    """The name that ``written`` made ``text`` of, as Python's file functions take it."""
    parts = re.split(rb"\\x([0-9a-f]{2})", text.encode("utf-8"))
    return os.fsdecode(b"".join(bytes.fromhex(part.decode()) if i % 2 else part for i, part in enumerate(parts)))


def relative_id(path: Path, root: Path) -> str:
    """The id of the image at ``path``: its path below ``root`` with forward slashes, as ``written``."""
    return written(path.relative_to(root).as_posix())
