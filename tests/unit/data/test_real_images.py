"""What real image folders hold and a tidy tree does not: turned photos, deep pixels, odd masks, names and litter."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from trees import TREES, image, mask

from realad_verl.data.account import UNMATCHED, remarks
from realad_verl.data.datasets import DATASETS, Sample, load_mask
from realad_verl.data.datasets.base import ALL
from realad_verl.data.depth import Depth, find_depth
from realad_verl.data.files import HIDDEN, LOOP, unwritten, walk, written
from realad_verl.data.images import DepthAssumed, UnreadableImage, deep_extremes, load_image
from realad_verl.data.masks import MaskSetting, Misfit, mask_from_file, rule_of
from realad_verl.data.prepare import PrepareSettings, prepare
from realad_verl.errors import UserError

SMALL = PrepareSettings(size=28, val_fraction=0)


def turned_photo(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    """A JPEG of the stored pixels with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def sample_of(picture: Path, drawn: Path, name: str = "folder") -> Sample:
    return Sample(picture.name, picture, 1, "c", "d", drawn, ALL, name)


def grey(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def two(first: int, second: int, dtype: Any = np.uint8) -> np.ndarray:
    """Two regions of 20 x 20 with their values; together 8 % of the mask."""
    pixels = np.zeros((100, 100), dtype)
    pixels[10:30, 10:30], pixels[60:80, 60:80] = first, second
    return pixels


RIGHT = two(1, 1) > 0


# --- geometry


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_stored_pixels_is_turned_with_its_photo(tmp_path, orientation):
    """The bright defect of the photo, as load_image shows it, is the oracle."""
    pixels, drawn = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), np.uint8)
    pixels[5:15, 30:50], drawn[5:15, 30:50] = 250, 255
    photo = turned_photo(tmp_path / "p.jpg", pixels, orientation)
    found = load_mask(sample_of(photo, grey(tmp_path / "m.png", drawn)))
    bright = np.asarray(load_image(photo).convert("L")) > 170
    assert found.shape == (60, 40) and (found == bright).mean() > 0.99


def test_a_mask_drawn_on_the_upright_photo_stays(tmp_path):
    photo = turned_photo(tmp_path / "p.jpg", np.zeros((40, 60, 3), np.uint8), 6)
    drawn = np.zeros((60, 40), np.uint8)
    drawn[2:9, 3:8] = 255
    np.testing.assert_array_equal(load_mask(sample_of(photo, grey(tmp_path / "m.png", drawn))), drawn > 0)


def test_a_mask_of_another_shape_is_refused_with_both_sizes(tmp_path):
    picture = grey(tmp_path / "p.png", np.zeros((120, 200), np.uint8))
    with pytest.raises(Misfit, match="the mask is 60 x 60 pixels, its image 200 x 120"):
        load_mask(sample_of(picture, grey(tmp_path / "m.png", np.zeros((60, 60), np.uint8))))
    with pytest.raises(Misfit, match="the mask is 120 x 200"):  # swapped, but nothing turns the image
        load_mask(sample_of(picture, grey(tmp_path / "s.png", np.zeros((200, 120), np.uint8))))


@pytest.mark.parametrize("size", [(60, 100), (240, 400), (16, 27), (119, 200)])
def test_a_mask_of_the_same_shape_keeps_its_own_size(tmp_path, size):
    picture = grey(tmp_path / "p.png", np.zeros((120, 200), np.uint8))
    assert load_mask(sample_of(picture, grey(tmp_path / "m.png", np.zeros(size, np.uint8)))).shape == size


# --- depth


def plates(root: Path, count: int = 6) -> None:
    """12-bit grey in 16-bit files; only the anomalous ones have a bright speck, and no statistic else differs."""
    rng = np.random.default_rng(1)
    for kind in ("normal", "anomalous"):
        for i in range(count):
            pixels = np.clip(rng.normal(700, 40, (40, 60)), 0, 1000).astype(np.uint16)
            if kind == "anomalous":
                pixels[20:22, 20:22] = 1100
            grey(root / kind / f"{i}.png", pixels)


def test_brightness_of_prepared_images_does_not_tell_the_label(tmp_path):
    plates(tmp_path / "in")
    result = prepare("folder", tmp_path / "in", tmp_path / "out", SMALL)
    assert result["depth"]["white"] == 4095
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    labels = [row["extra_info"]["label"] for row in rows]
    found = [np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])), float) for row in rows]
    sources = [np.asarray(Image.open(tmp_path / "in" / row["extra_info"]["id"]), float) for row in rows]
    for statistic in (np.mean, np.median, np.std, lambda a: np.percentile(a, 10)):
        ratio = [statistic(a) / statistic(b) for a, b in zip(found, sources, strict=True)]
        assert max(ratio) / min(ratio) < 1.35, "one scale: what differs is what resizing and rounding do"
    ours, theirs = ([np.mean(a) for a in images] for images in (found, sources))
    assert abs(roc_auc_score(labels, ours) - roc_auc_score(labels, theirs)) < 0.15
    assert max(ours) / min(ours) < 1.1, "with a depth for each image: 174 of 255 normal, 44 anomalous"


def test_depth_is_the_whole_sets_or_a_setting(tmp_path):
    plates(tmp_path)
    paths = sorted(tmp_path.rglob("*.png"))
    depth = find_depth(paths, deep_extremes)
    assert depth is not None and depth.white == 4095 and "1100" in depth.source and "12 images" in depth.source
    assert find_depth(paths, deep_extremes, white=1023.0) == Depth(0, 1023.0)
    assert find_depth([image(tmp_path / "eight.png")], deep_extremes) is None
    with pytest.raises(UserError, match="floating point"):
        find_depth([*paths, grey(tmp_path / "f.tif", np.zeros((4, 4), np.float32))], deep_extremes)


@pytest.mark.parametrize("name", ["rgb.png", "rgb.tif", "rgba.png"])
def test_colour_of_12_bits_keeps_its_depth(tmp_path, name):
    """Pillow alone drops the lower eight of sixteen bits: a mean of 7 instead of 112."""
    pixels = np.full((6, 8, 3), 1800, np.uint16)
    pixels[..., 0] = 3600  # red
    pixels[0, 0] = 4000
    stored = np.dstack([pixels[..., ::-1], np.full((6, 8), 65535, np.uint16)][: 1 + name.startswith("rgba")])
    cv2.imwrite(str(tmp_path / name), stored)
    with pytest.warns(DepthAssumed, match="white taken as 4095"):
        found = np.asarray(load_image(tmp_path / name))
    assert found[3, 3].tolist() == [224, 112, 112]
    assert np.asarray(load_image(tmp_path / name, Depth(0, 65535)))[3, 3].tolist() == [14, 7, 7]


def test_colour_in_floating_point(tmp_path):
    cv2.imwrite(str(tmp_path / "f.tif"), np.full((4, 5, 3), (0.2, 0.4, 0.6), np.float32))
    with pytest.warns(DepthAssumed, match="floating point"):
        assert np.asarray(load_image(tmp_path / "f.tif"))[0, 0].tolist() == [153, 102, 51]


def test_what_a_file_states_is_not_guessed(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([0, 2048], ">u2").tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error", DepthAssumed)
        assert np.asarray(load_image(tmp_path / "x.pgm"))[0, :, 0].tolist() == [0, 128]
    assert deep_extremes(tmp_path / "x.pgm") is None


@pytest.mark.filterwarnings("ignore::realad_verl.data.images.DepthAssumed")
def test_path_bytes_pillow_and_array_are_one_image(tmp_path):
    rng = np.random.default_rng(0)
    turned = turned_photo(tmp_path / "p.jpg", rng.integers(0, 255, (8, 12, 3), np.uint8), 6)
    cv2.imwrite(str(tmp_path / "c.png"), rng.integers(0, 4096, (8, 12, 3), np.uint16))
    deep = grey(tmp_path / "g.png", rng.integers(0, 4096, (8, 12)).astype(np.uint16))
    for path in (turned, tmp_path / "c.png", deep):
        expected = np.asarray(load_image(path))
        with Image.open(path) as opened:
            np.testing.assert_array_equal(np.asarray(load_image(opened)), expected)
        np.testing.assert_array_equal(np.asarray(load_image(io.BytesIO(path.read_bytes()))), expected)
        np.testing.assert_array_equal(np.asarray(load_image(str(path))), expected)
    np.testing.assert_array_equal(np.asarray(load_image(np.asarray(Image.open(deep)))), np.asarray(load_image(deep)))
    for wrong in (np.zeros((2, 3, 5)), np.zeros((0, 3)), np.array([["a"]]), np.zeros(3)):
        with pytest.raises(UnreadableImage, match="the array"):
            load_image(wrong)


# --- masks


MASKS = {
    "three classes": (two(85, 170), "png"),
    "two classes": (two(120, 240), "png"),
    "certain and uncertain": (two(255, 100), "png"),
    "ids 1 and 200": (two(1, 200), "png"),
    "ids 1 and 2": (two(1, 2), "png"),
    "16 bits": (two(300, 65535, np.uint16), "png"),
    "VOC colours": (np.dstack([two(128, 64), two(0, 0), two(0, 0)]), "png"),
    "colours and alpha": (np.dstack([two(255, 0), two(0, 0), two(0, 255), two(255, 255)]), "png"),
    "0 and 255 as JPEG": (two(255, 255), "jpg"),
    "two classes as JPEG": (two(255, 100), "jpg"),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_level_above_zero_is_defect(tmp_path, name):
    pixels, suffix = MASKS[name]
    path = grey(tmp_path / f"m.{suffix}", pixels)
    np.testing.assert_array_equal(mask_from_file(path), RIGHT)


def test_ids_in_a_jpeg_keep_their_regions(tmp_path):
    found = mask_from_file(grey(tmp_path / "m.jpg", two(1, 2)))
    assert found[10:30, 10:30].mean() > 0.95 and found[60:80, 60:80].mean() > 0.95  # JPEG has moved the edges
    assert found[~RIGHT].mean() < 0.03


@pytest.mark.parametrize("colour", [(255, 0, 0), (35, 164, 54), (96, 0, 0), (0, 0, 0)])
def test_alpha_alone_counts_where_it_varies(tmp_path, colour):
    """A soft edge of 12 px around 20 x 30: above the middle of alpha lie 30 x 40, whatever the colour is."""
    yy, xx = np.mgrid[0:120, 0:200]
    away = np.maximum.reduce([20 - yy, yy - 39, 150 - xx, xx - 179]).clip(0)
    alpha = (255 * (1 - away / 12)).clip(0, 255).astype(np.uint8)
    rgb = np.where((alpha > 0)[..., None], np.array(colour, np.uint8), np.uint8(0))
    assert mask_from_file(grey(tmp_path / "m.png", np.dstack([rgb, alpha]))).sum() == 1200


def test_a_thin_line_of_ids_keeps_both_classes(tmp_path):
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10, 5:30], pixels[20, 5:30] = 1, 2
    np.testing.assert_array_equal(mask_from_file(grey(tmp_path / "m.png", pixels)), pixels > 0)


def test_the_levels_of_the_set_decide_and_are_named(tmp_path):
    """In one file the class 100 is only an edge's width: alone it would be taken for one."""
    few = two(255, 0)
    few[50:52, 50:52] = 100
    paths = [grey(tmp_path / "a.png", few), grey(tmp_path / "b.png", two(100, 255))]
    assert not mask_from_file(paths[0])[50:52, 50:52].any()
    rule = rule_of(paths)
    assert mask_from_file(paths[0], rule)[50:52, 50:52].all()
    assert rule.lines() == ["2 masks by grey: levels found: 0, 100, 255, other values in 1; defect = all above 50"]


@pytest.mark.parametrize(
    ("setting", "share"), [("auto", 0.08), ("nonzero", 0.08), ("inverted", 0.92), ("255", 0.04), ("100, 255", 0.08)]
)
def test_a_setting_overrides(tmp_path, setting, share):
    path = grey(tmp_path / "m.png", two(100, 255))
    assert mask_from_file(path, rule_of([path], MaskSetting(setting))).mean() == pytest.approx(share)
    with pytest.raises(UserError, match="mask_levels"):
        MaskSetting("most")


NAMES = {
    "same": ("{n}.png", "{n}.png"),
    "_mask": ("{n}.png", "{n}_mask.png"),
    "_Mask": ("{n}.png", "{n}_Mask.png"),
    "_GT": ("{n}.png", "{n}_GT.png"),
    "_label": ("{n}.jpg", "{n}_label.bmp"),
    "mask_": ("{n}.png", "mask_{n}.png"),
    "suffix kept": ("{n}.jpg", "{n}.jpg.png"),
    "case": ("{n}.JPG", "{n}.PNG"),
    "image ends in mask": ("face_{n}_mask.png", "face_{n}_mask.png"),
    "nested images, flat masks": ("cat/{n}.png", "{n}.png"),
}


@pytest.mark.parametrize("names", NAMES)
def test_masks_are_found_by_the_names_that_tools_give(tmp_path, names):
    image_name, mask_name = NAMES[names]
    image(tmp_path / "normal" / "0.png")
    for n in ("000", "001"):
        image(tmp_path / "anomalous" / image_name.format(n=n))
        mask(tmp_path / "masks" / mask_name.format(n=n))
    found = [s for s in DATASETS["folder"].samples(tmp_path) if s.label]
    assert [s.mask_path and s.mask_path.name for s in found] == [mask_name.format(n=n) for n in ("000", "001")]


def test_a_mask_belongs_to_one_image_and_the_others_are_counted(tmp_path):
    image(tmp_path / "normal" / "0.png")
    for name in ("000.png", "000.jpg", "a/1.png", "b/1.png"):
        image(tmp_path / "anomalous" / name)
    for name in ("000.png", "1.png", "stray.png"):
        mask(tmp_path / "masks" / name)
    samples = DATASETS["folder"].samples(tmp_path)
    assert [s.id for s in samples if s.mask_path] == ["anomalous/000.png"]
    account = DATASETS["folder"].account(tmp_path, samples)
    assert account.to_dict()["skipped"] == [{"rule": UNMATCHED, "count": 2, "example": "masks/1.png"}]
    said = "\n".join(remarks(samples, account))
    assert "3 of 4 anomalous images have no mask, as anomalous/000.jpg" in said
    assert "2 masks match no anomalous image, as masks/1.png" in said and "NAME_gt.*" in said


# --- nothing disappears


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    for kind in ("normal", "anomalous"):
        image(tmp_path / "store" / kind / "0.png")
        image(tmp_path / "data" / kind / "lineB" / "0.png")
        (tmp_path / "data" / kind / "lineA").symlink_to(tmp_path / "store" / kind)
    (tmp_path / "data" / "normal" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "normal" / "self").symlink_to(tmp_path / "data" / "normal" / "self")
    samples = DATASETS["folder"].samples(tmp_path / "data")
    assert [s.id for s in samples] == [
        *("anomalous/lineA/0.png", "anomalous/lineB/0.png", "normal/lineA/0.png", "normal/lineB/0.png")
    ]
    found = DATASETS["folder"].account(tmp_path / "data", samples).to_dict()
    assert {"rule": LOOP, "count": 1, "example": "normal/up"} in found["skipped"]
    assert found["unusable"] == [{"file": "normal/self", "reason": "a link to nothing"}]


def test_folders_that_link_to_each_other_do_not_unfold(tmp_path):
    for name in "abcdef":
        (tmp_path / name).mkdir()
        image(tmp_path / name / "0.png")
    for name in "abcdef":
        for other in "abcdef":
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert 6 <= sum(1 for _ in walk(tmp_path)) < 6 * 6**4


def test_litter_is_left_out_by_name_and_counted(tmp_path):
    for kind in ("normal", "anomalous"):
        image(tmp_path / kind / "a.png")
        (tmp_path / kind / "._a.png").write_bytes(b"\0\5\x16\7")
        image(tmp_path / kind / "@eaDir" / "a.png" / "thumb.jpg")
        (tmp_path / kind / "Thumbs.db").write_bytes(b"\0")
    result = prepare("folder", tmp_path, tmp_path.with_name("out"), SMALL)
    assert len(result["images"]) == 2 and not result["skipped"]
    assert result["account"]["skipped"] == [{"rule": HIDDEN, "count": 6, "example": "anomalous/._a.png"}]


@pytest.mark.parametrize("suffix", ["jfif", "jp2", "avif", "gif", "pgm", "JPE", "ppm"])
def test_prepare_reads_what_localize_reads(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)
    for i, kind in enumerate(("normal", "anomalous")):
        path = tmp_path / "in" / kind / f"a.{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels + i).save(path, {"jfif": "JPEG", "JPE": "JPEG"}.get(suffix))
    assert len(prepare("folder", tmp_path / "in", tmp_path / "out", SMALL)["images"]) == 2


def test_heic_without_its_plugin_is_named(tmp_path):
    if "HEIF" in Image.OPEN:
        pytest.skip("pillow-heif is installed")
    TREES["folder"](tmp_path / "in")
    (tmp_path / "in" / "normal" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    result = prepare(
        "folder", tmp_path / "in", tmp_path / "out", PrepareSettings(size=28, max_bad_share=1, balance=False)
    )
    (bad,) = result["account"]["unusable"]
    assert bad["file"] == "normal/phone.heic" and "pip install pillow-heif" in bad["reason"]


NAME = os.fsdecode("划痕".encode("gbk"))


def test_names_that_are_not_utf8(tmp_path):
    for kind, i in (("normal", 0), ("anomalous", 1)):
        image(tmp_path / "a" / kind / f"{i}.png")
        os.makedirs(tmp_path / "in" / kind)
        os.rename(tmp_path / "a" / kind / f"{i}.png", tmp_path / "in" / kind / f"{NAME}{i}.png")
    result = prepare("folder", tmp_path / "in", tmp_path / "out", SMALL)
    ids = sorted(entry["id"] for entry in result["images"])
    assert ids == [r"anomalous/\xbb\xae\xba\xdb1.png", r"normal/\xbb\xae\xba\xdb0.png"]
    assert all((tmp_path / "in" / unwritten(name)).is_file() for name in ids)
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert sorted(row["extra_info"]["id"] for row in rows) == ids


@pytest.mark.parametrize("name", ["plain.png", "划痕.png", NAME, r"a\b", r"a\xb5", r"\x5cxb5", NAME + r"\xbb", "\\"])
def test_written_names_can_be_turned_back(name):
    text = written(name)
    assert unwritten(text) == name and text.encode("utf-8")
    assert text == name or not name.isprintable() or r"\x" in name


def test_one_class_and_types_that_sound_normal_are_said(tmp_path):
    for i in range(2):
        image(tmp_path / "nut" / "test" / "OK" / f"{i}.png")
        image(tmp_path / "nut" / "test" / "crack" / f"{i}.png")
    samples = DATASETS["mvtec_ad"].samples(tmp_path)
    said = remarks(samples, DATASETS["mvtec_ad"].account(tmp_path, samples))
    assert said[0] == "category nut: no normal image; all are taken as anomalous (OK 2, crack 2)"
    assert "'OK' is taken as a defect type" in said[1]


def test_types_below_anomalous_are_types(tmp_path):
    image(tmp_path / "set" / "normal" / "0.png")
    for kind in ("scratch", "dent"):
        image(tmp_path / "set" / "anomalous" / kind / "0.png")
    samples = DATASETS["folder"].samples(tmp_path / "set")
    assert {(s.category, s.defect_type) for s in samples} == {("set", "good"), ("set", "scratch"), ("set", "dent")}
    image(tmp_path / "set" / "normal" / "red" / "0.png")
    image(tmp_path / "set" / "anomalous" / "red" / "dent" / "0.png")
    found = {s.id: (s.category, s.defect_type) for s in DATASETS["folder"].samples(tmp_path / "set")}
    assert found["anomalous/red/dent/0.png"] == ("red", "dent") and found["normal/0.png"] == ("set", "good")


def test_mvtec_ad2_private_images_are_counted_as_skipped(tmp_path):
    tree = TREES["mvtec_ad2"](tmp_path)
    samples = DATASETS["mvtec_ad2"].samples(tree.root)
    (entry,) = DATASETS["mvtec_ad2"].account(tree.root, samples).to_dict()["skipped"]
    assert entry["example"] == "can/test_private/000_mixed.png" and entry["count"] == 1
