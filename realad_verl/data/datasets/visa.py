"""VisA: 12 objects, 10,821 images, 9,621 normal and 1,200 anomalous.

Layout: ``split_csv/1cls.csv`` (columns object, split, label, image, mask; label "normal" or "anomaly"; paths from the
root), images ``<object>/Data/Images/{Normal,Anomaly}/0000.JPG``, masks ``<object>/Data/Masks/Anomaly/0000.png``. Mask
pixels are small class ids (0 background, 1, 2, ... one per defect class), not 255: every id above 0 is defect.
``<object>/image_anno.csv`` (columns image, label, mask) names the defects of an image, several separated by commas; it
is used for the defect type where it is there.

Source: amazon-science/spot-diff, commit 2a692ab5 (split_csv); Zou et al., ECCV 2022. Layout checked on a converted
dataset; masks and image_anno.csv are not checked against the original archive.
"""

import csv
from pathlib import Path

from realad_verl.data.datasets.base import Dataset, Sample, inside, layout_error
from realad_verl.errors import UserError

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = {"normal": 0, "anomaly": 1}


def _read(root: Path) -> list[Sample]:
    path = root / SPLIT_FILE
    if not path.is_file():
        raise layout_error("visa", root, f"{SPLIT_FILE} and <object>/Data/Images/{{Normal,Anomaly}}/")
    rows = _rows(path, COLUMNS)
    defects = {}
    for name in sorted({row["object"] for _, row in rows}):
        annotations = inside(root, name, str(path)) / "image_anno.csv"
        if annotations.is_file():
            defects |= {row["image"]: row["label"] for _, row in _rows(annotations, ("image", "label"))}
    return [_sample(root, f"{path}, line {line}", row, defects) for line, row in rows]


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, {key: (row.get(key) or "").strip() for key in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file: {error}.") from error
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}. Expected: {', '.join(columns)}.")
    return rows


def _sample(root: Path, where: str, row: dict[str, str], defects: dict[str, str]) -> Sample:
    if row["label"] not in LABELS:
        raise UserError(f"{where}: label {row['label']!r} is not one of {', '.join(LABELS)}.")
    label = LABELS[row["label"]]
    path = inside(root, row["image"], where)
    return Sample(
        id=path.relative_to(root).as_posix(),
        path=path,
        label=label,
        category=row["object"],
        defect_type=defects.get(row["image"], "anomaly") if label else "good",
        mask_path=inside(root, row["mask"], where) if label and row["mask"] else None,
        split=row["split"],
        dataset="visa",
    )


VISA = Dataset(
    name="visa",
    title="VisA",
    kind="objects",
    role="train",
    normal="9,621",
    anomalous="1,200",
    licence="CC BY 4.0",
    source="github.com/amazon-science/spot-diff",
    read=_read,
    test_split="test",
    lists=(SPLIT_FILE, "*/image_anno.csv"),
    mask_folders=("*/Data/Masks/*",),
)
