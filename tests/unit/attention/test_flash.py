import types

import pytest
import torch
import torch.nn.functional as F
from attention_models import (
    assert_rows,
    causal_model,
    eager_attention,
    padded,
    read,
    requests_for,
    vision_model,
    with_attention,
)
from transformers.integrations import flash_attention
from transformers.models.qwen2 import modeling_qwen2

from realad_verl.attention import flash_reference
from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.attention.sites import Site, read_flash
from realad_verl.errors import UserError

LENGTHS, WIDTH = [12, 10], 12


@pytest.fixture(autouse=True)
def reference_kernel():
    with flash_reference.as_flash_attention_2():
        yield


@pytest.mark.parametrize("causal", [True, False])
def test_reference_equals_sdpa(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 2, 8), torch.randn(2, 6, 2, 8)
    got, lse, _ = flash_reference.flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)
    want = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, enable_gqa=True)
    assert torch.allclose(got, want.transpose(1, 2), atol=1e-6)
    assert lse.shape == (2, 4, 6)
    packed, packed_lse, _ = flash_reference.flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)), torch.tensor([0, 6, 12]), torch.tensor([0, 6, 12]), 6, 6,
        causal=causal, return_attn_probs=True,
    )  # fmt: skip
    assert torch.equal(packed.view(2, 6, 4, 8), got)
    assert torch.equal(packed_lse.view(4, 2, 6).transpose(0, 1), lse)


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"window_size": (2, 0), "causal": True}, lambda ahead: (ahead > 0) | (ahead < -2)),
        ({"window_size": (1, 2)}, lambda ahead: (ahead > 2) | (ahead < -1)),
        ({"causal": True, "softcap": 1.5}, lambda ahead: ahead > 0),
    ],
)
def test_reference_window_and_soft_cap(options, hidden):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 6, 2, 8) for _ in range(3))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * 8**-0.5
    if "softcap" in options:
        scores = 1.5 * (scores / 1.5).tanh()
    ahead = torch.arange(6) - torch.arange(6)[:, None]
    want = torch.einsum("bhnm,bmhd->bnhd", scores.masked_fill(hidden(ahead), -torch.inf).softmax(-1), v)
    assert torch.allclose(flash_reference.flash_attn_func(q, k, v, **options), want, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_window", "gemma3_text", "gemma2"])
def test_padded_flash_equals_eager_and_changes_no_logit(kind, side):
    model = causal_model(kind, "flash_attention_2")
    inputs, requests = padded(LENGTHS, WIDTH, side), requests_for(LENGTHS, WIDTH, side)
    rows, logits = read(model, requests, inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    assert_rows(rows, requests, eager_attention(model, **inputs))


def test_without_padding_the_fixed_length_kernel_is_met():
    model = causal_model("gemma2", "flash_attention_2")
    inputs, requests = padded([12, 12], 12), requests_for([12, 12], 12)
    rows, _ = read(model, requests, inputs)
    assert_rows(rows, requests, eager_attention(model, **inputs))


@pytest.mark.parametrize("given", ["position_ids", "cu_seqlens"])
@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "qwen2_5_vl"])
def test_packed_flash(kind, given):
    model = vision_model("flash_attention_2") if kind == "qwen2_5_vl" else causal_model(kind, "flash_attention_2")
    ids = padded([12], 12)["input_ids"]
    starts, lengths = [0, 5], [5, 7]
    position_ids = torch.tensor([[*range(5), *range(7)]])
    if kind == "qwen2_5_vl":
        position_ids = position_ids.expand(4, 1, 12)  # text positions first, then the three rotary ones
    inputs = {"input_ids": ids, "position_ids": position_ids, "use_cache": False}
    if given == "cu_seqlens":
        bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 7, "max_length_k": 7}
    requests = [
        RowRequest(0, start, length, torch.tensor([4, 2]), torch.tensor([0, 1, 4]))
        for start, length in zip(starts, lengths, strict=True)
    ]
    rows, _ = read(model, requests, inputs)
    for start, length, request, got in zip(starts, lengths, requests, rows, strict=True):
        alone = eager_attention(model, input_ids=ids[:, start : start + length])
        assert_rows([got], [RowRequest(0, 0, length, request.queries, request.columns)], alone)


def test_requests_that_do_not_fit_the_kernels_sequences_are_refused():
    model = causal_model(attention="flash_attention_2")
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = {"input_ids": padded([12], 12)["input_ids"], "position_ids": positions, "use_cache": False}
    none = torch.tensor([], dtype=torch.long)
    with pytest.raises(UserError, match="crosses a boundary"):
        read(model, [RowRequest(0, 2, 6, none, none)], packed)
    with pytest.raises(UserError, match="outside the 12 packed tokens"):
        read(model, [RowRequest(0, 12, 2, none, none)], packed)
    with pytest.raises(UserError, match="marks as padding"):
        read(model, [RowRequest(1, 1, 11, none, none)], padded(LENGTHS, WIDTH))


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_a_model_that_holds_flash_attn_itself(sites):
    """A model's own module with its own flash-attn name, as training stacks patch in; nested sites count once."""
    model = with_attention(causal_model(), "flash_attention_2")
    own = types.ModuleType("own_kernels")
    own.flash_attn_varlen_func = flash_reference.flash_attn_varlen_func
    own.outer = lambda q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal: (
        own.flash_attn_varlen_func(
            q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, causal=causal,
        )
    )  # fmt: skip

    def forward(query, key, value, attention_mask, query_length, *args, **kwargs):
        bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
        return own.outer(query[0], key[0], value[0], bounds, bounds, 7, 7, causal=True)[None]

    inputs = {"input_ids": padded([12], 12)["input_ids"], "position_ids": torch.tensor([[*range(5), *range(7)]])}
    requests = [RowRequest(0, 5, 7, torch.tensor([4, 6]), torch.tensor([0, 1, 4]))]
    names = ["flash_attn_varlen_func", "outer"][:sites]
    original = flash_attention._flash_attention_forward
    flash_attention._flash_attention_forward = forward
    try:
        rows, _ = read(
            model, requests, inputs, sites=[Site(own, name, read_flash, ("cu_seqlens_q",)) for name in names]
        )
    except UserError as error:
        assert sites == 0 and "3 of 3 layers" in str(error)
        return
    finally:
        flash_attention._flash_attention_forward = original
    assert sites
    alone = eager_attention(model, input_ids=inputs["input_ids"][:, 5:])
    assert_rows(rows, [RowRequest(0, 0, 7, requests[0].queries, requests[0].columns)], alone)


def test_a_model_that_calls_a_kernel_of_its_own_whatever_its_configuration_says(monkeypatch):
    model, own = causal_model(attention="sdpa"), types.ModuleType("own_kernels")
    own.flash_attn_varlen_func = flash_reference.flash_attn_varlen_func

    def forward(self, hidden_states, position_embeddings, **_):
        tokens, shape = hidden_states.shape[1], (*hidden_states.shape[:2], -1, self.head_dim)
        query, key, value = (made(hidden_states).view(shape) for made in (self.q_proj, self.k_proj, self.v_proj))
        query, key = modeling_qwen2.apply_rotary_pos_emb(query, key, *position_embeddings, unsqueeze_dim=2)
        bounds = torch.tensor([0, tokens], dtype=torch.int32)
        out = own.flash_attn_varlen_func(query[0], key[0], value[0], bounds, bounds, tokens, tokens, causal=True)
        return self.o_proj(out.reshape(1, tokens, -1)), None

    inputs, requests = {"input_ids": padded([12], 12)["input_ids"]}, requests_for([12], 12)
    eager = eager_attention(model, **inputs)
    monkeypatch.setattr(modeling_qwen2.Qwen2Attention, "forward", forward)
    rows, _ = read(model, requests, inputs, sites=[Site(own, "flash_attn_varlen_func", read_flash, ("cu_seqlens_q",))])
    assert_rows(rows, requests, eager)


def test_paged_keys_are_refused():
    model, inputs = causal_model(attention="flash_attention_2"), padded(LENGTHS, WIDTH)
    from transformers import modeling_flash_attention_utils as flash_utils

    def paged(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table="a table", **_):
        return flash_reference.flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    flash_utils._flash_varlen_fn = paged
    with pytest.raises(UserError, match="block_table"):
        read(model, requests_for(LENGTHS, WIDTH), inputs)


def test_kernels_of_layers_that_are_not_read_are_let_alone():
    """Those of a vision tower, say: what could not be read is not refused there."""
    model, bounds = causal_model(attention="flash_attention_2"), torch.tensor([0, 3], dtype=torch.int32)

    def paged(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_table="a table"):
        return flash_reference.flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    states = torch.randn(3, 3, 2, 8).unbind()
    with AttentionReadout(model).reading(requests_for(LENGTHS, WIDTH)):
        assert torch.equal(read_flash(paged)(*states, bounds, bounds, 3, 3), paged(*states, bounds, bounds, 3, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_real_flash_attn_gives_the_rows_of_the_reference():
    flash_attn = pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    q, k, v = (torch.randn(12, heads, 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2))
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32, device="cuda")
    arguments = (q, k, v, bounds, bounds, 7, 7)
    options = {"causal": True, "window_size": (3, 0), "softcap": 2.0, "return_attn_probs": True}
    got, got_lse, _ = flash_attn.flash_attn_varlen_func(*arguments, **options)
    want, want_lse, _ = flash_reference.flash_attn_varlen_func(*arguments, **options)
    assert torch.allclose(got.float(), want.float(), atol=2e-2)
    assert torch.allclose(got_lse, want_lse, atol=1e-3)
