"""SDD (KolektorSDD): surfaces of electrical commutators, 399 grey images about 500 x 1250, 52 of them with a crack.

Layout: ``kos01 .. kos50/Part0.jpg`` with ``Part0_label.bmp`` beside it. There is a label for *every* image, all zero
for a normal one: the image is anomalous if its label file has a non-zero pixel. So this reader must open the label
files, but it keeps nothing of them except that one bit. It has no train/test split of its own (its paper
cross-validates by item), so its split is "all". The parts of one item (kosNN) are one group.

Some zero-shot papers use a cropped re-release in MVTec AD layout with the one category "electrical commutators"; a root
of that form is read too. Numbers on the two are not comparable.

Source: Tabernik et al., J. Intelligent Manufacturing, 2019; file naming as in public code that reads it
(SegDecNet's loader). Not checked against the original archive.
"""

from pathlib import Path

from realad_verl.data.datasets.base import ALL, Dataset, Sample, layout_error
from realad_verl.data.datasets.mvtec_layout import MASK_FOLDERS, read_mvtec_layout
from realad_verl.data.files import images_in, relative_id, subdirectories
from realad_verl.data.masks import mask_from_file
from realad_verl.errors import UserError


def _read(root: Path) -> list[Sample]:
    items = [path for path in subdirectories(root) if path.name.lower().startswith("kos")]
    if not items:
        if any((path / "test").is_dir() for path in subdirectories(root)):
            return read_mvtec_layout(root, "sdd")
        raise layout_error("sdd", root, "kos01/Part0.jpg with kos01/Part0_label.bmp, kos02/, ...")
    return [_sample(root, item, path) for item in items for path in images_in(item) if not _is_label(path)]


def _is_label(path: Path) -> bool:
    return path.stem.endswith("_label")


def _sample(root: Path, item: Path, path: Path) -> Sample:
    labels = [label for label in images_in(item) if label.stem == f"{path.stem}_label"]
    if not labels:
        raise UserError(
            f"dataset sdd: {path} has no label file {path.stem}_label.bmp beside it, so its class is unknown."
        )
    label = int(mask_from_file(labels[0]).any())
    return Sample(
        id=relative_id(path, root),
        path=path,
        label=label,
        category="commutator",
        defect_type="crack" if label else "good",
        mask_path=labels[0] if label else None,
        split=ALL,
        dataset="sdd",
        group=item.name,
    )


SDD = Dataset(
    name="sdd",
    title="KolektorSDD",
    kind="objects",
    role="test",
    normal="347",
    anomalous="52",
    licence="CC BY-NC-SA 4.0",
    source="ViCoS, University of Ljubljana",
    read=_read,
    lists=("*_label.*",),
    mask_folders=MASK_FOLDERS,
)
