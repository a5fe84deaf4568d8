"""Chosen heads and every head by itself, against eager attention."""

import pytest
import torch
from attention_models import assert_rows, causal_model, eager_heads, padded, read, requests_for

from realad_verl.attention.readout import AttentionReadout
from realad_verl.errors import UserError

LENGTHS, WIDTH = [12, 10], 12


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("heads", [[(0, 1)], [(-1, 0), (0, 0), (0, 3)]])
def test_chosen_heads_equal_eager(kind, heads):
    model, inputs, requests = causal_model(kind), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    rows, _ = read(model, requests, inputs, heads=heads)
    eager = eager_heads(model, **inputs)
    mean = torch.stack([eager[layer, :, head] for layer, head in heads]).mean(0)
    assert_rows(rows, requests, mean)


def test_only_the_chosen_heads_are_computed(monkeypatch):
    from realad_verl.attention import sums

    seen, add = [], sums.add_head_sum
    monkeypatch.setattr(
        sums, "add_head_sum", lambda found, call, *a: seen.append(call.query_BHND.shape[1]) or add(found, call, *a)
    )
    model, inputs, requests = causal_model(), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    read(model, requests, inputs, heads=[(0, 1), (0, 2), (1, 0)])
    assert seen == [2, 1]  # one call a layer, whatever the number of sequences


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_head_by_itself(attention):
    model, inputs, requests = causal_model(attention=attention), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    eager, found = eager_heads(causal_model(), **inputs), {}
    readout = AttentionReadout(model)
    with torch.no_grad(), readout.reading(requests, each_head=found.__setitem__) as reading:
        model(**inputs)
    assert sorted(found) == [(layer, head) for layer in range(eager.shape[0]) for head in range(eager.shape[2])]
    for (layer, head), rows in found.items():
        assert_rows(rows, requests, eager[layer, :, head])
    mean = [torch.stack([rows[i] for rows in found.values()]).mean(0) for i in range(len(requests))]
    for rows, expected in zip(reading.rows(), mean, strict=True):
        torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("heads", [[(0, 99)], [(9, 0)], [(0, -1)], [(0, 0), (-3, 0)], []])
def test_heads_that_do_not_exist(heads):
    with pytest.raises(UserError, match="readout.heads"):
        AttentionReadout(causal_model(), heads=heads)
    with pytest.raises(UserError, match="leave readout.layers out"):
        AttentionReadout(causal_model(), heads=[(0, 0)], layers=[0])
