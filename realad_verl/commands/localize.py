"""``realad localize``: images -> answer, score, reasoning and anomaly map, as files."""

import glob
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from realad_verl.commands import options
from realad_verl.commands.model_option import model_or_tiny
from realad_verl.errors import UserError


def localize(
    images: Annotated[list[str], typer.Argument(help="Image files, directories (searched recursively) or globs.")],
    out: Annotated[Path, typer.Option(help="Directory to write to; made if absent.")] = Path("maps"),
    model: Annotated[str | None, options.model_option("the tiny backbone of this package")] = None,
    device: options.Device = "",
    batch_size: options.BatchSize = 4,
    max_new_tokens: options.MaxNewTokens = 256,
    method: options.Method = None,
    calibration: options.Calibration = None,
    white: Annotated[float | None, options.white_option("one for all of them, from a first pass")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Decide whether images are anomalous, and where, by a model's own reasoning and attention.

    Writes for each image NAME.json, NAME.overlay.png and, where the response has a reasoning, the anomaly map as
    NAME.map.npy and 16-bit NAME.map.png. Files that are no images are listed at the end; the exit code is then 1.
    """
    from realad_verl.data.depth import find_depth
    from realad_verl.data.images import deep_extremes

    paths = find_images(images, out)
    options.read_method(method, calibration or "none")  # a mistake is told before a model is loaded
    depth = find_depth(paths, deep_extremes, white)
    if depth is not None and white is None:
        typer.echo(f"note: images of more than 8 bits: {depth}. See --white.", err=True)
    out.mkdir(parents=True, exist_ok=True)

    import transformers

    from realad_verl.localize import Localizer

    transformers.logging.disable_progress_bar()
    folder = model_or_tiny(model)
    localizer = Localizer.from_pretrained(
        folder,
        method=options.read_method(method, calibration, folder),
        device=options.read_device(device),
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    records, unreadable = _run(localizer, paths, out, batch_size, depth)
    if as_json:
        typer.echo(json.dumps({"results": records, "unreadable": unreadable}, ensure_ascii=False))
    else:
        _print(records, unreadable, out)
    if unreadable:
        raise typer.Exit(1)


def find_images(arguments: Iterable[str], out: Path) -> list[Path]:
    """The files that the arguments name, each once, in their order; those of a directory or a glob are sorted.

    A directory's search leaves out hidden files, litter, and what an earlier run wrote to ``out``. A name that matches
    nothing stays in the list, to be reported as unreadable. Raises UserError where nothing is left.
    """
    from realad_verl.data.files import IMAGE_SUFFIXES, images_in

    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = [p for p in images_in(path, recursive=True) if not _own_output(p, out)]
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())
        found |= dict.fromkeys(files)
    if not found:
        raise UserError(f"no images in {', '.join(arguments)}. Looked for: {' '.join(sorted(IMAGE_SUFFIXES))}.")
    return list(found)


def _own_output(path: Path, out: Path) -> bool:
    """What ``realad localize`` wrote: NAME.overlay.png or NAME.map.png in ``out``, beside its NAME.json."""
    name, dot, _ = path.name.rpartition(".overlay.png")
    name, dot, _ = (name, dot, "") if dot else path.name.rpartition(".map.png")
    return bool(dot) and path.parent.resolve() == out.resolve() and (path.parent / f"{name}.json").is_file()


def output_names(paths: Iterable[Path]) -> list[str]:
    """File stems, a repeated one (in any case) with -2, -3, ...: no image overwrites another's files."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, count = path.stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.lower())
        names.append(name)
    return names


def _run(localizer: Any, paths: list[Path], out: Path, batch_size: int, depth: Any) -> tuple[list[dict], list[dict]]:
    from rich.console import Console
    from rich.progress import track

    from realad_verl.localize_files import write_outputs

    records, unreadable = [], []
    names = iter(zip(paths, output_names(paths), strict=True))
    steps = range(-(-len(paths) // batch_size))
    for _ in track(steps, "Localizing", console=Console(stderr=True), transient=True):
        batch = list(_readable(islice(names, batch_size), unreadable, depth))
        results = localizer([image for _, _, image in batch])
        for (path, name, image), result in zip(batch, results, strict=True):
            records.append(write_outputs(out, name, path, image, result))
    return records, unreadable


def _readable(files: Iterable[tuple[Path, str]], unreadable: list[dict], depth: Any) -> Iterator[tuple[Path, str, Any]]:
    from realad_verl.data.files import written
    from realad_verl.data.images import load_image

    for path, name in files:
        try:
            yield path, name, load_image(path, depth)
        except UserError as error:
            unreadable.append({"image": written(path), "reason": str(error)})


def _print(records: list[dict], unreadable: list[dict], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if records:
        table = Table("image", "answer", "score", "tokens", "kept", "Jaccard", "problem")
        for record in records:
            problems = [record[key] for key in ("format_problem", "problem") if record[key]]
            table.add_row(
                Path(record["image"]).name,
                record["answer"] or "-",
                _number(record["pred_score"]),
                str(len(record["tokens"])),
                f"{record['n_kept']}{' (fallback)' if record['fallback'] else ''}",
                _number(record["jaccard"]),
                ", ".join(problems),
            )
        console.print(table)
        console.print(f"{len(records)} images written to {out}", soft_wrap=True, highlight=False)
    if unreadable:
        console.print(f"{len(unreadable)} files could not be read:", highlight=False)
        for entry in unreadable:
            console.print(f"  {entry['reason']}", soft_wrap=True, highlight=False, markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
