import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.backbones.inputs import collate, prepare
from realad_verl.data.procedural import ProceduralDefects
from realad_verl.localize import Localizer
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from eager_evidence import EagerReadout


@pytest.fixture(scope="module")
def localizer():
    return Localizer.from_pretrained(tiny_model_dir())


@pytest.fixture
def batch(localizer):
    """Inputs of two sequences of different length, and rows wanted of each."""
    images = [Image.fromarray(ProceduralDefects(IMAGE_SIZE)[i].image) for i in range(2)]
    prompts = [prepare(localizer.processor, localizer.text, image) for image in images]
    responses = [torch.arange(5, 5 + length) for length in (9, 6)]
    requests = [
        RowRequest(i, 0, len(p.input_ids) + len(r), torch.arange(len(r)) + len(p.input_ids), torch.arange(3, 60))
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
    ]
    return collate(prompts, responses, localizer.tokenizer.pad_token_id, "right", localizer.backbone), requests


def test_eager_rows_are_those_of_the_read_out(localizer, batch):
    inputs, requests = batch
    checked = AttentionReadout(localizer.model)
    readout = EagerReadout(localizer.model, None, checked)
    for _ in range(2):  # the first reading compares by itself
        with torch.no_grad(), readout.reading(requests) as reading:
            localizer.model(**inputs, use_cache=False)
        assert readout.readout is None
    with torch.no_grad(), checked.reading(requests) as expected:
        localizer.model(**inputs, use_cache=False)
    assert reading.total_seconds() == 0.0 < expected.total_seconds()  # verl's engine asks each of them
    for ours, theirs in zip(reading.rows(), expected.rows(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert localizer.model.get_decoder().config._attn_implementation == "sdpa"


def test_other_rows_are_refused(localizer, batch):
    inputs, requests = batch
    one_layer = AttentionReadout(localizer.model, [0])
    with (
        pytest.raises(RuntimeError, match="differs from the read-out"),
        torch.no_grad(),
        EagerReadout(localizer.model, None, one_layer).reading(requests),
    ):
        localizer.model(**inputs, use_cache=False)
