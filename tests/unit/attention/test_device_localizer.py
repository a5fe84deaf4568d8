"""`Localizer` on a device that is not there: what meets what, and what it would wait for.

A mix of devices anywhere from the pixels to the evidence raises.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from pretend_device import OnDevice, pretend

from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig
from realad_verl.tiny import tiny_model_dir

RESPONSES = ("<think>A bright scratch lies near the top left.</think><answer>yes</answer>", "<think>It is smooth.")


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every weight and buffer on the device."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = tensor.detach().to("cuda")
    assert all(isinstance(parameter, OnDevice) for parameter in model.parameters())
    return model


@pytest.mark.parametrize("concentration", ["entropy", "contrast"])
def test_explain_on_the_device_is_that_of_the_cpu(concentration):
    """Prompts and responses of two lengths; the read-out of a layer waits for nothing after the first."""
    given = {"scoring": {"concentration": concentration}, "readout": {"kernel": "torch"}}
    method = MethodConfig.from_dict(given)
    localizer = Localizer.from_pretrained(tiny_model_dir(), method=method)
    images = [Image.fromarray(np.full(size, 120, np.uint8)).convert("RGB") for size in ((168, 168), (112, 168))]
    ids = [localizer.tokenizer.encode(text, add_special_tokens=False) for text in RESPONSES]
    want = localizer.explain(images, ids)
    with pretend() as counts:
        localizer.model = moved(localizer.model)
        got = localizer.explain(images, ids)
    ours = {where: n for where, n in counts.waits.items() if where.startswith("attention/")}
    # Where requests are placed and cut, once a forward, whatever the number of layers.
    assert sum(ours.values()) <= 9 and not any("rows.py" in where or "readout.py" in where for where in ours), ours
    assert sum(n for where, n in counts.waits.items() if where.startswith("evidence.py")) == 1  # the rows, in one copy
    for found, expected in zip(got, want, strict=True):
        assert found.answer == expected.answer and found.problem == expected.problem
        assert found.pred_score == pytest.approx(expected.pred_score, abs=1e-6)
        assert found.anomaly_map == pytest.approx(expected.anomaly_map, abs=1e-6)
