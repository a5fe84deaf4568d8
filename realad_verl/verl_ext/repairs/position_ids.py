"""Repair of multi-dimensional position ids on a batch whose sequences all have one length.

verl 0.9.1 stores 3-D position ids as one ``[4, L]`` tensor a sample. When all L are equal, TransferQueue stacks them
dense; they come back as a jagged tensor ragged over the 4 planes, and ``maybe_fix_3d_position_ids`` then only flips the
ragged index over offsets that count planes. The next split dies with ``split_with_sizes expects split_sizes to sum
exactly to L ... got [4, 4, ...]``. Short responses that all hit the length limit make such a batch likely.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

import torch
from tensordict import TensorDict
from torch import Tensor

SEEN_IN = ("verl 0.9.1",)
FIELD = "position_ids"


def rebuild(data: TensorDict) -> TensorDict:
    """Make ``data["position_ids"]`` jagged over tokens again, in place, if it is not; returns ``data``.

    ``input_ids`` [B, j] says the true lengths. One-dimensional position ids are left alone.
    """
    keys = set(data.keys())
    if not {FIELD, "input_ids"} <= keys:
        return data
    position_ids, input_ids = data[FIELD], data["input_ids"]
    if not input_ids.is_nested:
        input_ids = torch.nested.as_nested_tensor(list(input_ids.unbind()), layout=torch.jagged)
        data["input_ids"] = input_ids
    if position_ids.dim() != 3 or _ragged_over_tokens(position_ids, input_ids):
        return data
    planes = position_ids.values() if position_ids.is_nested else position_ids.flatten(0, 1)
    lengths = input_ids.offsets().diff().tolist()
    # Ragged over planes: values are [B * planes, L], every L the same.
    samples = planes.reshape(len(lengths), -1, planes.shape[-1]).unbind()
    assert all(s.shape[-1] == n for s, n in zip(samples, lengths, strict=True)), "position ids do not fit input ids"
    values = torch.cat(list(samples), dim=-1)
    data[FIELD] = torch.nested.nested_tensor_from_jagged(values, input_ids.offsets(), jagged_dim=2)
    return data


def _ragged_over_tokens(position_ids: Tensor, input_ids: Tensor) -> bool:
    total = input_ids.values().shape[0]
    return position_ids.is_nested and position_ids.values().shape[-1] == total == int(position_ids.offsets()[-1])
