"""Layouts by hand: projection, tiles, and prompts that have no layout."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from realad_verl.backbones import BACKBONES, ImageLayout, MultipleImagesError, backbone_for
from realad_verl.backbones.internvl import arrangement
from realad_verl.backbones.layout import tiled_layout
from realad_verl.data.prompts import hf_messages
from realad_verl.errors import UserError

TOKENIZER = tiny_models.tokenizer()
IMAGE = tiny_models.token_id("<image>")


def qwen_config(merge=2):
    vision = SimpleNamespace(spatial_merge_size=merge)
    ids = {"image_token_id": IMAGE, "video_token_id": tiny_models.token_id("<video>")}
    return SimpleNamespace(model_type="qwen2_5_vl", vision_config=vision, **ids)


def qwen_layout(ids, **outputs):
    return BACKBONES["qwen2_5_vl"].image_layout(torch.tensor(ids), qwen_config(), outputs, TOKENIZER)


def test_tiles_make_one_row_major_mosaic():
    """1 x 2 tiles of 2 x 2 tokens, then an overview of 2 x 2:  tile 0 | tile 1  =  0 1 4 5
    2 3 6 7"""
    layout = tiled_layout(torch.arange(10, 22), tiles=(1, 2), tile_grid=(2, 2))
    assert layout.grid == (2, 4) and layout.overview == (2, 2, 8)
    assert layout.cells.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    rows = torch.zeros(1, 12)
    rows[0, :8] = torch.arange(8.0)
    assert layout.project(rows).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]


def test_an_overview_may_come_first():
    """An overview of 1 x 2, then 2 x 1 tiles of 1 x 2 tokens."""
    layout = tiled_layout(torch.arange(6), tiles=(2, 1), tile_grid=(1, 2), overview=(1, 2, 0))
    assert layout.grid == (2, 2) and layout.cells.tolist() == [2, 3, 4, 5]
    # Each overview token covers the two cells of its column.
    assert layout.project(torch.tensor([[2.0, 4, 1, 1, 1, 1]])).tolist() == [[2.0, 3.0, 2.0, 3.0]]


def test_overview_is_shared_by_area():
    """An overview of 1 x 2 over a grid of 1 x 3: its left token covers cell 0 and half of cell 1, so 2/3 and 1/3."""
    layout = ImageLayout(torch.arange(5), (1, 3), cells=torch.arange(3), overview=(1, 2, 3))
    assert layout.project(torch.tensor([[0.0, 0, 0, 3, 6]])).tolist() == [[2.0, 3.0, 4.0]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_projection_keeps_the_attention_mass(down, across, h, w):
    layout = tiled_layout(torch.arange((down * across + 1) * h * w), (down, across), (h, w))
    rows = torch.rand(3, (down * across + 1) * h * w)
    torch.testing.assert_close(layout.project(rows).sum(1), rows.sum(1))


@pytest.mark.parametrize("rows, cols", [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 3), (3, 2), (1, 12), (3, 4)])
def test_internvl_tiles_are_arranged_as_the_thumbnail_shows(rows, cols):
    picture = np.random.default_rng(3).normal(size=(3, rows * 16, cols * 16)).astype(np.float32)
    whole = torch.from_numpy(picture)
    tiles = whole.unflatten(2, (cols, 16)).unflatten(1, (rows, 16)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    thumbnail = torch.nn.functional.interpolate(whole[None], size=(96, 96), mode="area")[0]
    assert arrangement(tiles, thumbnail) == (rows, cols)


def test_blank_tiles_are_arranged_as_nearly_square():
    assert arrangement(torch.full((6, 3, 16, 16), 0.3), torch.full((3, 16, 16), 0.3)) in ((2, 3), (3, 2))


def test_prompt_without_image_has_no_layout():
    assert qwen_layout([1, 2, 3]) is None


def test_only_image_tokens_are_columns():
    layout = qwen_layout([1, IMAGE, IMAGE, 2], image_grid_thw=torch.tensor([[1, 2, 4]]))
    assert layout.columns.tolist() == [1, 2] and layout.grid == (1, 2)


def test_several_images_are_refused():
    with pytest.raises(MultipleImagesError, match="2 images"):
        qwen_layout([IMAGE, IMAGE], image_grid_thw=torch.tensor([[1, 2, 2], [1, 2, 2]]))


def test_videos_are_refused():
    with pytest.raises(UserError, match="video"):
        qwen_layout([tiny_models.token_id("<video>")])
    with pytest.raises(UserError, match="video"):
        qwen_layout([IMAGE], video_grid_thw=torch.tensor([[2, 2, 2]]))
    with pytest.raises(UserError, match="2 frames"):
        qwen_layout([IMAGE] * 2, image_grid_thw=torch.tensor([[2, 2, 2]]))


def test_truncated_prompts_and_missing_outputs_are_named():
    with pytest.raises(UserError, match="holds 1 image tokens.*1 x 2"):
        qwen_layout([IMAGE], image_grid_thw=torch.tensor([[1, 2, 4]]))
    with pytest.raises(UserError, match="needs the processor output 'image_grid_thw', got: pixel_values"):
        qwen_layout([IMAGE], pixel_values=torch.zeros(1))


def test_unknown_family_names_the_known_ones():
    with pytest.raises(UserError, match="'bert' has no backbone entry. Known: gemma3"):
        backbone_for(SimpleNamespace(model_type="bert"))


@pytest.mark.parametrize("family", sorted(BACKBONES))
def test_two_images_in_a_real_prompt_are_refused(family):
    tiny = tiny_models.build(family)
    messages = hf_messages()
    messages[0]["content"].insert(0, {"type": "image"})
    text = tiny.processor.apply_chat_template(messages, tokenize=False)
    images = [Image.effect_noise((120, 90), 50).convert("RGB") for _ in range(2)]
    outputs = tiny.processor(images=[images], text=[text], return_tensors="pt")
    config = tiny.model.config
    with pytest.raises(MultipleImagesError):
        backbone_for(config).image_layout(outputs["input_ids"][0], config, outputs, tiny.processor.tokenizer)


@pytest.mark.parametrize("family", sorted(BACKBONES))
def test_a_truncated_real_prompt_is_named(family):
    tiny = tiny_models.build(family)
    text = tiny.processor.apply_chat_template(hf_messages(), tokenize=False)
    outputs = tiny.processor(images=[Image.new("RGB", (120, 90))], text=[text], return_tensors="pt")
    config = tiny.model.config
    ids = outputs["input_ids"][0]
    last = int(torch.nonzero(ids == config.image_token_id)[-1])
    with pytest.raises(UserError):
        backbone_for(config).image_layout(ids[:last], config, outputs, tiny.processor.tokenizer)


MINICPM_PROMPT = "<start_of_image>{whole}<end_of_image>"


def minicpm_layout(text, sizes):
    config = SimpleNamespace(model_type="minicpmv4_6", image_token_id=IMAGE)
    ids = torch.tensor(TOKENIZER.encode(text))
    return BACKBONES["minicpmv4_6"].image_layout(ids, config, {"target_sizes": torch.tensor(sizes)}, TOKENIZER)


def minicpm_prompt(rows, cols, per_slice=2, whole=2):
    slices = ("<row_1_col_1>" + "<image>" * per_slice + "<row_1_col_2>") * cols
    return MINICPM_PROMPT.format(whole="<image>" * whole) + "\n".join([slices] * rows) + "\nLook at it."


@pytest.mark.parametrize("rows, cols", [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (9, 1), (1, 9), (3, 3)])
def test_minicpm_slices_lie_as_the_prompt_says(rows, cols):
    """Slices of 8 x 4 patches, so of 2 x 1 tokens; the whole image of 4 x 8, so of 1 x 2."""
    layout = minicpm_layout(minicpm_prompt(rows, cols), [[4, 8], *[[8, 4]] * (rows * cols)])
    assert layout.grid == (2 * rows, cols) and layout.overview == (1, 2, 0)
    grid = layout.cells.view(2 * rows, cols)
    for row in range(rows):
        for col in range(cols):
            first = 2 + 2 * (row * cols + col)
            assert grid[2 * row : 2 * row + 2, col].tolist() == [first, first + 1]


def test_minicpm_modes_and_misfits():
    small = MINICPM_PROMPT.format(whole="<image>" * 8)
    assert minicpm_layout(small, [[4, 8]]).grid == (2, 4)  # the mode "4x": 2 x 2 patches a token
    assert minicpm_layout(MINICPM_PROMPT.format(whole="<image>" * 2), [[4, 8]]).grid == (1, 2)
    with pytest.raises(UserError, match="8 image tokens do not fit the 64 patches"):
        minicpm_layout(small, [[8, 8]])
    with pytest.raises(MultipleImagesError, match="2 images"):
        minicpm_layout(small * 2, [[4, 8], [4, 8]])
