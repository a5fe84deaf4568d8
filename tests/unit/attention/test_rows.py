import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.layout import Placement
from realad_verl.attention.pieces import chunk_sizes, cut, piece_bytes
from realad_verl.attention.rows import add_head_sum
from realad_verl.errors import UserError

N, H, G, D = 24, 6, 2, 8
ROWS, COLUMNS = torch.tensor([23, 5, 11, 17]), torch.tensor([0, 3, 4, 11, 22])


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return 3 * torch.randn(H, N, D).to(dtype), torch.randn(G, N, D).to(dtype)


def causal(rows):
    return torch.zeros(1, len(rows), N).masked_fill(torch.arange(N) > rows[:, None], float("-inf"))


def head_sum(query, rows, key, columns, *, scale, softcap=0.0, sink=None, max_bytes=64 << 20):
    """[R, C] of one sequence, in as many pieces as the bound asks for; causal."""
    call = KernelCall(query[None], key[None], scale=scale, causal=True, softcap=softcap, sink_H=sink)
    placed = Placement(0, rows, columns, 0, key.shape[1])
    result = torch.zeros(len(rows), len(columns))
    pieces = cut([placed], len(query), *key.shape[::2], max_bytes, query.device)
    sums = [torch.zeros(1, *piece.rows_sr.shape, len(columns)) for piece in pieces]
    add_head_sum(sums, call, pieces, 1.0)
    for piece, (part,) in zip(pieces, sums, strict=True):
        for (_, first, count, _), rows_rC in zip(piece.parts, part, strict=True):
            result[first : first + count] += rows_rC[:count]
    return result


def textbook(query, key, *, softcap=0.0, sink=None):
    """[H, R, N] probabilities in float64."""
    logits = query.double()[:, ROWS] @ key.double().repeat_interleave(H // G, 0).transpose(1, 2) * 0.3
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits + causal(ROWS)
    if sink is not None:
        logits = torch.cat([logits, sink.double()[:, None, None].expand(H, len(ROWS), 1)], -1)
    return logits.softmax(-1)[..., :N]


@pytest.mark.parametrize("max_bytes", [1 << 30, 6000])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_equal_the_textbook(softcap, sinks, max_bytes):
    query, key = tensors()
    sink = torch.linspace(-1, 2, H) if sinks else None
    want = textbook(query, key, softcap=softcap, sink=sink)
    options = {"scale": 0.3, "softcap": softcap, "max_bytes": max_bytes}
    full = head_sum(query, ROWS, key, COLUMNS, sink=sink, **options)
    assert (full - want.sum(0)[:, COLUMNS]).abs().max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("offset", [0, 100, 1000, 10000])
def test_an_offset_of_all_logits_costs_no_precision(offset, sinks, dtype):
    """q and k share a direction, as by large biases; each head alone is held to the bound."""
    torch.manual_seed(0)
    query, key = torch.randn(1, N, D), torch.randn(1, N, D)
    query[..., 0] = key[..., 0] = (offset / 0.3) ** 0.5
    query, key = query.to(dtype), key.to(dtype)
    logits = query.double()[0, ROWS] @ key.double()[0].T * 0.3 + causal(ROWS)[0]
    sink = torch.tensor([float(offset)]) if sinks else None
    if sink is not None:
        logits = torch.cat([logits, sink.double().expand(len(ROWS), 1)], -1)
    want = logits.softmax(-1)[:, COLUMNS]
    assert want.max() > 0.1
    got = head_sum(query, ROWS, key, COLUMNS, scale=0.3, sink=sink)
    assert (got - want).abs().max() <= (1e-3 if sinks and offset == 10000 else 3e-5)


def test_masks_cover_the_keys_that_a_row_may_not_see_and_no_more():
    key = torch.randn(1, G, N, D)
    call = KernelCall(torch.randn(1, H, N, D), key, scale=0.3, causal=True)
    (seeing,) = cut([Placement(0, torch.tensor([N - 1]), COLUMNS, 0, N)], H, G, D, 1 << 20, key.device)
    assert seeing.mask(call).values.numel() == 0
    rows = torch.arange(12, 20)
    pieces = cut([Placement(0, rows, COLUMNS, 0, N)], H, G, D, 8_000, key.device)
    assert len(pieces) > 1 and len({id(piece.sight) for piece in pieces}) == 1  # copied once for all of them
    for piece in pieces:
        mask, hidden = piece.mask(call), torch.arange(N) > piece.rows_sr[0][:, None]
        assert mask.first == int(piece.rows_sr.min()) + 1
        assert torch.equal(mask.values[0, 0], hidden[:, mask.first :])


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under this mode held at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.live[id(tensor)] = (weakref.ref(tensor), tensor.untyped_storage())
        self.live = {key: kept for key, kept in self.live.items() if kept[0]() is not None}
        self.peak = max(self.peak, sum({s.data_ptr(): s.nbytes() for _, s in self.live.values()}.values()))
        return output


@pytest.mark.parametrize("max_bytes", [200_000, 1_000_000])
def test_memory_stays_within_the_bound(max_bytes):
    torch.manual_seed(0)
    query, key, rows = torch.randn(12, 300, 16), torch.randn(4, 300, 16), torch.arange(300)
    with LiveBytes() as memory:
        result = head_sum(query, rows, key, torch.arange(100), scale=1.0, max_bytes=max_bytes)
    inputs = sum(x.untyped_storage().nbytes() for x in (query, key))  # views of them are made
    assert max_bytes < 12 * 300 * 300 * 4  # all at once would not fit
    kept = 2 * 300 * 300  # masks, a byte for a row and key, and tables of positions, for the next layer
    assert max_bytes / 8 < memory.peak <= max_bytes + inputs + result.nbytes + kept


@given(
    rows=st.integers(1, 5000),
    groups=st.integers(1, 16),
    share=st.integers(1, 16),
    keys=st.integers(1, 5000),
    max_bytes=st.integers(1 << 20, 1 << 28),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_pieces_fit_the_bound(rows, groups, share, keys, max_bytes, device):
    try:
        r, g = chunk_sizes(rows, groups, share, keys, 64, max_bytes, device)
    except UserError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        assert max_bytes < least
        return
    assert 1 <= r <= rows and 1 <= g <= groups
    assert piece_bytes(r, g, share, keys, 64) <= max_bytes


def test_a_bound_too_small_names_the_least_that_is_needed():
    query, key = tensors()
    with pytest.raises(UserError, match=r"max_bytes = 100 is not allowed. Allowed: at least \d+ for 24 keys"):
        head_sum(query, ROWS, key, COLUMNS, scale=1.0, max_bytes=100)
