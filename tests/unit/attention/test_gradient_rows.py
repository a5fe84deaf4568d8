"""Rows with a gradient against autograd through eager attention of the same weights."""

import dataclasses

import pytest
import torch
from attention_models import causal_model, padded, with_attention

from realad_verl.attention import flash_reference
from realad_verl.attention.gradient_rows import gradient_reading
from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.errors import UserError

LENGTHS, WIDTH = [12, 10], 12
QUERIES, COLUMNS = ([3, 9, 8], [5]), torch.tensor([0, 2, 3])


def requests_for(side: str) -> list[RowRequest]:
    offsets = [WIDTH - length if side == "left" else 0 for length in LENGTHS]
    return [
        RowRequest(row, offset, length, torch.tensor(queries), COLUMNS)
        for row, (offset, length, queries) in enumerate(zip(offsets, LENGTHS, QUERIES, strict=True))
    ]


def loss_of(rows: list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy with a fixed target of each row; ``rows`` are logs."""
    total = torch.zeros(())
    for i, log_RC in enumerate(rows):
        target = torch.linspace(1, 2 + i, log_RC.numel()).view_as(log_RC)
        seen = log_RC.detach() > -50
        total = total - (torch.where(seen, target * log_RC, 0.0)).sum()
    return total


def eager_rows(model, requests, inputs, heads=None) -> list[torch.Tensor]:
    """The definition: heads' shares of the columns, weighted by their detached mass, normalised; in float64."""
    before = model.config._attn_implementation
    with_attention(model, "eager")
    layers = model(**inputs, output_attentions=True).attentions
    with_attention(model, before)
    rows = []
    for request in requests:
        at = request.offset + request.queries
        total = torch.zeros((), dtype=torch.float64)
        for index, layer in enumerate(layers):
            some = slice(None) if heads is None else [head for at_layer, head in heads if at_layer == index]
            p_HRC = layer[request.batch_row][some][:, at][..., request.offset + request.columns].double()
            mass = p_HRC.sum(-1, keepdim=True)
            total = total + (mass.detach() * p_HRC / mass.clamp(min=1e-300)).sum(0)
        rows.append((total / total.sum(-1, keepdim=True)).clamp(min=1e-300).log())
    return rows


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict, want: dict, within: float = 1e-5) -> None:
    assert got.keys() >= want.keys() and len(want) > 10
    scale = max(float(w.abs().max()) for w in want.values())
    assert scale > 1e-2  # not a comparison of nothing
    for name, w in want.items():
        assert (got[name] - w).abs().max() <= within * scale, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_window", "gemma3_text"])
def test_sdpa_gradient_equals_eager(kind, side, checkpointing):
    model, inputs, requests = causal_model(kind), padded(LENGTHS, WIDTH, side), requests_for(side)
    eager = eager_rows(model, requests, inputs)
    want = gradients(model, loss_of(eager))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    readout = AttentionReadout(model)
    with gradient_reading(readout, requests) as reading:
        model(**inputs, use_cache=False)
    rows = reading.log_rows()
    for got, eager_RC in zip(rows, eager, strict=True):
        seen = eager_RC > -50
        assert (got[seen] - eager_RC[seen]).abs().max() < 1e-5
    assert_same(gradients(model, loss_of(rows)), want)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_padded_flash_gradient_equals_eager(kind):
    model, inputs, requests = causal_model(kind, "flash_attention_2"), padded(LENGTHS, WIDTH), requests_for("left")
    want = gradients(model, loss_of(eager_rows(model, requests, inputs)))
    with flash_reference.as_flash_attention_2():
        with gradient_reading(AttentionReadout(model, max_bytes=2000), requests) as reading:
            model(**inputs, use_cache=False)
        got = gradients(model, loss_of(reading.log_rows()))
    assert_same(got, want)


def test_a_request_of_nothing_gives_nothing_and_the_others_theirs():
    model, inputs, requests = causal_model("qwen2"), padded(LENGTHS, WIDTH), requests_for("left")
    nothing = [
        dataclasses.replace(requests[0], queries=torch.tensor([], dtype=torch.long)),
        dataclasses.replace(requests[1], columns=torch.tensor([], dtype=torch.long)),
    ]
    found = {}
    for name, wanted in (("alone", requests), ("beside", [nothing[0], *requests, nothing[1]])):
        with gradient_reading(AttentionReadout(model), wanted) as reading:
            model(**inputs, use_cache=False)
        found[name] = reading.log_rows()
    assert [tuple(rows.shape) for rows in found["beside"]] == [(0, 3), (3, 3), (1, 3), (1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(found["alone"], found["beside"][1:3], strict=True))


def test_chosen_heads_alone_are_taught():
    model, inputs, requests = causal_model("qwen2"), padded(LENGTHS, WIDTH), requests_for("left")
    heads = [(0, 1), (2, 0), (2, 3)]
    want = gradients(model, loss_of(eager_rows(model, requests, inputs, heads)))
    with gradient_reading(AttentionReadout(model, heads=heads), requests) as reading:
        model(**inputs, use_cache=False)
    assert_same(gradients(model, loss_of(reading.log_rows())), want)


def test_eager_attention_gives_its_own_probabilities():
    model, inputs, requests = causal_model("qwen2", "eager"), padded(LENGTHS, WIDTH), requests_for("left")
    want = gradients(model, loss_of(eager_rows(model, requests, inputs)))
    with gradient_reading(AttentionReadout(model), requests) as reading:
        model(**inputs, use_cache=False)
    assert_same(gradients(model, loss_of(reading.log_rows())), want)


def test_rows_are_those_of_the_readout_and_logits_are_untouched():
    model, inputs, requests = causal_model("qwen2"), padded(LENGTHS, WIDTH), requests_for("left")
    readout = AttentionReadout(model)
    with torch.no_grad(), readout.reading(requests) as plain:
        logits = model(**inputs).logits
    with gradient_reading(readout, requests, also_rows=True) as reading:
        taught = model(**inputs, use_cache=False).logits
    assert torch.equal(logits, taught.detach())
    for log_RC, rows_RC, again in zip(reading.log_rows(), plain.rows(), reading.rows(), strict=True):
        assert torch.equal(rows_RC, again)
        assert torch.allclose(log_RC.exp(), rows_RC / rows_RC.sum(-1, keepdim=True), atol=1e-6)


def test_autocast_does_not_reach_the_rows():
    """In bf16 autocast the maths stays fp32: the rows are a float64 softmax of the same q and k."""
    model, inputs, requests = causal_model("qwen2"), padded(LENGTHS, WIDTH), requests_for("left")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with gradient_reading(AttentionReadout(model), requests) as reading:
            reading_saw, kept = reading.saw, []
            reading.saw = lambda call: (kept.append(call), reading_saw(call))
            model(**inputs, use_cache=False)
        rows = reading.log_rows()
    assert rows[0].dtype == torch.float32
    total = torch.zeros((), dtype=torch.float64)
    for call in kept:
        q, k = call.query_BHND[0].double(), call.key_BGND[0].double()
        logits = q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2) * call.scale
        hidden = torch.ones(WIDTH, WIDTH, dtype=torch.bool).triu(1)
        total = total + logits.masked_fill(hidden, float("-inf")).softmax(-1).sum(0)
    want = total[torch.tensor(QUERIES[0])[:, None], COLUMNS]
    assert (rows[0].exp() - want / want.sum(-1, keepdim=True)).abs().max() < 1e-5
    loss_of(rows).backward()


def test_a_logit_that_all_keys_share_costs_no_digits():
    """A constant in every key, met by a large query, adds 22,000 to every logit: shares and gradients stay."""
    model, inputs, requests = causal_model("qwen2"), padded(LENGTHS, WIDTH), requests_for("left")
    for offset in (0.0, 64.0):
        calls: list = []
        with gradient_reading(AttentionReadout(model), requests) as reading:
            saw = reading.saw

            def shifted(call, saw=saw, offset=offset, calls=calls):
                query, key = call.query_BHND.detach().clone(), call.key_BGND.detach().clone()
                query[..., 0], key[..., 0] = 1000.0, offset
                calls.append(query.requires_grad_())
                saw(dataclasses.replace(call, query_BHND=query, key_BGND=key))

            reading.saw = shifted
            model(**inputs, use_cache=False)
        rows = reading.log_rows()
        loss_of(rows).backward()
        if not offset:
            want, want_grads = rows, [query.grad for query in calls]
    for got, plain in zip(rows, want, strict=True):
        assert torch.allclose(got, plain, atol=1e-5)
    for query, grad in zip(calls, want_grads, strict=True):
        assert torch.allclose(query.grad, grad, atol=1e-4)


def test_a_layer_that_was_not_seen_is_an_error():
    with gradient_reading(AttentionReadout(causal_model("qwen2")), requests_for("left")) as reading:
        pass
    with pytest.raises(UserError, match="was not seen in 3 of 3 layers"):
        reading.log_rows()
