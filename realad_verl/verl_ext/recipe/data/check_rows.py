"""The rows of the data files: what verl would only say after minutes of start-up, or never. A few rows of each file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from realad_verl.data.images import deep_extremes, load_image
from realad_verl.data.rows import image_source
from realad_verl.errors import UserError
from realad_verl.method.config import SpanConfig
from realad_verl.verl_ext.recipe.data.check_data import COLUMNS
from realad_verl.verl_ext.recipe.data.model_text import prompt_tokens, template_opens
from realad_verl.verl_ext.recipe.problem import Problem, Setup

KEYS = ("data.train_files", "data.val_files")
SEEN = 3  # rows of a file: its first, one of the middle, its last row group
MARK = "<image>"
SOCKET, SOCKET_LIMIT = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store", 107  # as Ray names them
PREPARE = "make the file with realad prepare"


@dataclass(frozen=True)
class Found:
    """One file: how many rows, its first one as a table, and some of its rows with their place."""

    name: str
    rows: int
    head: Any
    seen: list[tuple[int, dict[str, Any]]]


def rows_are_usable(s: Setup) -> Iterator[Problem]:
    """Opens every local data file that can be opened; what is no parquet file is another rule's."""
    for key in KEYS:
        names = s.get(key) or []
        files = [found for name in ([names] if isinstance(names, str) else names) if (found := _open(name)) is not None]
        yield from _schemas_agree(key, files)
        yield from _has_rows(key, files)
        for file in files:
            yield from _rows_of(s, key, file)


def total_steps(config: DictConfig) -> int | None:
    """Steps of the whole run, as verl counts them; None where the number of rows cannot be seen here."""
    if config.trainer.total_training_steps is not None:
        return config.trainer.total_training_steps
    names = config.data.train_files
    import pyarrow.parquet

    try:
        paths = [Path(name).expanduser() for name in ([names] if isinstance(names, str) else names)]
        rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)
    except (OSError, pyarrow.ArrowException):
        return None
    return rows // config.data.train_batch_size * config.trainer.total_epochs


def temp_folder_is_short(s: Setup) -> Iterator[Problem]:
    """Ray puts sockets below its temporary folder, and a socket's path has 107 bytes at most."""
    if "RAY_ADDRESS" in os.environ or s.get("ray_kwargs.ray_init.address") is not None:
        return
    own = s.get("ray_kwargs.ray_init._temp_dir")
    folder = own or os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")
    length = len(os.fsencode(folder)) + len(SOCKET)
    if length > SOCKET_LIMIT:
        rule = (
            f"{length - SOCKET_LIMIT} bytes too long: Ray's sockets lie below it, {SOCKET_LIMIT} bytes at most in all"
        )
        yield Problem("TMPDIR" if own is None else "ray_kwargs.ray_init._temp_dir", folder, rule, "RAY_TMPDIR=/tmp")


def template_agrees(s: Setup) -> Iterator[Problem]:
    """``spans.opened_by_template`` against the model's chat template, where that is here."""
    try:
        spans = SpanConfig(**s.get("realad.method.spans", {}))
    except (UserError, TypeError):
        return  # a rule of its own
    opens = template_opens(s, spans)
    if opens is not None and spans.opened_by_template not in ("auto", opens):
        does = "ends a prompt with" if opens else "does not end a prompt with"
        yield Problem(
            "realad.method.spans.opened_by_template",
            spans.opened_by_template,
            f"the model's chat template {does} {spans.think_open!r}: no response would be well formed",
            "auto",
        )


def _open(name: str) -> Found | None:
    import pyarrow
    import pyarrow.parquet

    path = Path(name).expanduser()
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if not set(COLUMNS) <= set(file.schema_arrow.names):
            return None
        groups = sorted({0, file.num_row_groups // 2, file.num_row_groups - 1} if file.num_row_groups else ())[:SEEN]
        seen, head = [], None
        for group in groups:
            before = sum(file.metadata.row_group(i).num_rows for i in range(group))
            batch = next(file.iter_batches(batch_size=1, row_groups=[group]), None)
            seen += [(before, row) for row in (batch.to_pylist() if batch is not None else [])]
            head = pyarrow.Table.from_batches([batch]) if head is None and batch is not None else head
        return Found(name, file.metadata.num_rows, head, seen)
    except (OSError, pyarrow.ArrowException):
        return None


def _schemas_agree(key: str, files: list[Found]) -> Iterator[Problem]:
    """verl joins its files into one table; the first that does not fit ends the run at its start."""
    import datasets

    tables: list[datasets.Dataset] = []
    files = [file for file in files if file.head is not None]  # empty ones are left out by `datasets` too
    for file in files:
        tables.append(datasets.Dataset(file.head))
        try:
            datasets.concatenate_datasets(tables)
        except ValueError as error:
            first = files[0].head.schema
            differ = [
                f"{field.name}: {first.field(field.name).type} in {files[0].name}, {field.type} in {file.name}"
                for field in file.head.schema
                if field.name in first.names and first.field(field.name).type != field.type
            ]
            yield Problem(key, file.name, f"does not fit the other files ({'; '.join(differ) or error})", PREPARE)
            return


def _has_rows(key: str, files: list[Found]) -> Iterator[Problem]:
    """Files without a row; a batch of more rows than there are is a rule of its own."""
    if key == KEYS[1] and files and not any(file.rows for file in files):
        yield Problem(key, files[0].name, "holds no row", PREPARE)


def _rows_of(s: Setup, key: str, file: Found) -> Iterator[Problem]:
    for place, row in file.seen:
        where, prompt, images = f"{file.name}, row {place}", row.get("prompt"), row.get("images")
        wrong = _wrong_prompt(prompt, images)
        if wrong is None:
            assert prompt is not None and images is not None
            picture = _picture(images[0])
            wrong = picture if isinstance(picture, str) else None
        if wrong is not None:
            yield Problem(key, where, wrong, PREPARE)
            return
        assert isinstance(picture, Image.Image) and prompt is not None
        needed, longest = prompt_tokens(s, _parts(prompt), picture), s.config.data.max_prompt_length
        if needed is not None and needed > longest:
            yield Problem(
                "data.max_prompt_length",
                longest,
                f"{where}: its prompt has {needed} tokens, with an image of {picture.width} x {picture.height}",
                f"at least {needed}, or smaller images (realad prepare --size)",
            )
            return


def _wrong_prompt(prompt: Any, images: Any) -> str | None:
    """What is wrong with a row's messages and images; None where they fit."""
    if not isinstance(prompt, list) or not prompt or not all(isinstance(m, dict) and "content" in m for m in prompt):
        return f"its prompt is no list of messages (role, content) but {type(prompt).__name__} {str(prompt)[:60]!r}"
    contents = [message["content"] for message in prompt]
    if not all(isinstance(content, str) for content in contents):
        return f"the content of its messages must be text with {MARK} where the image goes"
    marks, count = sum(content.count(MARK) for content in contents), len(images) if isinstance(images, list) else 0
    if marks != 1 or count != 1:
        return f"its prompt holds {marks} {MARK} and its row {count} images; one of each is what evidence is read for"
    return None


def _picture(stored: Any) -> Image.Image | str:
    """The image of a row, or what is wrong with it."""
    source = image_source(stored)
    if source is None:
        return f"its image must be {{'bytes': an image file's content}} or a path, not {str(stored)[:80]!r}"
    try:
        if deep_extremes(source) is not None:
            return "its image has more than 8 bits: one scale for all rows must be chosen (realad prepare does)"
        return load_image(source)
    except UserError as error:
        return str(error).removesuffix(".")


def _parts(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as verl builds them: the content as a list of image and text."""
    messages = []
    for message in prompt:
        before, mark, after = message["content"].partition(MARK)
        pieces = [("text", before), ("image", mark), ("text", after)]
        content = [{"type": k} if k == "image" else {"type": k, "text": text} for k, text in pieces if text]
        messages.append({"role": message.get("role", "user"), "content": content})
    return messages
