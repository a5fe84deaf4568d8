"""Parquet rows as verl's RLHFDataset reads them, and their streamed writing.

Columns: data_source, prompt (chat messages, ``<image>`` where the image goes), images (one ``{"bytes": PNG}``),
ability, reward_model (ground_truth "yes" or "no"), extra_info. There is no column that a mask could be in.
"""

import io
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realad_verl.data.datasets.base import Sample
from realad_verl.data.prompts import verl_messages
from realad_verl.method.labels import LABEL_TO_ANSWER

ROW_GROUP = 64  # rows held in memory at a time: some 20 MB of PNG at 420 x 420

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("id", pa.string()),
                    ("label", pa.int64()),
                    ("category", pa.string()),
                    ("dataset", pa.string()),
                    ("split", pa.string()),
                ]
            ),
        ),
    ]
)


def image_source(stored: Any) -> io.BytesIO | Path | None:
    """Where the pixels of an image of a row are, in the forms that verl takes: ``{"bytes": ...}``, a path, or
    ``{"image": path}``, with or without ``file://``. None for another form, such as an address on the web."""
    if isinstance(stored, dict):
        if stored.get("bytes") is not None:
            return io.BytesIO(stored["bytes"])
        stored = None if "bytes" in stored else stored.get("image")
    if not isinstance(stored, str):
        return None
    path = stored.removeprefix("file://")
    return None if "://" in path or path.startswith("data:") else Path(path)


def make_row(sample: Sample, png: bytes, split: str, index: int) -> dict[str, Any]:
    """One training row. Of the sample only id, label, category and dataset name enter it."""
    return {
        "data_source": f"realad/{sample.dataset}",
        "prompt": verl_messages(),
        "images": [{"bytes": png}],
        "ability": "anomaly_detection",
        "reward_model": {"style": "rule", "ground_truth": LABEL_TO_ANSWER[sample.label]},
        "extra_info": {
            "index": index,
            "id": sample.id,
            "label": sample.label,
            "category": sample.category,
            "dataset": sample.dataset,
            "split": split,
        },
    }


class RowWriter:
    """Writes rows in groups of ROW_GROUP; the file is complete when the ``with`` block ends."""

    def __init__(self, path: Path) -> None:
        # PNG does not compress further; the other columns are small.
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False)
        self._rows: list[dict[str, Any]] = []
        self.written = 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.written += 1
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA), row_group_size=ROW_GROUP)
        self._rows = []
