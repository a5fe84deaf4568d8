"""A user's own images: ``normal/`` and ``anomalous/``, with ``masks/`` if there are any.

Images may lie in sub-folders; then the first sub-folder is the category, else the name of the root is. A mask has the
name of its image (any image format, ``_mask`` at the end allowed) at the same place under ``masks/``. There is no
split: "all".
"""

from pathlib import Path

from realad_verl.data.datasets.base import ALL, Dataset, Sample, images_in, layout_error, relative_id

FOLDERS = {"normal": 0, "anomalous": 1}


def _read(root: Path) -> list[Sample]:
    found = {name: images_in(root / name, recursive=True) for name in FOLDERS}
    if not all(found.values()):
        raise layout_error(
            "folder", root, "normal/ and anomalous/, each with at least one image, and masks/ (optional)"
        )
    masks = {_mask_key(path, root / "masks"): path for path in images_in(root / "masks", recursive=True)}
    return [_sample(root, name, path, masks) for name, paths in found.items() for path in paths]


def _mask_key(path: Path, base: Path) -> str:
    return path.relative_to(base).with_suffix("").as_posix().removesuffix("_mask")


def _sample(root: Path, name: str, path: Path, masks: dict[str, Path]) -> Sample:
    below = path.relative_to(root / name)
    label = FOLDERS[name]
    return Sample(
        id=relative_id(path, root),
        path=path,
        label=label,
        category=below.parts[0] if len(below.parts) > 1 else root.resolve().name,
        defect_type="anomalous" if label else "good",
        mask_path=masks.get(below.with_suffix("").as_posix()) if label else None,
        split=ALL,
        dataset="folder",
    )


FOLDER = Dataset(
    name="folder",
    title="your own images",
    kind="any",
    role="any",
    normal="normal/",
    anomalous="anomalous/",
    licence="yours",
    source="two folders of images, masks/ optional",
    read=_read,
)
