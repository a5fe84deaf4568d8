import threading

import pytest
import torch
from attention_models import (
    COLUMNS,
    IMAGE_TOKEN,
    QUERIES,
    assert_rows,
    causal_model,
    eager_attention,
    eager_layers,
    padded,
    read,
    requests_for,
    vision_model,
)
from transformers import modeling_flash_attention_utils
from transformers.modeling_utils import AttentionInterface

from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.attention.sites import TRANSFORMERS_SITES, Site, read_sdpa
from realad_verl.errors import UserError

LENGTHS, WIDTH = [12, 10], 12


def originals():
    return (
        AttentionInterface.get_interface,
        modeling_flash_attention_utils.lazy_import_flash_attention,
        modeling_flash_attention_utils._upad_input,
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_window", "gemma3_text"])
def test_padded_sdpa_equals_eager_and_changes_no_logit(kind, side):
    model, inputs, requests = causal_model(kind), padded(LENGTHS, WIDTH, side), requests_for(LENGTHS, WIDTH, side)
    rows, logits = read(model, requests, inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    assert_rows(rows, requests, eager_attention(model, **inputs))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_without_a_mask_attention_is_causal(mode):
    model = causal_model()
    ids = padded([12], 12)["input_ids"]
    requests = requests_for([12], 12)
    with mode(), AttentionReadout(model).reading(requests) as reading:
        model(input_ids=ids)
    assert_rows(reading.rows(), requests, eager_attention(model, input_ids=ids, attention_mask=torch.ones_like(ids)))
    assert reading.rows()[0][0, 3] == 0  # query 3 does not see key 9
    assert not reading.rows()[0].requires_grad


def test_the_vision_tower_is_not_read():
    model = vision_model()
    ids = torch.tensor([[10, 7, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, 8, 11, 12, 13, 14]])
    torch.manual_seed(0)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(16, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
    }
    requests = [RowRequest(0, 0, 11, torch.arange(7, 11), torch.arange(11))]
    rows, logits = read(model, requests, inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    assert_rows(rows, requests, eager_attention(model, **inputs))
    assert torch.allclose(rows[0].sum(1), torch.ones(4))  # all columns: each row is a distribution


@pytest.mark.parametrize("given", ["position_ids", "4-D mask"])
def test_packed_sequences(given):
    model = causal_model()
    ids = padded([12], 12)["input_ids"]
    starts, lengths = [0, 5], [5, 7]
    sequence = torch.tensor([0] * 5 + [1] * 7)
    # without a cache, since transformers looks for packed sequences in position_ids only then
    inputs = {"input_ids": ids, "position_ids": torch.tensor([[*range(5), *range(7)]]), "use_cache": False}
    if given == "4-D mask":
        inputs["attention_mask"] = (sequence[:, None] == sequence).tril()[None, None]
    requests = [
        RowRequest(0, start, length, torch.tensor([4, 2]), torch.tensor([0, 1, 4]))
        for start, length in zip(starts, lengths, strict=True)
    ]
    rows, _ = read(model, requests, inputs)
    for start, length, request, got in zip(starts, lengths, requests, rows, strict=True):
        alone = eager_attention(model, input_ids=ids[:, start : start + length])
        assert_rows([got], [RowRequest(0, 0, length, request.queries, request.columns)], alone)


def test_a_subset_of_layers():
    model, inputs, requests = causal_model(), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    rows, _ = read(model, requests, inputs, layers=(0, -1))
    assert_rows(rows, requests, eager_layers(model, **inputs)[[0, 2]].mean(0))


def test_eager_attention_is_read_as_it_is():
    model, inputs, requests = causal_model(attention="eager"), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    rows, _ = read(model, requests, inputs)
    assert_rows(rows, requests, eager_attention(model, **inputs), within=1e-7)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_eager_with_soft_cap_or_sinks(kind):
    model, inputs, requests = causal_model(kind, "eager"), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    rows, _ = read(model, requests, inputs)
    assert_rows(rows, requests, eager_attention(model, **inputs), within=1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_recomputed_for_the_backward_pass_counts_once(reentrant):
    model, inputs, requests = causal_model(), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    want = eager_attention(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    with AttentionReadout(model).reading(requests) as reading:
        model(**inputs).logits.sum().backward()
    assert_rows(reading.rows(), requests, want)
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_a_layer_never_seen_is_named():
    model = causal_model()
    with AttentionReadout(model).reading(requests_for(LENGTHS, WIDTH)) as reading:
        pass
    with pytest.raises(UserError, match=r"3 of 3 layers \(layers.0.self_attn, layers.1.self_attn"):
        reading.rows()
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (hidden_states, None)  # a kernel of its own
    with torch.no_grad(), AttentionReadout(model).reading(requests_for(LENGTHS, WIDTH)) as reading:
        model(**padded(LENGTHS, WIDTH))
    with pytest.raises(UserError, match=r"1 of 3 layers \(layers.1.self_attn\)"):
        reading.rows()


def test_nothing_stays_behind_after_an_error_inside():
    model, before = causal_model(), originals()
    inputs, requests = padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)

    def fail(*_):
        raise KeyError("inside")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyError), AttentionReadout(model).reading(requests):
        assert originals() != before
        model(**inputs)
    assert originals() == before
    assert not any(module._forward_hooks for module in model.modules())
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert_rows(read(model, requests, inputs)[0], requests, eager_attention(model, **inputs))


def test_readings_do_not_nest_and_cover_one_forward():
    model, before = causal_model(), originals()
    readout, inputs = AttentionReadout(model), padded(LENGTHS, WIDTH)
    with readout.reading([]):
        with pytest.raises(RuntimeError, match="nested"), readout.reading([]):
            pass
        assert originals() != before
    with torch.no_grad(), readout.reading(requests_for(LENGTHS, WIDTH)):
        model(**inputs)
        with pytest.raises(RuntimeError, match="one forward"):
            model(**inputs)
    assert originals() == before


def test_a_kernel_met_at_two_sites_counts_once():
    model, inputs, requests = causal_model(), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)

    class Inner:
        sdpa = staticmethod(AttentionInterface()["sdpa"])

    def twice(module, *args, **kwargs):
        return Inner.sdpa(module, *args, **kwargs)

    original = AttentionInterface._global_mapping["sdpa"]
    AttentionInterface.register("sdpa", twice)
    try:
        rows, _ = read(model, requests, inputs, sites=[Site(Inner, "sdpa", read_sdpa, ("attention_mask",))])
    finally:
        AttentionInterface.register("sdpa", original)
    assert_rows(rows, requests, eager_attention(model, **inputs))


def test_another_thread_is_not_observed_and_may_read_too():
    model, other = causal_model(), causal_model(num_hidden_layers=2)
    inputs, requests = padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    before, result = originals(), {}

    def run():
        result["plain"] = model(**inputs).logits
        result["rows"] = read(other, requests, inputs)[0]

    with torch.no_grad(), AttentionReadout(model).reading(requests) as reading:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        with pytest.raises(UserError, match="3 of 3"):
            reading.rows()  # the other thread's forward of this very model was not counted
        model(**inputs)
    assert originals() == before
    assert_rows(reading.rows(), requests, eager_attention(model, **inputs))
    assert_rows(result["rows"], requests, eager_attention(other, **inputs))


def test_lora():
    from peft import LoraConfig, get_peft_model

    model, inputs, requests = causal_model(), padded(LENGTHS, WIDTH), requests_for(LENGTHS, WIDTH)
    want = eager_attention(model, **inputs)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "o_proj"])).eval()
    assert_rows(read(wrapped, requests, inputs)[0], requests, want)  # B = 0: still the same model
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    want_adapted = eager_attention(model, **inputs)
    assert (want_adapted - want).abs().max() > 0.01
    assert_rows(read(wrapped, requests, inputs)[0], requests, want_adapted)


def test_empty_requests():
    model, inputs = causal_model(), padded(LENGTHS, WIDTH)
    assert read(model, [], inputs)[0] == []
    none = torch.tensor([], dtype=torch.long)
    requests = [RowRequest(0, 0, 12, none, COLUMNS), RowRequest(1, 2, 10, QUERIES, none)]
    rows, _ = read(model, requests, inputs)
    assert [tuple(row.shape) for row in rows] == [(0, 4), (4, 0)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RowRequest(0, 0, 5, torch.tensor([5]), COLUMNS[:2]), "queries reach from 5 to 5"),
        (lambda: RowRequest(0, 0, 5, torch.tensor([1.0]), COLUMNS[:2]), "1-D tensor of positions"),
        (lambda: AttentionReadout(causal_model(), layers=(3,)), "layer 3 does not exist. Allowed: -3 to 2"),
        (lambda: AttentionReadout(causal_model(), layers=(0, -3)), "only once"),
        (lambda: AttentionReadout(causal_model(), max_bytes=0), "max_bytes = 0"),
        (lambda: AttentionReadout(torch.nn.Linear(2, 2)), "no transformers PreTrainedModel"),
        (lambda: read(causal_model(), requests_for([13], 13), padded([12], 12)), "outside the forward's 1 x 12"),
        (lambda: read(causal_model(), requests_for([12], 12), padded([12], 12), max_bytes=100), "max_bytes = 100"),
        (lambda: read(causal_model(attention="flex_attention"), [], {}), "flex_attention"),
        (lambda: read(causal_model(), [], {}, sites=[Site(torch, "no_such", read_sdpa)]), "torch.no_such does not"),
        (lambda: read(causal_model(), [], {}, sites=[Site(torch.nn.Linear, "forward", read_sdpa, ("q",))]), "'q'"),
    ],
)
def test_mistakes_are_named(build, message):
    before = originals()
    with pytest.raises(UserError, match=message):
        build()
    assert originals() == before


def test_cached_keys_are_refused():
    model, inputs = causal_model(), padded([12], 12)
    with torch.no_grad():
        past = model(input_ids=inputs["input_ids"], use_cache=True).past_key_values
    with pytest.raises(UserError, match="whole sequences"):
        read(model, requests_for([12], 12), {"input_ids": inputs["input_ids"], "past_key_values": past})


def test_the_wrapped_places_are_those_of_this_transformers():
    assert [(site.owner, site.name) for site in TRANSFORMERS_SITES] == [
        (AttentionInterface, "get_interface"),
        (modeling_flash_attention_utils, "lazy_import_flash_attention"),
        (modeling_flash_attention_utils, "_upad_input"),
    ]
