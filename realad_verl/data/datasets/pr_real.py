"""PR-REAL: the set of that name which the paper trains on, in the arrangement that EIAD's instructions ask for.

Layout: ``<product>/NG/<defect type>/image/*`` with masks of the same name in ``<product>/NG/<defect type>/mask/``, and
``<product>/OK/image/*``. No split: "all". EIAD lists it beside Real-IAD, so it is not another name of Real-IAD.

Source: README of EIAD (Zhang et al., arXiv:2503.14162), which shows this layout for BSData and says that PR-REAL,
VISION and Real-IAD are arranged alike. Not checked against the original archive, whose own layout may differ.
"""

from pathlib import Path

from realad_verl.data.datasets.base import ALL, Dataset, Sample, layout_error
from realad_verl.data.files import images_in, relative_id, subdirectories, written
from realad_verl.data.mask_names import match_masks


def _read(root: Path) -> list[Sample]:
    samples = []
    for product in subdirectories(root):
        samples += [_sample(root, product, path, "good", None) for path in images_in(product / "OK" / "image")]
        for defect in subdirectories(product / "NG"):
            images = images_in(defect / "image")
            masks = match_masks(images, images_in(defect / "mask"), defect / "image", defect / "mask")
            samples += [_sample(root, product, path, written(defect.name), masks.get(path)) for path in images]
    if not samples:
        raise layout_error("pr_real", root, "<product>/OK/image/ and <product>/NG/<defect type>/{image,mask}/")
    return samples


def _sample(root: Path, product: Path, path: Path, defect_type: str, mask: Path | None) -> Sample:
    return Sample(
        id=relative_id(path, root),
        path=path,
        label=int(defect_type != "good"),
        category=written(product.name),
        defect_type=defect_type,
        mask_path=mask,
        split=ALL,
        dataset="pr_real",
    )


PR_REAL = Dataset(
    name="pr_real",
    title="PR-REAL",
    kind="objects",
    role="train",
    normal="not checked",
    anomalous="not checked",
    licence="check with its authors",
    source="EIAD's README links it",
    read=_read,
    mask_folders=("*/NG/*/mask/*",),
)
