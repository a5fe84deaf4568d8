"""``realad prepare``: a dataset's images and image-level labels -> train.parquet, val.parquet, manifest.json.

The story: list the samples, choose (balance, limit), part into train and val by group, then stream: decode in parallel,
refuse what is already known by content, write row groups. Masks are never opened. Everything is written beside its
place and moved there at the end, so an interrupted run leaves no half-written file.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from realad_verl import __version__
from realad_verl.data import manifest
from realad_verl.data.account import Account, remarks
from realad_verl.data.datasets import ALL, Sample, get_dataset
from realad_verl.data.decode import RESAMPLING, Decoded, Unusable, decode
from realad_verl.data.depth import find_depth
from realad_verl.data.files import relative_id, written
from realad_verl.data.images import deep_extremes
from realad_verl.data.parallel import ordered_map
from realad_verl.data.rows import RowWriter, make_row
from realad_verl.data.sampling import select, split_train_val
from realad_verl.errors import UserError, bad_value

SPLITS = ("train", "val")
STAGING_PREFIX = ".prepare-"
NOT_CHOSEN = "another split, or more than --balance or --max-per-class takes"
SHOWN = 50  # entries of a list that an error message shows


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of one run. The defaults other than the size (the paper's 420 x 420) are ours.

    size: side of the squares, or the longest side with keep_aspect.
    white: of images of more than 8 bits, the pixel value that becomes white; None: one for the set, from a first pass.
    """

    size: int = 420
    keep_aspect: bool = False
    split: str = ALL
    val_fraction: float = 0.1
    max_per_class: int | None = None
    balance: bool = True
    seed: int = 0
    max_bad_share: float = 0.01
    against: tuple[Path, ...] = ()
    drop_overlap: bool = False
    white: float | None = None

    def __post_init__(self) -> None:
        if not 14 <= self.size <= 4096:
            raise bad_value("size", self.size, "14 to 4096 pixels")
        if not 0 <= self.val_fraction <= 1:
            raise bad_value("val_fraction", self.val_fraction, "0 (no val.parquet) to 1 (only val.parquet)")
        if self.max_per_class is not None and self.max_per_class < 1:
            raise bad_value("max_per_class", self.max_per_class, "1 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise bad_value("max_bad_share", self.max_bad_share, "0 to 1")
        if self.white is not None and not self.white > 0:
            raise bad_value("white", self.white, "a number above 0: the pixel value that becomes white")


@dataclass
class _Record:
    """What happened to the images so far."""

    known: dict[str, str]
    images: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    overlaps: list[dict[str, str]] = field(default_factory=list)


def prepare(
    name: str,
    root: Path,
    out: Path,
    settings: PrepareSettings,
    *,
    workers: int = 2,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Prepare dataset ``name`` from ``root`` into the directory ``out``; returns the manifest. See the module's text.

    ``on_progress(done, total)`` is called after each image. UserError: bad settings or layout, ``out`` not empty, more
    unusable images than ``max_bad_share``, content that overlaps with ``against`` or between train and val.
    """
    if workers < 1:
        raise bad_value("workers", workers, "1 or more")
    dataset = get_dataset(name)
    _check_out(out, overwrite)
    record = _Record(known=manifest.read_hashes(settings.against))
    everything = dataset.samples(root)
    samples = dataset.of_split(everything, settings.split)
    selection = select(
        samples,
        balance=settings.balance,
        max_per_class=settings.max_per_class,
        seed=settings.seed,
    )
    if not selection.samples:
        why = "; ".join(f"{category}: {reason}" for category, reason in selection.dropped.items())
        raise UserError(
            f"dataset {name}: no category has both classes ({why}). Use --no-balance to take what is there."
        )
    parts = dict(zip(SPLITS, split_train_val(selection.samples, settings.val_fraction, settings.seed), strict=True))
    depth = find_depth([sample.path for sample in everything], deep_extremes, settings.white, workers)
    reader = partial(decode, size=settings.size, depth=depth, keep_aspect=settings.keep_aspect)
    tick = _counter(len(selection.samples), on_progress)
    with _staging(out) as folder:
        for split in SPLITS:
            if parts[split]:
                _write_split(folder / f"{split}.parquet", split, parts[split], reader, workers, record, tick)
        _check_record(record, len(selection.samples), settings)
        found = _account(dataset.account(root, everything), root, everything, record)
        content = _manifest(name, root, folder, settings, record, selection.dropped)
        content |= {"depth": depth and depth.to_dict(), "account": found.to_dict()}
        content["remarks"] = remarks(samples, found)
        (folder / manifest.NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _publish(folder, out)
    return content


def _write_split(
    path: Path,
    split: str,
    samples: Sequence[Sample],
    reader: Callable[[Path], Decoded | Unusable],
    workers: int,
    record: _Record,
    tick: Callable[[], None],
) -> None:
    here: dict[str, str] = {}
    results = ordered_map(reader, (sample.path for sample in samples), workers)
    with RowWriter(path) as writer:
        for sample, result in zip(samples, results, strict=True):
            tick()
            if isinstance(result, Unusable):
                record.skipped.append({"id": sample.id, "reason": result.kind, "detail": result.detail})
                continue
            if result.sha256 in record.known:
                record.overlaps.append({"id": sample.id, "split": split, "same_as": record.known[result.sha256]})
                continue
            writer.write(make_row(sample, result.png, split, writer.written))
            here[result.sha256] = f"{split} image {sample.id}"
            record.images.append(
                {
                    "id": sample.id,
                    "split": split,
                    "label": sample.label,
                    "category": sample.category,
                    "sha256": result.sha256,
                }
            )
    record.known |= here


def _account(found: Account, root: Path, samples: Sequence[Sample], record: _Record) -> Account:
    """The account of the files, with what became of the images that were chosen and of those that were not."""
    files = {sample.id: relative_id(sample.path, root) for sample in samples}
    unwritten = files.keys() - {image["id"] for image in record.images}
    found.skip((files[sample_id] for sample_id in unwritten), NOT_CHOSEN)
    found.skip((files[entry["id"]] for entry in record.overlaps), "the same content as an image to be kept apart")
    for entry in record.skipped:
        found.refuse([files[entry["id"]]], f"{entry['reason']}: {entry['detail']}")
    return found


def _check_record(record: _Record, total: int, settings: PrepareSettings) -> None:
    if len(record.skipped) > settings.max_bad_share * total:
        lines = [f"  {entry['id']}: {entry['reason']} ({entry['detail']})" for entry in record.skipped]
        raise UserError(
            f"{len(lines)} of {total} images cannot be used; max_bad_share = {settings.max_bad_share:g} allows fewer:"
            f"\n{_shown(lines)}\nRepair or remove them, or allow a larger share with --max-bad-share."
        )
    if record.overlaps and not settings.drop_overlap:
        lines = [f"  {entry['id']} ({entry['split']}) is the same as {entry['same_as']}" for entry in record.overlaps]
        raise UserError(
            f"{len(lines)} images overlap by content with data that must be kept apart:\n{_shown(lines)}\n"
            "Remove them, or leave them out with --drop-overlap."
        )
    if not record.images:
        raise UserError("no image is left to write.")


def _shown(lines: Sequence[str]) -> str:
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])


def _manifest(
    name: str, root: Path, folder: Path, settings: PrepareSettings, record: _Record, dropped: dict[str, str]
) -> dict[str, Any]:
    counts = Counter((i["split"], i["category"], "anomalous" if i["label"] else "normal") for i in record.images)
    options = asdict(settings) | {"against": [str(path) for path in settings.against], "resampling": RESAMPLING}
    files = {path.name: path for path in sorted(folder.glob("*.parquet"))}
    return {
        "format": manifest.FORMAT,
        "dataset": name,
        "root": written(root),
        "settings": options,
        "versions": {
            "realad_verl": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("pyarrow", "pillow")},
        },
        "files": {
            file: {
                "rows": sum(image["split"] == path.stem for image in record.images),
                "bytes": path.stat().st_size,
                "sha256": manifest.file_sha256(path),
            }
            for file, path in files.items()
        },
        "counts": [
            {"split": split, "category": category, "class": label, "images": count}
            for (split, category, label), count in sorted(counts.items())
        ],
        "dropped_categories": dropped,
        "skipped": record.skipped,
        "overlaps_dropped": record.overlaps,
        "duplicates": manifest.duplicates(record.images),
        "images": record.images,
    }


def _counter(total: int, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    return tick


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out = {out} is a file. Give a directory.")
    present = [path.name for path in out.iterdir() if not path.name.startswith(STAGING_PREFIX)] if out.is_dir() else []
    if present and not overwrite:
        raise UserError(
            f"out = {out} is not empty ({', '.join(sorted(present)[:5])}). Give another directory, or --overwrite, "
            f"which replaces train.parquet, val.parquet and {manifest.NAME} there and leaves every other file."
        )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A temporary folder inside ``out``, gone afterwards; so is ``out`` if the run made it and put nothing there."""
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=out))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if made and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise UserError(f"cannot write to out = {out}: {error.strerror or error}.") from error


def _publish(folder: Path, out: Path) -> None:
    """Move the files into place. The manifest goes first and comes last: where one is, it tells the truth."""
    (out / manifest.NAME).unlink(missing_ok=True)
    for name in (*(f"{split}.parquet" for split in SPLITS), manifest.NAME):
        if (folder / name).exists():
            os.replace(folder / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
