"""Position ids of a batch whose sequences all have one length survive TransferQueue's stacking."""

import pytest
import torch
from tensordict import TensorDict

from realad_verl.verl_ext.repairs.position_ids import rebuild


def _samples(lengths):
    return [torch.arange(4 * n).reshape(4, n) + 1000 * i for i, n in enumerate(lengths)]


def _batch(position_ids, lengths):
    ids = [torch.arange(n) for n in lengths]
    input_ids = torch.nested.as_nested_tensor(ids, layout=torch.jagged)
    return TensorDict({"input_ids": input_ids, "position_ids": position_ids}, batch_size=len(lengths))


def _check(batch, samples):
    got = rebuild(batch)["position_ids"]
    assert got.shape[:2] == (len(samples), 4) and got._ragged_idx == 2
    assert torch.equal(got.values(), torch.cat(samples, dim=-1))
    for one, want in zip(got.unbind(), samples, strict=True):
        assert torch.equal(one, want)


@pytest.mark.parametrize("lengths", [[6, 6, 6], [5], [4, 4, 4, 4]])
def test_ragged_over_planes_is_repaired(lengths):
    samples = _samples(lengths)
    _check(_batch(torch.nested.as_nested_tensor(samples, layout=torch.jagged), lengths), samples)


def test_ragged_over_planes_with_flipped_index_is_repaired():
    # What verl's maybe_fix_3d_position_ids leaves behind.
    samples = _samples([6, 6, 6])
    broken = torch.nested.as_nested_tensor(samples, layout=torch.jagged)
    broken._ragged_idx = 2
    _check(_batch(broken, [6, 6, 6]), samples)


def test_dense_is_repaired():
    samples = _samples([6, 6])
    _check(_batch(torch.stack(samples), [6, 6]), samples)


def test_right_one_is_untouched():
    samples = _samples([3, 6, 5])
    values = torch.cat(samples, dim=-1)
    offsets = torch.tensor([0, 3, 9, 14])
    batch = _batch(torch.nested.nested_tensor_from_jagged(values, offsets, jagged_dim=2), [3, 6, 5])
    before = batch["position_ids"]
    assert rebuild(batch)["position_ids"].values().data_ptr() == before.values().data_ptr()


def test_one_dimensional_ids_are_left_alone():
    ids = torch.nested.as_nested_tensor([torch.arange(3), torch.arange(5)], layout=torch.jagged)
    batch = _batch(ids, [3, 5])
    assert rebuild(batch)["position_ids"].dim() == 2
