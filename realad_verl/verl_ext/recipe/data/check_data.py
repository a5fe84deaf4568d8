"""The data files that a recipe names: there, readable, with the columns and the labels that a run needs."""

from collections.abc import Iterator
from pathlib import Path

from realad_verl.method.labels import ALLOWED as LABELS_ALLOWED
from realad_verl.method.labels import read_label
from realad_verl.verl_ext.recipe.problem import Problem, Setup

# Columns of a prepared parquet file that a run reads.
COLUMNS = ("data_source", "prompt", "images", "reward_model")
VERL_DATA = "data/rlhf/gsm8k"


def data_files_exist(s: Setup) -> Iterator[Problem]:
    for key in ("data.train_files", "data.val_files"):
        value = s.get(key)
        for name in [value] if isinstance(value, str) else list(value or []):
            if VERL_DATA in name:
                fix = "realad prepare makes it; give its path"
                yield Problem(key, name, "not set (this is verl's example value)", fix, "warning")
            elif "://" not in name:
                yield from _data_file(key, name)


def _data_file(key: str, name: str) -> Iterator[Problem]:
    import pyarrow
    import pyarrow.parquet

    path = Path(name).expanduser()
    if not path.is_file():
        yield Problem(key, name, "no such file", "make it with realad prepare, or correct the path")
        return
    try:
        have = pyarrow.parquet.read_schema(path).names
        labels = pyarrow.parquet.read_table(path, columns=["reward_model"]) if "reward_model" in have else None
    except pyarrow.ArrowInvalid as error:
        yield Problem(key, name, f"not a parquet file ({error})", "make it with realad prepare")
        return
    missing = [column for column in COLUMNS if column not in have]
    if missing:
        yield Problem(key, name, f"lacks the columns {', '.join(missing)}", "make it with realad prepare")
    if labels is not None:
        yield from _labels_are_labels(name, labels.column("reward_model").to_pylist())


def _labels_are_labels(name: str, column: list) -> Iterator[Problem]:
    """A row without a usable label trains nothing; it is counted while it runs, and no reason to stop."""
    truths = [row.get("ground_truth") if isinstance(row, dict) else None for row in column]
    bad = [truth for truth in truths if read_label(truth) is None]
    if bad:
        rule = f"{len(bad)} of {len(truths)} rows hold no label, such as {bad[0]!r}; allowed: {LABELS_ALLOWED}"
        level = "error" if len(bad) == len(truths) else "warning"
        yield Problem("reward_model.ground_truth", name, rule, "make the file with realad prepare", level)
