"""The MVTec AD folder layout, which several datasets share."""

from pathlib import Path

from realad_verl.data.datasets.base import Sample, images_in, layout_error, relative_id, subdirectories

NORMAL = "good"


def read_mvtec_layout(root: Path, name: str) -> list[Sample]:
    """Samples of ``<category>/{train,test}/<defect type>/*``, masks in ``<category>/ground_truth/<defect type>/``.

    The defect type "good" is normal, every other one anomalous. The mask of ``000.png`` is ``000_mask.png`` or
    ``000.png``, in any image format. Nothing else in the root is looked at.
    """
    categories = [path for path in subdirectories(root) if (path / "train").is_dir() or (path / "test").is_dir()]
    if not categories:
        hint = ""
        if (root / "test").is_dir():
            hint = f"This is one category: give its parent, {root.resolve().parent}."
        raise layout_error(name, root, "<category>/train/good/ and <category>/test/<defect type>/", hint)
    samples = []
    for category in categories:
        for split in ("train", "test"):
            if not (category / split).is_dir():
                continue
            for folder in subdirectories(category / split):
                samples += _read_folder(root, name, category, split, folder)
    return samples


def _read_folder(root: Path, name: str, category: Path, split: str, folder: Path) -> list[Sample]:
    label = int(folder.name != NORMAL)
    masks = {path.stem: path for path in images_in(category / "ground_truth" / folder.name)} if label else {}
    return [
        Sample(
            id=relative_id(path, root),
            path=path,
            label=label,
            category=category.name,
            defect_type=folder.name,
            mask_path=masks.get(f"{path.stem}_mask", masks.get(path.stem)),
            split=split,
            dataset=name,
        )
        for path in images_in(folder)
    ]
