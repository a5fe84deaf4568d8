"""The read-out on a real CUDA device: exact rows, gradients of eager attention, the CPU's maps. Run by ``make gpu``."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from attention_models import causal_model, padded
from exact_reference import exact_beside, means_over_layers
from PIL import Image
from test_exact import LAYOUTS, WITHIN, batch, biased_model, model_with_offset
from test_gradient_rows import LENGTHS, WIDTH, assert_same, eager_rows, gradients, loss_of, requests_for

from realad_verl.attention import flash_reference
from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.attention.readout import AttentionReadout
from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
KERNELS = ("torch", "triton")


@pytest.fixture(params=[False, True], ids=["ieee", "tf32"])
def tf32(request):
    """The global switch that training scripts set."""
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield
    torch.backends.cuda.matmul.allow_tf32 = kept


def check_rows(model, layout: str, kernel: str, autocast: bool) -> None:
    inputs, requests = batch(layout)
    inputs = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    forward = torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext()
    readout = AttentionReadout(model.cuda(), kernel=kernel)
    as_flash = flash_reference.as_flash_attention_2()
    with as_flash, forward, exact_beside() as found, torch.no_grad(), readout.reading(requests) as reading:
        model(**inputs)
    for got, want in zip(reading.rows(), means_over_layers(found), strict=True):
        assert got.device.type == "cuda" and got.dtype == torch.float32
        assert want.max() > 0.02
        assert (got.double().cpu() - want).abs().max() <= WITHIN


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("offset", [0, 100, 1000])
@pytest.mark.parametrize(("attention", "layout"), LAYOUTS)
def test_rows_are_exact_under_autocast(attention, layout, offset, kernel, tf32):
    check_rows(model_with_offset(attention, offset, torch.float32), layout, kernel, autocast=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("attention", "layout"), LAYOUTS)
def test_rows_are_exact_under_large_biases_in_weights_of_any_precision(attention, layout, dtype, kernel, tf32):
    check_rows(biased_model(attention, dtype), layout, kernel, autocast=False)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_window", "gemma3_text"])
def test_gradient_equals_eager(kind, side, checkpointing):
    model, requests = causal_model(kind).cuda(), requests_for(side)
    inputs = {name: value.cuda() for name, value in padded(LENGTHS, WIDTH, side).items()}
    on_cpu = [rows.cpu() for rows in eager_rows(model, requests, inputs)]
    want = gradients(model, loss_of(on_cpu))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    with gradient_reading(AttentionReadout(model), requests) as reading:
        model(**inputs, use_cache=False)
        got = gradients(model, loss_of([rows.cpu() for rows in reading.log_rows()]))
    assert_same(got, want)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("concentration", ["entropy", "contrast"])
def test_maps_of_the_tiny_backbone_are_those_of_the_cpu(concentration, kernel):
    """Generated and read on both; the responses are the same, as the backbone is sure of its words."""
    found = {}
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(90, 160, (*size, 3), dtype=np.uint8)) for size in ((168, 168), (112, 168))]
    for device, chosen in (("cpu", "torch"), ("cuda", kernel)):
        method = MethodConfig.from_dict({"scoring": {"concentration": concentration}, "readout": {"kernel": chosen}})
        localizer = Localizer.from_pretrained(tiny_model_dir(), method=method, device=device, dtype=torch.float32)
        localizer.max_new_tokens = 48
        found[device] = localizer(images)
        ids = [localizer.tokenizer.encode(r.response, add_special_tokens=False) for r in found["cpu"]]
        found[f"{device} given"] = localizer.explain(images, ids)
    for name, results in found.items():
        for got, want in zip(results, found["cpu"], strict=True):
            assert got.response == want.response, name
            assert (got.answer, got.problem, got.n_kept) == (want.answer, want.problem, want.n_kept), name
            assert got.pred_score == pytest.approx(want.pred_score, abs=1e-4), name
            assert (got.anomaly_map is None) == (want.anomaly_map is None), name
            if want.anomaly_map is not None:
                assert got.anomaly_map == pytest.approx(want.anomaly_map, abs=1e-4), name
