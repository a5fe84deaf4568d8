"""A user's own images: ``normal/`` and ``anomalous/``, with ``masks/`` if there are any. There is no split: "all".

What sub-folders mean depends on whether ``normal/`` and ``anomalous/`` share a name:

| layout                                               | category                  | defect type         |
|------------------------------------------------------|---------------------------|---------------------|
| ``normal/red/``, ``anomalous/red/`` (a shared name)  | the first sub-folder      | the second one      |
| ``normal/``, ``anomalous/scratch/`` (no shared name) | the root's name, for all  | the first of ``anomalous/`` |

Without a sub-folder the category is the root's name and the defect type "anomalous". Masks lie below ``masks/`` at the
image's place or anywhere, under its name or a name of ``mask_names``.
"""

from pathlib import Path

from realad_verl.data.datasets.base import ALL, Dataset, Sample, layout_error
from realad_verl.data.files import images_in, relative_id, subdirectories, written
from realad_verl.data.mask_names import match_masks

FOLDERS = {"normal": 0, "anomalous": 1}


def _read(root: Path) -> list[Sample]:
    found = {name: images_in(root / name, recursive=True) for name in FOLDERS}
    if not all(found.values()):
        raise layout_error(
            "folder", root, "normal/ and anomalous/, each with at least one image, and masks/ (optional)"
        )
    masks = match_masks(
        found["anomalous"], images_in(root / "masks", recursive=True), root / "anomalous", root / "masks"
    )
    named = [{path.name for path in subdirectories(root / name)} for name in FOLDERS]
    by_category = bool(named[0] & named[1])
    return [_sample(root, name, path, masks.get(path), by_category) for name, paths in found.items() for path in paths]


def _sample(root: Path, name: str, path: Path, mask: Path | None, by_category: bool) -> Sample:
    label = FOLDERS[name]
    folders = [written(part) for part in path.relative_to(root / name).parts[:-1]]
    category = folders.pop(0) if by_category and folders else written(root.resolve().name)
    return Sample(
        id=relative_id(path, root),
        path=path,
        label=label,
        category=category,
        defect_type=(folders[0] if folders else "anomalous") if label else "good",
        mask_path=mask,
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
    mask_folders=("masks/*",),
)
