import json
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realad_verl.data.procedural import DOMAINS, ProceduralDefects, write_folder
from realad_verl.data.procedural.captions import PLACES, place_answers, place_name
from realad_verl.data.procedural.dataset import SURFACES
from realad_verl.data.procedural.defects import DEFECTS, Scene
from realad_verl.data.procedural.noise import Noise
from realad_verl.data.procedural.surfaces import Surface
from realad_verl.data.procedural.variety import _lit, varied
from realad_verl.errors import UserError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(DOMAINS)), st.sampled_from([32, 112, 168]), st.integers(0, 99))
def test_a_sample_is_consistent_and_depends_only_on_its_index(index, domain, size, seed):
    one, same = (ProceduralDefects(size, domain, seed)[index] for _ in range(2))
    assert one.image.shape == (size, size, 3) and one.image.dtype == np.uint8
    assert one.mask.shape == (size, size) and one.mask.dtype == bool
    assert np.array_equal(one.image, same.image) and np.array_equal(one.mask, same.mask) and one.caption == same.caption
    assert one.label == index % 2 == int(one.mask.any())
    assert one.surface in one.caption
    if one.label:
        assert one.defect_type in one.caption and f" {one.place}" in one.caption
    else:
        assert one.defect_type is None and one.place is None


def test_seeds_and_domains_differ():
    images = [ProceduralDefects(64, domain, seed)[1].image for domain in DOMAINS for seed in (0, 1)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])
    source, shifted = DOMAINS["source"], DOMAINS["shifted"]
    assert not set(source.surfaces) & set(shifted.surfaces)
    assert set(shifted.defects) - set(source.defects)
    assert len(source.surfaces) >= 6 and set(source.defects) >= {"scratch", "spot", "hole", "stain", "crack"}


@pytest.mark.parametrize("kind", sorted(DEFECTS))
@pytest.mark.parametrize("surface", ["knit", "mesh", "washer"])
def test_a_defect_changes_the_image_where_its_mask_is(kind, surface):
    inside, outside = [], []
    for seed in range(5):
        noise = Noise(np.random.default_rng(seed), 112, 0)
        clean = SURFACES[surface](noise)
        image, alpha, _ = DEFECTS[kind](Scene(clean, noise, (0.5, 0.25), 1.0))
        change = np.abs(image - clean.image).mean(2)
        inside.append(change[alpha > 0.4].mean())
        outside.append(change[alpha < 0.01].max())
    assert np.mean(inside) > 0.02
    assert np.mean(outside) < 0.02 or kind in ("hole", "dent"), "a hole's rim and a dent's skirt reach a little further"


def test_the_place_is_where_the_mask_is():
    samples = ProceduralDefects(96, "source", 3)
    for index in range(1, 60, 2):
        rows, columns = np.nonzero(samples[index].mask)
        assert samples[index].place == place_name(rows.mean() / 96, columns.mean() / 96)
    assert place_name(0.0, 0.0) == "top left" and place_name(0.5, 0.5) == "center" and place_name(0.99, 0.5) == "bottom"


def test_place_answers_name_every_place_once():
    text = place_answers({"top", "left"}, np.random.default_rng(0))
    parts = [part.strip() for part in text.split(".") if part]
    assert sorted(part.rsplit(" ", 1)[0] for part in parts) == sorted(sum(PLACES, ()))
    assert {part.rsplit(" ", 1)[0] for part in parts if part.endswith("yes")} == {"top", "left"}


def test_subtle_defects_on_regular_textures_defeat_plain_saliency():
    """Surfaces exist on which |image - blur| does not find the defect: there attention has to be learned."""
    samples, found = ProceduralDefects(112, "shifted", 5), []
    for index in range(1, 241, 2):
        sample = samples[index]
        if sample.surface not in ("perforated sheet", "circuit board", "brick"):
            continue
        image = sample.image.astype(np.float32)
        saliency = np.abs(image - cv2.GaussianBlur(image, (0, 0), 6)).mean(2)
        found.append((saliency[sample.mask].mean() > saliency[~sample.mask].mean()).item())
    assert len(found) > 20 and np.mean(found) < 0.6


def test_speed_per_core():
    """The floor is 200 images a second at 112 x 112 on a free core; a third of it leaves room for a busy machine."""
    samples = ProceduralDefects(112, "source", 0)
    _ = samples[0]
    start = time.process_time()
    for index in range(60):
        _ = samples[index]
    assert 60 / (time.process_time() - start) > 70


def test_folder_layout(tmp_path):
    counts = write_folder(tmp_path / "out", 9, domain="shifted", size=64, seed=1)
    assert counts == {"normal": 5, "anomalous": 4, "masks": 4}
    out = tmp_path / "out"
    names = {folder: sorted(path.name for path in (out / folder).iterdir()) for folder in counts}
    assert names["anomalous"] == names["masks"] and not set(names["normal"]) & set(names["anomalous"])
    sample = ProceduralDefects(64, "shifted", 1)[1]
    read = cv2.cvtColor(cv2.imread(str(out / "anomalous" / "000001.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(read, sample.image)
    assert np.array_equal(cv2.imread(str(out / "masks" / "000001.png"), 0) > 0, sample.mask)
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert rows[1]["caption"] == sample.caption and len(rows) == 9
    with pytest.raises(UserError, match="not empty"):
        write_folder(out, 2)


@pytest.mark.parametrize("arguments", [{"domain": "sourse"}, {"size": 8}])
def test_bad_settings_are_named(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        ProceduralDefects(**arguments)


def test_no_negative_index():
    with pytest.raises(IndexError):
        _ = ProceduralDefects(64)[-1]


@pytest.mark.parametrize("seed", range(8))
def test_variety_moves_a_surface_and_where_a_defect_may_lie_alike(seed):
    inside = np.zeros((40, 40), bool)
    inside[4:20, 8:34] = True
    image = np.where(inside[..., None], np.float32(0.6), np.float32(0.4)).repeat(3, 2)
    gray = np.full_like(image, 0.5)
    checked = gray + np.float32(0.1) * (1 - 2 * (np.indices((40, 40)).sum(0) % 2))[..., None]
    shown, same, through = (
        varied(Surface(image, image * 0, inside), Surface(texture, texture, inside), Noise(rng, 40, 0))
        for texture, rng in zip((gray, gray, checked), (np.random.default_rng(seed) for _ in range(3)), strict=True)
    )
    assert shown.inside.sum() == inside.sum() and (shown.inside == through.inside).all()
    assert 0 <= shown.image.min() < shown.image.max() <= 1
    assert (same.image == shown.image).all() and (same.beneath == shown.beneath).all()
    change = np.abs(through.image - shown.image)
    assert change[~shown.inside].max() < 1e-5 < 0.01 < change[shown.inside].mean()  # the texture shows inside only


def test_uneven_light_is_smooth_and_bounded():
    image = np.full((64, 64, 3), 0.5, np.float32)
    for seed in range(20):
        light = _lit(image, Noise(np.random.default_rng(seed), 64, 0)) / image
        assert 0.05 <= np.abs(light - 1).max() <= 0.3 + 1e-6
        assert np.abs(np.diff(light[..., 0], axis=0)).max() < 0.05  # no edge that could pass for a defect


def test_a_crowded_image_says_where_each_defect_is():
    source = ProceduralDefects(168, "source", 3)
    for index in range(6):
        image, surface, defects = source.crowded(index, 3)
        assert image.shape == (168, 168, 3) and surface in DOMAINS["source"].surfaces and len(defects) == 3
        assert all(kind in DOMAINS["source"].defects and mask.any() for kind, mask in defects)
        bare, _, none = source.crowded(index, 0)
        touched = np.any([mask for _, mask in defects], 0)
        change = np.abs(image.astype(int) - bare).mean(2)
        assert not none and change[touched].mean() > 2 * change[~touched].mean()
