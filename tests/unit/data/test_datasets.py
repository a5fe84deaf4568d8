"""Every reader on a tree of its layout, mask conventions, and what it says about a wrong root."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import TREES, Tree, image, mask

from realad_verl.data.datasets import DATASETS, get_dataset, load_mask
from realad_verl.data.masks import mask_from_file, mask_from_polygons
from realad_verl.errors import UserError

DATA = Path(os.environ.get("REALAD_DATA", Path(__file__).parents[4] / "shared" / "data"))
REAL = {"deeppcb": ("deeppcb", 207, 207), "cookie": ("visa", 45, 32), "leather": ("mvtec_ad", 8, 11)}
JSON_FILES = [("vision", "Casting/train/_annotations.coco.json"), ("real_iad", "realiad_jsons/toy.json")]
REAL_FOLDERS = {"deeppcb": "deeppcb", "cookie": "cookie_in_visa_layout", "leather": "mvtec_leather_mini"}


@pytest.fixture(params=sorted(DATASETS))
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return TREES[request.param](tmp_path)


def test_every_dataset_has_a_tree() -> None:
    assert set(TREES) == set(DATASETS)


def test_reads_its_layout(tree: Tree) -> None:
    samples = DATASETS[tree.dataset].samples(tree.root)
    assert Counter(sample.label for sample in samples) == {0: tree.normal, 1: tree.anomalous}
    assert all(sample.path.is_file() for sample in samples)
    assert all(sample.path.as_posix().endswith(f"/{sample.id}") for sample in samples)
    assert all(sample.dataset == tree.dataset for sample in samples)
    assert all((sample.defect_type == "good") == (sample.label == 0) for sample in samples)
    assert all((sample.mask_path is not None) == (sample.label == 1) for sample in samples)
    assert [sample.id for sample in samples] == sorted(sample.id for sample in samples)


def test_masks_mark_the_defect(tree: Tree) -> None:
    for sample in DATASETS[tree.dataset].samples(tree.root):
        found = load_mask(sample)
        with Image.open(sample.path) as picture:
            assert found.shape == (picture.height, picture.width)
        assert found.dtype == bool
        expected = np.zeros_like(found)
        if sample.label and tree.dataset == "deeppcb":
            expected[20:28, 30:36] = True
        elif sample.label:
            expected[4:20, 8:24] = True
        np.testing.assert_array_equal(found, expected)


def test_splits(tree: Tree) -> None:
    dataset = DATASETS[tree.dataset]
    everything = dataset.samples(tree.root)
    splits = {sample.split for sample in everything}
    parts = [dataset.samples(tree.root, split) for split in splits]
    assert sum(map(len, parts)) == len(everything)
    assert dataset.samples(tree.root, dataset.test_split)
    with pytest.raises(UserError, match="'tset' is not allowed"):
        dataset.samples(tree.root, "tset")


def test_missing_root_and_wrong_layout(tree: Tree, tmp_path: Path) -> None:
    dataset = DATASETS[tree.dataset]
    with pytest.raises(UserError, match="does not exist"):
        dataset.samples(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a directory"):
        dataset.samples(image(tmp_path / "a_file.png"))
    image(tmp_path / "other" / "pictures" / "a.png")
    with pytest.raises(UserError, match=r"Expected: .+ Found: pictures/"):
        dataset.samples(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="Found: nothing"):
        dataset.samples(tmp_path / "empty")


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'mvtec_ad'"):
        get_dataset("mvtec-ad")


def test_one_category_as_root_is_explained(tmp_path: Path) -> None:
    TREES["mvtec_ad"](tmp_path)
    with pytest.raises(UserError, match="give its parent"):
        DATASETS["mvtec_ad"].samples(tmp_path / "bottle")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "candle/../../x.jpg", "..\\..\\x.jpg", ""])
def test_visa_paths_cannot_leave_the_root(tmp_path: Path, path: str) -> None:
    tree = TREES["visa"](tmp_path / "visa")
    with (tree.root / "split_csv" / "1cls.csv").open("a") as file:
        file.write(f"candle,test,normal,{path},\n")
    with pytest.raises(UserError, match="line 14: path .* leads out of"):
        DATASETS["visa"].samples(tree.root)


@pytest.mark.parametrize("name, file", JSON_FILES)
def test_json_paths_cannot_leave_the_root(tmp_path: Path, name: str, file: str) -> None:
    tree = TREES[name](tmp_path)
    path = tree.root / file
    path.write_text(path.read_text().replace("000000.png", "../../../../etc/x.png").replace("OK/S0000/", "../../../"))
    with pytest.raises(UserError, match="leads out of"):
        DATASETS[name].samples(tree.root)


@pytest.mark.parametrize("text", ["not json", "{}", "[]", '{"images": 3, "annotations": [], "categories": []}'])
@pytest.mark.parametrize("name, file", JSON_FILES)
def test_broken_json_is_named(tmp_path: Path, name: str, file: str, text: str) -> None:
    tree = TREES[name](tmp_path)
    (tree.root / file).write_text(text)
    with pytest.raises(UserError, match=f"{Path(file).name} is not a"):
        DATASETS[name].samples(tree.root)


def test_visa_list_errors(tmp_path: Path) -> None:
    tree = TREES["visa"](tmp_path)
    path = tree.root / "split_csv" / "1cls.csv"
    good = path.read_text()
    path.write_text(good.replace("normal", "fine"))
    with pytest.raises(UserError, match="line 2: label 'fine'"):
        DATASETS["visa"].samples(tree.root)
    path.write_text(good.replace("image,mask", "picture,mask"))
    with pytest.raises(UserError, match="no column image"):
        DATASETS["visa"].samples(tree.root)
    path.write_text(good + good.splitlines()[1] + "\n")
    with pytest.raises(UserError, match="more than once"):
        DATASETS["visa"].samples(tree.root)
    path.write_text(good.replace("Images/Normal/0000.JPG", "Masks/Anomaly/000.png"))
    with pytest.raises(UserError, match="a mask is listed as an image"):
        DATASETS["visa"].samples(tree.root)


def test_visa_defect_names(tmp_path: Path) -> None:
    samples = DATASETS["visa"].samples(TREES["visa"](tmp_path).root)
    assert {s.defect_type for s in samples if s.label} == {"wax melded out of the candle,chunk of wax missing"}


def test_deeppcb_split_lists_and_pairs(tmp_path: Path) -> None:
    tree = TREES["deeppcb"](tmp_path)
    base = tree.root / "PCBData"
    pairs = sorted(path.stem.removesuffix("_temp") for path in base.rglob("*_temp.jpg"))
    lines = [f"group12000/12000/{pair}.jpg group12000/12000_not/{pair}.txt" for pair in pairs]
    (base / "trainval.txt").write_text("\n".join(lines[:4]) + "\n")
    (base / "test.txt").write_text("\n".join(lines[4:]) + "\n")
    samples = DATASETS["deeppcb"].samples(base)  # PCBData itself is accepted as the root
    assert Counter(sample.split for sample in samples) == {"train": 8, "test": 4}
    assert set(Counter(sample.group for sample in samples).values()) == {2}
    assert {s.defect_type for s in samples if s.label} == {"mousebite"}


def test_sdd_without_label_file_and_cropped_release(tmp_path: Path) -> None:
    tree = TREES["sdd"](tmp_path / "kos")
    (tree.root / "kos01" / "Part0_label.bmp").unlink()
    with pytest.raises(UserError, match="no label file Part0_label.bmp"):
        DATASETS["sdd"].samples(tree.root)
    image(tmp_path / "mvtec" / "electrical commutators" / "test" / "good" / "0.png")
    image(tmp_path / "mvtec" / "electrical commutators" / "test" / "crack" / "0.png")
    assert [s.label for s in DATASETS["sdd"].samples(tmp_path / "mvtec")] == [1, 0]


def test_vision_leaves_unlabelled_images_out(tmp_path: Path) -> None:
    samples = DATASETS["vision"].samples(TREES["vision"](tmp_path).root)
    assert not [sample.id for sample in samples if "inference" in sample.id]


def test_folder_categories_masks_and_clutter(tmp_path: Path) -> None:
    image(tmp_path / "normal" / "red" / "a.png")
    image(tmp_path / "anomalous" / "red" / "a.png")
    image(tmp_path / "anomalous" / "b.png")
    image(tmp_path / "normal" / ".hidden.png")
    (tmp_path / "normal" / "notes.txt").write_text("x")
    marked = mask(tmp_path / "masks" / "red" / "a_mask.bmp")
    found = {sample.id: sample for sample in DATASETS["folder"].samples(tmp_path)}
    assert sorted(found) == ["anomalous/b.png", "anomalous/red/a.png", "normal/red/a.png"]
    assert found["anomalous/red/a.png"].mask_path == marked
    assert (found["anomalous/red/a.png"].category, found["anomalous/b.png"].category) == ("red", tmp_path.name)
    with pytest.raises(UserError, match="has no mask"):
        load_mask(found["anomalous/b.png"])


def _save(path: Path, pixels: np.ndarray, mode: str) -> Path:
    Image.fromarray(pixels.astype(np.uint8), mode=mode).save(path)
    return path


def test_mask_conventions(tmp_path: Path) -> None:
    inside = np.zeros((6, 8), bool)
    inside[2:4, 3:7] = True
    opaque, white = np.full((6, 8), 255), np.full((6, 8), 255)
    on = inside * 255
    files = {
        "0/255": _save(tmp_path / "a.png", on, "L"),
        "class ids": _save(tmp_path / "b.png", inside * np.arange(8), "L"),
        "alpha only": _save(tmp_path / "c.png", np.stack([white, white, white, on], -1), "RGBA"),
        "black drawn in alpha": _save(tmp_path / "d.png", np.stack([white * 0, white * 0, white * 0, on], -1), "RGBA"),
        "colours with opaque alpha": _save(tmp_path / "e.png", np.stack([on, on * 0, on * 0, opaque], -1), "RGBA"),
        "colours and alpha": _save(tmp_path / "f.png", np.stack([on, on, on, on], -1), "RGBA"),
        "grey and alpha": _save(tmp_path / "g.png", np.stack([white, on], -1), "LA"),
        "rgb": _save(tmp_path / "h.png", np.stack([on, on, on], -1), "RGB"),
    }
    palette = Image.fromarray(inside.astype(np.uint8) * 2, mode="P")
    palette.putpalette([0, 0, 0] * 256)  # every index looks black; the index is the class
    palette.save(tmp_path / "p.png")
    Image.fromarray(inside).save(tmp_path / "one_bit.png")
    files |= {"palette": tmp_path / "p.png", "one bit": tmp_path / "one_bit.png"}
    for name, path in files.items():
        np.testing.assert_array_equal(mask_from_file(path), inside, err_msg=name)


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    pixels = np.tile([0, 0, 0, 10, 127, 128, 255, 255, 255, 255], (6, 1))
    _save(tmp_path / "m.png", pixels, "L")
    np.testing.assert_array_equal(mask_from_file(tmp_path / "m.png"), pixels >= 128)


def test_all_zero_mask_keeps_the_label(tmp_path: Path) -> None:
    tree = TREES["mvtec_ad"](tmp_path)
    for path in tree.masks:
        mask(path, value=0)
    defective = [sample for sample in DATASETS["mvtec_ad"].samples(tree.root) if sample.label]
    assert len(defective) == tree.anomalous
    assert not any(load_mask(sample).any() for sample in defective)


def test_unreadable_and_missing_masks_are_named(tmp_path: Path) -> None:
    tree = TREES["visa"](tmp_path)
    first, second = (s for s in DATASETS["visa"].samples(tree.root)[:2])
    assert first.mask_path and second.mask_path
    first.mask_path.write_bytes(b"not an image")
    second.mask_path.unlink()
    with pytest.raises(UserError, match=f"cannot read {first.mask_path}"):
        load_mask(first)
    with pytest.raises(UserError, match="is missing"):
        load_mask(second)


def test_polygons_boxes_and_run_lengths() -> None:
    box = mask_from_polygons([{"bbox": [2, 1, 3, 2]}], 5, 7, "x")
    assert box.sum() == 6 and box[1:3, 2:5].all()
    with pytest.raises(UserError, match="run-length"):
        mask_from_polygons([{"segmentation": {"counts": [1, 2], "size": [5, 7]}}], 5, 7, "x")
    with pytest.raises(UserError, match="neither polygon nor box"):
        mask_from_polygons([{}], 5, 7, "x")


@pytest.mark.parametrize("key", sorted(REAL))
def test_real_images(key: str) -> None:
    root = DATA / REAL_FOLDERS[key]
    if not root.is_dir():
        pytest.skip(f"{root} is absent; point REALAD_DATA at the folder of real images")
    name, normal, anomalous = REAL[key]
    samples = DATASETS[name].samples(root)
    assert Counter(sample.label for sample in samples) == {0: normal, 1: anomalous}
    for sample in [s for s in samples if s.label][::20]:
        found = load_mask(sample)
        assert 0 < found.mean() < 0.5
        if name == "deeppcb":
            with Image.open(root / "derived_masks_xor" / f"{sample.mask_path.stem}.png") as reference:  # type: ignore
                np.testing.assert_array_equal(found, np.asarray(reference) > 127)
