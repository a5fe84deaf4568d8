"""Every family: real processor and tiny random model; token order, grids, and rows equal to eager attention."""

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image, ImageDraw

from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.backbones import BACKBONES, backbone_for
from realad_verl.data.prompts import hf_messages

SIZES = [(120, 90), (60, 210)]  # width, height
TILED = (260, 190)  # two tiles each way, where a family has tiles


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def tiny(request):
    return tiny_models.build(request.param)


def process(tiny, image):
    text = tiny.processor.apply_chat_template(hf_messages(), add_generation_prompt=True, tokenize=False)
    outputs = tiny.processor(images=[image], text=[text], return_tensors="pt")
    outputs.pop("labels", None)
    return outputs


def layout_of(tiny, outputs):
    config = tiny.model.config
    return backbone_for(config).image_layout(outputs["input_ids"][0], config, outputs, tiny.processor.tokenizer)


class Reached(Exception):
    """The language model is about to run; its inputs are ``args[0]``."""


@torch.no_grad()
def language_inputs(tiny, outputs):
    """[L, D]: what the language model gets, image features put in their places."""

    def stop(module, args, kwargs):
        raise Reached(kwargs["inputs_embeds"][0])

    hook = tiny.model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(Reached) as reached:
        tiny.model(**outputs)
    hook.remove()
    return reached.value.args[0]


def test_every_family_is_here():
    assert set(tiny_models.FAMILIES) == set(BACKBONES)


def test_beside_names_all_linears_but_the_language_models(tiny):
    """What keeps LoRA off vision encoder and projector: a name that is missing, or of the language model, fails."""
    beside = backbone_for(tiny.model.config).beside
    text = {id(module) for module in (*tiny.model.get_decoder().modules(), tiny.model.lm_head)}
    linears = {n: m for n, m in tiny.model.named_modules() if isinstance(m, torch.nn.Linear)}
    named = {n for n in linears if set(n.split(".")) & set(beside)}
    assert named == {n for n, m in linears.items() if id(m) not in text}
    modules = {part for n, _ in tiny.model.named_modules() for part in n.split(".")}
    assert set(beside) <= modules


@pytest.mark.parametrize("size", [*SIZES, TILED], ids=str)
def test_bright_patch_lights_up_its_cell(tiny, size):
    width, height = size
    noise = np.random.default_rng(0).integers(60, 100, (height, width, 3), dtype=np.uint8)
    plain = Image.fromarray(noise)
    plain_outputs = process(tiny, plain)
    layout = layout_of(tiny, plain_outputs)
    rows, cols = layout.grid
    before = language_inputs(tiny, plain_outputs)
    for row, col in {(0, 0), (0, cols - 1), (rows - 1, 0), (rows // 2, cols // 3), (rows // 3, cols // 2)}:
        bright = plain.copy()
        box = [col * width / cols, row * height / rows, (col + 1) * width / cols - 1, (row + 1) * height / rows - 1]
        ImageDraw.Draw(bright).rectangle([round(edge) for edge in box], fill=(255, 255, 255))
        outputs = process(tiny, bright)
        assert layout_of(tiny, outputs).grid == layout.grid
        change_N = (language_inputs(tiny, outputs) - before)[layout.columns].norm(dim=1)
        change_P = layout.project(change_N[None])[0]
        assert divmod(int(change_P.argmax()), cols) == (row, col), change_P.view(rows, cols)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_equal_eager_attention(tiny, size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    outputs = process(tiny, Image.fromarray(noise))
    layout = layout_of(tiny, outputs)
    length = outputs["input_ids"].shape[1]
    queries = torch.arange(length - 12, length)
    request = RowRequest(batch_row=0, offset=0, length=length, queries=queries, columns=layout.columns)
    readout = AttentionReadout(tiny.model)
    with torch.no_grad(), readout.reading([request]) as reading:
        tiny.model(**outputs)
    rows = layout.project(reading.rows()[0])

    tiny.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        attentions = tiny.model(**outputs, output_attentions=True).attentions
    tiny.model.set_attn_implementation({"text_config": "sdpa"})
    mean = torch.stack(list(attentions)).mean(dim=(0, 2))[0]  # over layers and heads
    expected = layout.project(mean[queries][:, layout.columns])
    assert rows.shape == (12, layout.grid[0] * layout.grid[1])
    assert expected.std() > 1e-4, "attention is flat: nothing is compared"
    assert (rows - expected).abs().max() <= 1e-6
