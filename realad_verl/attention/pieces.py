"""Requests cut and stacked into pieces that are computed together, and which keys each of their rows can see.

s requests of a piece, r rows, C wanted columns, K keys, padded to the largest of the piece; H query heads, G key heads
of width D. Padded rows and columns repeat real ones and are cut off in the end; padded keys are hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from realad_verl.attention.calls import KernelCall
from realad_verl.attention.layout import Placement
from realad_verl.errors import bad_value

# Pieces that stay in a core's cache, keys aside; larger ones are slower on CPU.
CPU_CHUNK_BYTES = 4 << 20
MASKS_KEPT = 4  # kinds of mask in one model: full and sliding attention, rarely more


@dataclass(frozen=True)
class Mask:
    """Over the keys from ``first`` on, [s, H or 1, r, k]: bool, True = hidden, or fp32 to add (the kernel's own).

    On a CPU k is from the first to the last key that any row does not see: rows of a response see nearly all keys, and
    a pass over all logits is a tenth of the work there.
    """

    values: Tensor
    first: int

    def of_heads(self, h: slice) -> "Mask":
        """The same for some of the heads."""
        return self if self.values.shape[1] == 1 else Mask(self.values[:, h], self.first)

    def hide(self, logits_shrK: Tensor) -> None:
        """In place."""
        if not self.values.numel():
            return
        some = logits_shrK[..., self.first : self.first + self.values.shape[-1]]
        if self.values.dtype == torch.bool:
            some.masked_fill_(self.values, float("-inf"))
        else:
            some.add_(self.values)


@dataclass(frozen=True)
class Sight:
    """The keys in sight of each request: ``count_s`` from ``start_s`` on, at most ``longest``, ``total`` of all."""

    start_s: Tensor
    count_s: Tensor
    longest: int
    total: int

    @cached_property
    def keys_sK(self) -> Tensor:
        """Their token positions, padded by the last."""
        along_K = torch.arange(self.longest, device=self.start_s.device)
        return self.start_s[:, None] + torch.minimum(along_K, self.count_s[:, None] - 1)

    @cached_property
    def padding_sK(self) -> Tensor:
        """Which of these are padding."""
        return torch.arange(self.longest, device=self.start_s.device) >= self.count_s[:, None]


@dataclass(frozen=True)
class Piece:
    """Some rows of some requests, in a kernel's coordinates.

    Attributes:
        parts: for each of the s: index of the request, its first row here, its number of rows and of columns.
        batch_s: batch entries. rows_sr, columns_sC: token positions. sight: the keys in sight.
        key_heads: how many key heads are done at a time.
        numbers_6s: of a piece that is not split, what the fused kernels ask: batch entry, first key, numbers of keys,
            rows and columns, and the requests' places in a buffer of all keys and one more of each.
    """

    parts: list[tuple[int, int, int, int]]
    batch_s: Tensor
    rows_sr: Tensor
    columns_sC: Tensor
    sight: Sight
    key_heads: int
    numbers_6s: Tensor
    masks: dict[tuple, tuple[Tensor | None, Mask]] = field(default_factory=dict)

    @cached_property
    def wanted_sC(self) -> Tensor:
        """The columns' places among the keys in sight."""
        return self.columns_sC - self.sight.start_s[:, None]

    def mask(self, call: KernelCall) -> Mask:
        """Which of the keys a row does not see.

        Built once for all layers of a forward that share mask, causality and window; one per head is not kept.
        """
        return self._kept(call, self._cut_mask)

    def _cut_mask(self, call: KernelCall) -> Mask:
        values_sXrK = self._mask(call)
        if values_sXrK.dtype != torch.bool or values_sXrK.device.type != "cpu":  # on a GPU it would wait
            return Mask(values_sXrK, 0)
        some = values_sXrK.flatten(0, 2).any(0).nonzero().flatten()
        first, stop = (int(some[0]), int(some[-1]) + 1) if len(some) else (0, 0)
        return Mask(values_sXrK[..., first:stop].contiguous(), first)

    def additive_mask(self, call: KernelCall) -> Tensor:
        """The same as fp32 to add, whatever the kernel's own mask is."""
        return self._kept(call, self._added).values

    def wanted_bias(self, call: KernelCall) -> Tensor | None:
        """[s, H or 1, r, C] fp32 to add to the logits of the wanted columns alone; None where none is hidden."""
        made = self._kept(call, self._wanted_bias).values
        return made if made.numel() else None

    def _wanted_bias(self, call: KernelCall) -> Mask:
        hidden = self._hidden(call, self.columns_sC)
        mask = hidden[:, None] if call.mask is None else self._with_own(call, hidden, self.columns_sC)
        if mask.dtype == torch.bool and not bool(mask.any()):
            return Mask(torch.empty(0, 1, 0, 0, device=mask.device), 0)
        return _to_add(mask)

    def _kept(self, call: KernelCall, make: Callable[[KernelCall], Mask]) -> Mask:
        key = (id(call.mask), call.causal, call.window, make.__name__)
        if key not in self.masks:
            made = make(call)
            if made.values.shape[1] > 1:
                return made
            if len(self.masks) == MASKS_KEPT:
                self.masks.pop(next(iter(self.masks)))
            self.masks[key] = (call.mask, made)  # with the kernel's, so that its id stays taken
        return self.masks[key][1]

    def _added(self, call: KernelCall) -> Mask:
        return _to_add(self._mask(call))

    def _mask(self, call: KernelCall) -> Tensor:
        keys_sK = self.sight.keys_sK
        hidden = self.sight.padding_sK[:, None] | self._hidden(call, keys_sK)
        return hidden[:, None] if call.mask is None else self._with_own(call, hidden, keys_sK)

    def _hidden(self, call: KernelCall, keys_sK: Tensor) -> Tensor:
        """[s, r, K] bool: what the kernel's causality and window hide of some keys."""
        left, right = call.window
        if call.causal:
            right = 0
        hidden = torch.zeros(*self.rows_sr.shape, keys_sK.shape[1], dtype=torch.bool, device=keys_sK.device)
        if left >= 0 or right >= 0:
            back_srK = self.rows_sr[:, :, None] - keys_sK[:, None]  # how far the key lies before the query
            if right >= 0:
                hidden = hidden | (back_srK < -right)
            if left >= 0:
                hidden = hidden | (back_srK > left)
        return hidden

    def _with_own(self, call: KernelCall, hidden_srK: Tensor, keys_sK: Tensor) -> Tensor:
        """[s, H or 1, r, K]: the kernel's own mask of some keys, and what is hidden anyway."""
        assert call.mask is not None
        hidden = hidden_srK[:, None]
        batch_s = self.batch_s.clamp(max=call.mask.shape[0] - 1)
        mask = call.mask[batch_s[:, None, None], :, self.rows_sr[:, :, None], keys_sK[:, None]].permute(0, 3, 1, 2)
        return hidden | ~mask if mask.dtype == torch.bool else mask.float().masked_fill(hidden, float("-inf"))


def _to_add(mask: Tensor) -> Mask:
    if mask.dtype != torch.bool:
        return Mask(mask, 0)
    return Mask(torch.zeros(mask.shape, device=mask.device).masked_fill_(mask, float("-inf")), 0)


def cut(
    placements: Sequence[Placement], heads: int, groups: int, width: int, max_bytes: int, device: torch.device
) -> list[Piece]:
    """The pieces that all rows of ``placements`` are done in, each within ``max_bytes`` (see `piece_bytes`).

    Requests of like size share a piece, so that little is padded. Those without a row or column are in none.

    Raises:
        UserError: ``max_bytes`` does not hold one row of one key head.
    """
    wanted = [i for i, placed in enumerate(placements) if len(placed.rows) and len(placed.columns)]
    pieces, pending = [], []

    def size(some: list[int], key_heads: int = groups) -> int:
        keys, rows = (max(of(placements[i]) for i in some) for of in (_keys, _rows))
        return len(some) * piece_bytes(rows, key_heads, heads // groups, keys, width)

    for i in sorted(wanted, key=lambda i: (_rows(placements[i]), _keys(placements[i]))):
        if pending and size([*pending, i]) > _budget(max_bytes, device):
            pieces.append(_piece(placements, [(j, 0, _rows(placements[j])) for j in pending], groups, device))
            pending = []
        if size([i]) <= _budget(max_bytes, device):
            pending.append(i)
            continue
        rows, keys = _rows(placements[i]), _keys(placements[i])
        r, g = chunk_sizes(rows, groups, heads // groups, keys, width, max_bytes, device.type)
        pieces += _split(_piece(placements, [(i, 0, rows)], g, device), r)
    if pending:
        pieces.append(_piece(placements, [(j, 0, _rows(placements[j])) for j in pending], groups, device))
    return pieces


def whole(placements: Sequence[Placement], groups: int, device: torch.device) -> list[Piece]:
    """One piece of everything, for kernels that write nothing of size rows x keys; none where nothing is wanted."""
    wanted = [i for i, placed in enumerate(placements) if len(placed.rows) and len(placed.columns)]
    return [_piece(placements, [(i, 0, _rows(placements[i])) for i in wanted], groups, device)] if wanted else []


def _rows(placed: Placement) -> int:
    return len(placed.rows)


def _keys(placed: Placement) -> int:
    return placed.stop - placed.start


def _piece(
    placements: Sequence[Placement], parts: list[tuple[int, int, int]], key_heads: int, device: torch.device
) -> Piece:
    some = [placements[i] for i, _, _ in parts]
    keys = [_keys(p) for p in some]
    places = [sum(keys[:i]) + i for i in range(len(some))]
    numbers = [
        (p.batch, p.start, n_keys, count, len(p.columns), place)
        for p, n_keys, (_, _, count), place in zip(some, keys, parts, places, strict=True)
    ]
    numbers_6s = moved(torch.tensor(numbers).T.contiguous(), device)
    return Piece(
        parts=[(i, first, count, len(p.columns)) for (i, first, count), p in zip(parts, some, strict=True)],
        batch_s=numbers_6s[0],
        rows_sr=moved(
            _padded([p.rows[first : first + n] for (_, first, n), p in zip(parts, some, strict=True)]), device
        ),
        columns_sC=moved(_padded([p.columns for p in some]), device),
        sight=Sight(numbers_6s[1], numbers_6s[2], max(keys), sum(keys)),
        numbers_6s=numbers_6s,
        key_heads=key_heads,
    )


def _padded(positions: list[Tensor]) -> Tensor:
    longest = max(map(len, positions))
    return torch.stack([torch.cat([p, p[-1:].expand(longest - len(p))]) for p in positions])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what a GPU still has to do."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _split(piece: Piece, r: int) -> list[Piece]:
    """The piece of one request cut into r rows each; they share its keys."""
    ((i, _, rows, columns),) = piece.parts
    some = []
    for first in range(0, rows, r):
        rows_sr = piece.rows_sr[:, first : first + r]
        some.append(replace(piece, parts=[(i, first, rows_sr.shape[1], columns)], rows_sr=rows_sr, masks={}))
    return some


def _budget(max_bytes: int, device: torch.device) -> int:
    return min(max_bytes, CPU_CHUNK_BYTES) if device.type == "cpu" else max_bytes


def piece_bytes(rows: int, key_heads: int, share: int, keys: int, width: int) -> int:
    """What one request takes beside inputs and result.

    For one row and query head: logits and probabilities, 2 K, and the query twice; for one row: the mask while it is
    made, 3 K, and the sum over heads, K; for one key head: its keys three times. All in fp32.
    """
    return 4 * (rows * (4 * keys + key_heads * share * (2 * keys + 2 * width)) + 3 * key_heads * keys * width)


def chunk_sizes(
    rows: int, groups: int, share: int, keys: int, width: int, max_bytes: int, device: str = "cpu"
) -> tuple[int, int]:
    """(rows, key heads) of one request done at a time, so that `piece_bytes` stays within ``max_bytes``."""
    least = piece_bytes(1, 1, share, keys, width)
    if max_bytes < least:
        raise bad_value(
            "max_bytes", max_bytes, f"at least {least} for {keys} keys and {share} query heads to a key head"
        )
    a_group = 12 * keys * width
    a_row = least - a_group
    cached = CPU_CHUNK_BYTES if device == "cpu" else max_bytes  # for what is made anew by each piece: not the keys
    r = max(1, min(rows, (max_bytes - a_group) // a_row, cached // a_row))
    left, of_keys = r * 16 * keys, r * share * 8 * (keys + width)
    g = max(1, min(groups, (max_bytes - left) // (a_group + of_keys), (cached - left) // of_keys))
    return r, g
