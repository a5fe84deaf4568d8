"""The MVTec AD folder layout, which several datasets share."""

from pathlib import Path

from realad_verl.data.datasets.base import Sample, layout_error
from realad_verl.data.files import images_in, relative_id, subdirectories, written
from realad_verl.data.mask_names import match_masks

NORMAL = "good"
SPLITS = {"train": "ground_truth", "test": "ground_truth"}  # folder of a split -> where its masks are
MASK_FOLDERS = ("*/ground_truth/*",)


def read_mvtec_layout(root: Path, name: str, splits: dict[str, str] | None = None) -> list[Sample]:
    """Samples of ``<category>/<split>/<defect type>/*``, masks in ``<category>/ground_truth/<defect type>/``.

    The defect type "good" is normal, every other one anomalous. The mask of ``000.png`` is ``000_mask.png``,
    ``000.png`` (``mask_names`` has all names), or every image in a folder ``000/`` (MVTec LOCO).
    """
    splits = SPLITS if splits is None else splits
    categories = [path for path in subdirectories(root) if any((path / split).is_dir() for split in splits)]
    if not categories:
        hint = ""
        if (root / "test").is_dir():
            hint = f"This is one category: give its parent, {written(root.resolve().parent)}."
        raise layout_error(name, root, "<category>/train/good/ and <category>/test/<defect type>/", hint)
    samples = []
    for category in categories:
        for split, masks in splits.items():
            for folder in subdirectories(category / split):
                if folder != category / masks:  # MVTec AD 2 has its masks inside its test split
                    samples += _read_folder(root, name, category, split, folder, category / masks / folder.name)
    return samples


def _read_folder(root: Path, name: str, category: Path, split: str, folder: Path, truth: Path) -> list[Sample]:
    label = int(folder.name != NORMAL)
    images = images_in(folder)
    masks = match_masks(images, images_in(truth), folder, truth) if label else {}
    folders = {path.name: path for path in subdirectories(truth)} if label else {}
    return [
        Sample(
            id=relative_id(path, root),
            path=path,
            label=label,
            category=written(category.name),
            defect_type=written(folder.name),
            mask_path=masks.get(path, folders.get(path.stem)),
            split=split,
            dataset=name,
        )
        for path in images
    ]
