import pytest
import torch
from models import causal_model, eager_attentions, left_padded, vision_model

from realad_verl.attention.readout import AttentionReadout, RowRequest

QUERIES = torch.tensor([3, 9, 8, 0])
COLUMNS = torch.tensor([0, 2, 7, 9])


def read(model, requests, inputs, **options):
    readout = AttentionReadout(model, **options)
    with torch.no_grad(), readout.reading(requests) as reading:
        output = model(**inputs)
    return reading.rows(), output.logits


@pytest.mark.parametrize("use_lse", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5_vl"])
def test_left_padded_sdpa_equals_eager(kind, use_lse):
    model = vision_model() if kind == "qwen2_5_vl" else causal_model(kind)
    inputs = left_padded([12, 10], 12)
    requests = [RowRequest(0, 0, 12, QUERIES, COLUMNS), RowRequest(1, 2, 10, QUERIES, COLUMNS)]
    rows, logits = read(model, requests, inputs, use_lse=use_lse)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    eager = eager_attentions(model, **inputs).mean(0)
    for request, got in zip(requests, rows, strict=True):
        want = eager[request.batch_row][request.offset + QUERIES][:, request.offset + COLUMNS]
        assert (got - want).abs().max() <= 1e-6
