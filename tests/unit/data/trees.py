"""Small folder trees in the layout of every dataset, so that the real readers run without a download.

``TREES[name](root)`` makes one. Images are noise, each with its own content. ``alter_masks`` writes other masks over
the tree's own, keeping which images have one: nothing that is prepared may change by it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 40)  # width, height


@dataclass(frozen=True)
class Tree:
    """root: what --root gets. normal, anomalous: images of each class. masks: the files that hold ground truth."""

    dataset: str
    root: Path
    normal: int
    anomalous: int
    masks: list[Path]
    alter_masks: Callable[[], None]


def image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """A noise image whose content follows from its path."""
    rng = np.random.default_rng(list(path.as_posix().encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def mask(path: Path, value: int = 255, box: tuple[int, int, int, int] = (8, 4, 24, 20)) -> Path:
    """A grey mask: ``value`` inside ``box`` (left, top, right, bottom), else 0."""
    pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _mask_tree(name: str, root: Path, normal: int, masks: list[Path]) -> Tree:
    def alter() -> None:
        for path in masks:
            mask(path, box=(0, 0, 5, 37))

    return Tree(name, root, normal, len(masks), masks, alter)


def _mvtec_like(name: str, root: Path, category: str, defect: str, mask_suffix: str, suffix: str = ".png") -> Tree:
    for i in range(4):
        image(root / category / "train" / "good" / f"{i:03}{suffix}")
    for i in range(2):
        image(root / category / "test" / "good" / f"{i:03}{suffix}")
    masks = []
    for i in range(6):
        image(root / category / "test" / defect / f"{i:03}{suffix}")
        masks.append(mask(root / category / "ground_truth" / defect / f"{i:03}{mask_suffix}.png"))
    return _mask_tree(name, root, 6, masks)


def mvtec_ad(root: Path) -> Tree:
    tree = _mvtec_like("mvtec_ad", root, "bottle", "broken_large", "_mask")
    (root / "license.txt").write_text("not an image")
    return tree


def mvtec_loco(root: Path) -> Tree:
    """Two masks an image, with ids as values: the halves of the defect."""
    masks = []
    for i in range(4):
        image(root / "juice" / ("train" if i % 2 else "validation") / "good" / f"{i:03}.png")
    for i in range(2):
        image(root / "juice" / "test" / "good" / f"{i:03}.png")
    for i in range(6):
        kind = ("logical_anomalies", "structural_anomalies")[i % 2]
        image(root / "juice" / "test" / kind / f"{i:03}.png")
        for part, box in enumerate(((8, 4, 16, 20), (16, 4, 24, 20))):
            masks.append(mask(root / "juice" / "ground_truth" / kind / f"{i:03}" / f"{part:03}.png", 240 + part, box))
    (root / "juice" / "defects_config.json").write_text("[]")
    tree = _mask_tree("mvtec_loco", root, 6, masks)
    return Tree(tree.dataset, root, 6, 6, masks, tree.alter_masks)


def mvtec_ad2(root: Path) -> Tree:
    masks, can = [], root / "can"
    for i in range(4):
        image(can / ("train" if i % 2 else "validation") / "good" / f"{i:03}_regular.png")
    for i in range(2):
        image(can / "test_public" / "good" / f"{i:03}_regular.png")
    for i in range(6):
        image(can / "test_public" / "bad" / f"{i:03}_regular.png")
        masks.append(mask(can / "test_public" / "ground_truth" / "bad" / f"{i:03}_regular_mask.png"))
    image(can / "test_private" / "000_mixed.png")
    return _mask_tree("mvtec_ad2", root, 6, masks)


def goodsad(root: Path) -> Tree:
    return _mvtec_like("goodsad", root, "drink_can", "surface_damage", "", ".jpg")


def wfdd(root: Path) -> Tree:
    return _mvtec_like("wfdd", root, "yellow_cloth", "line", "_mask")


def dtd_synthetic(root: Path) -> Tree:
    inner = _mvtec_like("dtd_synthetic", root / "DTD-Synthetic", "Woven_001", "bad", "")
    return Tree("dtd_synthetic", root, inner.normal, inner.anomalous, inner.masks, inner.alter_masks)


def sdd(root: Path) -> Tree:
    masks = []
    for item in range(1, 4):
        for part in range(4):
            name = root / f"kos{item:02}" / f"Part{part}.jpg"
            image(name)
            label = mask(name.with_name(f"Part{part}_label.bmp"), value=255 if part < 2 else 0)
            masks += [label] if part < 2 else []
    return _mask_tree("sdd", root, 6, masks)


def visa(root: Path) -> Tree:
    rows, notes, masks = ["object,split,label,image,mask"], ["image,label,mask"], []
    for i in range(6):
        path = f"candle/Data/Images/Normal/{i:04}.JPG"
        image(root / path)
        rows.append(f"candle,{'train' if i < 4 else 'test'},normal,{path},")
        notes.append(f"{path},normal,")
    for i in range(6):
        path, mask_path = f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png"
        image(root / path)
        masks.append(mask(root / mask_path, value=1 + i % 3))
        rows.append(f"candle,test,anomaly,{path},{mask_path}")
        notes.append(f'{path},"wax melded out of the candle,chunk of wax missing",{mask_path}')
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    (root / "candle" / "image_anno.csv").write_text("\n".join(notes) + "\n")
    return _mask_tree("visa", root, 6, masks)


def vision(root: Path) -> Tree:
    lists = []
    for split, first in (("train", 0), ("val", 6), ("inference", 12)):
        folder = root / "Casting" / split
        entries = [{"id": i, "file_name": f"{first + i:06}.png", "width": 48, "height": 40} for i in range(6)]
        marks = [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [8, 4, 16, 16],
                "segmentation": [[8, 4, 23, 4, 23, 19, 8, 19]],
            }
            for i in range(3 if split != "inference" else 0)
        ]
        for entry in entries:
            image(folder / entry["file_name"])
        lists.append(folder / "_annotations.coco.json")
        content = {"images": entries, "annotations": marks, "categories": [{"id": 1, "name": "Inclusoes"}]}
        lists[-1].write_text(json.dumps(content))

    def alter() -> None:
        for path in lists:
            content = json.loads(path.read_text())
            for mark in content["annotations"]:
                mark["segmentation"] = [[0, 0, 5, 0, 5, 37, 0, 37]]
            path.write_text(json.dumps(content))

    return Tree("vision", root, 6, 6, lists, alter)


def real_iad(root: Path) -> Tree:
    entries: dict[str, list] = {"train": [], "test": []}
    masks = []
    for i in range(6):
        name = f"OK/S{i // 2:04}/toy_{i // 2:04}_OK_C{i % 2 + 1}.jpg"
        image(root / "realiad_512" / "toy" / name)
        part = entries["train" if i < 4 else "test"]
        part.append({"category": "toy", "anomaly_class": "OK", "image_path": name, "mask_path": None})
    for i in range(6):
        name = f"NG/BX/S{i // 2:04}/toy_{i // 2:04}_NG_BX_C{i % 2 + 1}"
        image(root / "realiad_512" / "toy" / f"{name}.jpg")
        masks.append(mask(root / "realiad_512" / "toy" / f"{name}.png"))
        entry = {"category": "toy", "anomaly_class": "BX", "image_path": f"{name}.jpg", "mask_path": f"{name}.png"}
        entries["test"].append(entry)
    (root / "realiad_jsons").mkdir()
    content = {"meta": {"normal_class": "OK", "prefix": "toy/"}, **entries}
    (root / "realiad_jsons" / "toy.json").write_text(json.dumps(content))
    return _mask_tree("real_iad", root, 6, masks)


def pr_real(root: Path) -> Tree:
    masks = []
    for i in range(6):
        image(root / "cap" / "OK" / "image" / f"{i}.jpg")
        image(root / "cap" / "NG" / "dent" / "image" / f"{i}.jpg")
        masks.append(mask(root / "cap" / "NG" / "dent" / "mask" / f"{i}.png"))
    return _mask_tree("pr_real", root, 6, masks)


def deeppcb(root: Path) -> Tree:
    boxes = []
    for i in range(6):
        pair = f"{12000 + i:05}{i:03}"
        group = root / "PCBData" / "group12000"
        rng = np.random.default_rng(i)
        board = np.kron(rng.integers(0, 2, (16, 16)), np.ones((4, 4))).astype(np.uint8) * 255
        tested = board.copy()
        tested[20:28, 30:36] = 255 - tested[20:28, 30:36]
        tested[60:, 60:] = 255 - tested[60:, 60:]  # differs outside of every box, so it is no defect
        (group / "12000").mkdir(parents=True, exist_ok=True)
        (group / "12000_not").mkdir(exist_ok=True)
        Image.fromarray(board).save(group / "12000" / f"{pair}_temp.jpg", quality=100)
        Image.fromarray(tested).save(group / "12000" / f"{pair}_test.jpg", quality=100)
        boxes.append(group / "12000_not" / f"{pair}.txt")
        boxes[-1].write_text("28 18 37 29 3\n")

    def alter() -> None:
        for path in boxes:
            path.write_text("0 0 9 9 1\n1 1 12 12 5\n")

    return Tree("deeppcb", root, 6, 6, boxes, alter)


def folder(root: Path) -> Tree:
    masks = []
    for i in range(6):
        image(root / "normal" / f"{i}.png")
        image(root / "anomalous" / f"{i}.jpeg")
        masks.append(mask(root / "masks" / f"{i}.png"))
    return _mask_tree("folder", root, 6, masks)


TREES: dict[str, Callable[[Path], Tree]] = {
    make.__name__: make
    for make in (
        *(visa, goodsad, vision, pr_real, real_iad, mvtec_ad, mvtec_loco, mvtec_ad2),
        *(wfdd, sdd, dtd_synthetic, deeppcb, folder),
    )
}
