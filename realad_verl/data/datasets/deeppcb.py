"""DeepPCB: 1,500 pairs of aligned, binarised PCB scans of 640 x 640.

Layout: ``PCBData/groupNNNNN/NNNNN/<id>_temp.jpg`` (the defect-free template, taken as normal) and ``<id>_test.jpg``
(the tested board, taken as anomalous), boxes in ``PCBData/groupNNNNN/NNNNN_not/<id>.txt``, a line "x1 y1 x2 y2 type"
each, types 1 open, 2 short, 3 mousebite, 4 spur, 5 copper, 6 pin-hole. Both images of a pair show the same board, so a
pair is one group. Lists ``PCBData/trainval.txt`` and ``PCBData/test.txt`` ("groupN/N/<id>.jpg groupN/N_not/<id>.txt")
give its split; without them the split is "all".

It has boxes, no pixel masks: the mask is |test - template| > 127 inside the boxes, which is ours, not the dataset's.

Source: Tang et al., arXiv:1902.06197; github.com/tangsanli5201/DeepPCB. Checked on two complete groups; the split lists
are not checked against the original archive.
"""

from pathlib import Path

import numpy as np

from realad_verl.data.datasets.base import ALL, Dataset, Sample, layout_error
from realad_verl.data.files import images_in, relative_id, subdirectories
from realad_verl.data.images import load_image
from realad_verl.errors import UserError

TYPES = {"1": "open", "2": "short", "3": "mousebite", "4": "spur", "5": "copper", "6": "pin-hole"}
SPLIT_LISTS = {"trainval.txt": "train", "test.txt": "test"}


def _read(root: Path) -> list[Sample]:
    base = root / "PCBData" if (root / "PCBData").is_dir() else root
    splits = _splits(base)
    samples = []
    for group in subdirectories(base):
        folder = group / group.name.removeprefix("group")
        for path in images_in(folder):
            pair, _, kind = path.stem.rpartition("_")
            if kind in ("temp", "test"):
                boxes = group / f"{folder.name}_not" / f"{pair}.txt"
                samples.append(_sample(root, path, group.name, pair, kind, boxes, splits.get(pair, ALL)))
    if not samples:
        raise layout_error("deeppcb", root, "PCBData/groupNNNNN/NNNNN/<id>_temp.jpg and <id>_test.jpg")
    return samples


def _splits(base: Path) -> dict[str, str]:
    found = {}
    for name, split in SPLIT_LISTS.items():
        if (base / name).is_file():
            lines = (base / name).read_text(encoding="utf-8").splitlines()
            found |= {Path(line.split()[0]).stem: split for line in lines if line.strip()}
    return found


def _sample(root: Path, path: Path, group: str, pair: str, kind: str, boxes: Path, split: str) -> Sample:
    label = int(kind == "test")
    types = {TYPES.get(row[4], row[4]) for row in _boxes(boxes)} if label and boxes.is_file() else set()
    return Sample(
        id=relative_id(path, root),
        path=path,
        label=label,
        category="pcb",
        defect_type=(",".join(sorted(types)) or "anomaly") if label else "good",
        mask_path=boxes if label and boxes.is_file() else None,
        split=split,
        dataset="deeppcb",
        group=f"{group}/{pair}",
    )


def _boxes(path: Path) -> list[list[str]]:
    rows = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(row) != 5 or not all(value.isdigit() for value in row) for row in rows):
        raise UserError(f"{path}: expected lines 'x1 y1 x2 y2 type' of whole numbers.")
    return rows


def _read_mask(sample: Sample) -> np.ndarray:
    assert sample.mask_path is not None  # Dataset.load_mask has checked it
    template = sample.path.with_name(sample.path.name.replace("_test.", "_temp."))
    test, temp = (np.asarray(load_image(path).convert("L"), np.int16) for path in (sample.path, template))
    if test.shape != temp.shape:
        raise UserError(f"dataset deeppcb: {sample.id} is {test.shape}, its template {temp.shape} [height, width].")
    differs = np.abs(test - temp) > 127
    boxed = np.zeros_like(differs)
    for row in _boxes(sample.mask_path):
        x1, y1, x2, y2 = map(int, row[:4])
        boxed[y1 : y2 + 1, x1 : x2 + 1] = True  # both corners belong to the box
    return differs & boxed


DEEPPCB = Dataset(
    name="deeppcb",
    title="DeepPCB",
    kind="objects",
    role="extra",
    normal="1,500",
    anomalous="1,500",
    licence="MIT",
    source="github.com/tangsanli5201/DeepPCB",
    read=_read,
    read_mask=_read_mask,
    lists=("*trainval.txt", "*test.txt", "*_not/*.txt"),
)
