"""A loss on the attention itself: the group's agreed map is taught to every response [ours, all of it].

The paper has no such loss. A reward on whole responses says which response was better, not where to look; this one says
where, out of image labels and the group of responses alone:

1. a_r: attention of reasoning token r to the image cells, normalised over them (a sum of 1);
2. M_i = normalise(smooth(mean over r of a_r / b_w(r))): the map of response i, b_w the mean a of token id w over normal
   images of the steps before (`RunningBaseline`);
3. T = normalise((mean of M_i over the image's responses with a right answer) ^ power), without a gradient; over all of
   its responses where no answer is right; the uniform map on a normal image;
4. loss = mean over r of KL(T || a_r), of all responses.

Shape letters: R reasoning tokens of one response, T those of several, P image cells (row-major), n responses to one
image, W token ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.baseline import Baseline, divide_by_baseline, image_share, smooth_maps

Grid = tuple[int, int]
Sums = tuple[Tensor, Tensor, Tensor]  # token ids [W], sums of their rows [W, P], counts [W]
TINY = 1e-12


def response_map(
    rows_RP: Tensor, ids_R: Tensor, baseline: Baseline | None, grid: Grid, cfg: AttentionLossConfig
) -> Tensor:
    """M of one response [P] (step 2) out of its rows, the ids of its tokens and the baseline (None: not divided)."""
    if baseline is None or cfg.baseline == "none":
        ratio_RP = image_share(rows_RP)
    else:
        ratio_RP = divide_by_baseline(rows_RP, baseline.rows(ids_R, cfg.baseline).to(rows_RP.device))
    return image_share(smooth_maps(ratio_RP.mean(0), grid, cfg.smooth))


def consensus_target(
    maps_nP: Tensor, right: Sequence[bool], label: int | None, cfg: AttentionLossConfig
) -> Tensor | None:
    """T of one image [P] (step 3) from the maps of its responses and who answered right.

    None where the image teaches nothing: no map, no label, or a normal image with ``cfg.normal = "none"``.
    """
    if label is None or not len(maps_nP) or (label == 0 and cfg.normal == "none"):
        return None
    if label == 0 and cfg.normal == "uniform":
        return torch.full_like(maps_nP[0], 1.0 / maps_nP.shape[1])
    chosen = torch.tensor(list(right), dtype=torch.bool, device=maps_nP.device)
    if cfg.responses == "all" or not bool(chosen.any()):
        chosen = torch.ones_like(chosen)
    return image_share(maps_nP[chosen].mean(0) ** cfg.power)


def token_losses(target_TP: Tensor, log_a_TP: Tensor) -> Tensor:
    """KL(T || a_r) of each token [T] (step 4); ``log_a_TP`` is the log of a, and carries the gradient."""
    return (target_TP * (target_TP.clamp(min=TINY).log() - log_a_TP)).sum(-1)


class RunningBaseline:
    """b_w: decaying means of the rows a_r by token id over the steps so far, of images of one grid.

    ``add`` collects rows of the running step, ``commit`` takes them in. So a step is measured by the steps before it:
    all its responses alike, in whatever order and on whatever rank they come.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.ids_W, self.sums_WP, self.counts_W = self._nothing()
        self._pending: list[Sums] = []

    def add(self, ids_T: Tensor, rows_TP: Tensor) -> None:
        """Rows (of any scale) and token ids of the running step; rows not finite or all zero are left out."""
        rows_TP = rows_TP.detach()
        good_T = rows_TP.isfinite().all(-1) & (rows_TP.sum(-1) > 0)
        ids_T = ids_T.to(good_T.device)[good_T].cpu().long()
        self._pending.append(_summed(ids_T, image_share(rows_TP[good_T]).cpu(), torch.ones(len(ids_T))))

    def take_pending(self) -> Sums:
        """(ids, sums of rows, counts) of the running step, which is then empty."""
        pending, self._pending = self._pending, []
        return _summed(*(torch.cat(each) for each in zip(self._nothing(), *pending, strict=True)))

    def commit(self, decay: float, step: Sums | None = None) -> None:
        """The running step's rows (or ``step``, where ranks have added theirs up) become part of the means."""
        step = self.take_pending() if step is None else step
        if not len(step[0]):
            return
        old = self.ids_W, self.sums_WP * decay, self.counts_W * decay
        self.ids_W, self.sums_WP, self.counts_W = _summed(*(torch.cat(e) for e in zip(old, step, strict=True)))

    def baseline(self, min_count: float) -> Baseline | None:
        """The means so far; words with fewer than ``min_count`` rows (after decay) have none of their own."""
        if not len(self.ids_W):
            return None
        often_W = self.counts_W >= min_count
        words_VP = self.sums_WP[often_W] / self.counts_W[often_W, None]
        return Baseline(self.grid, self.sums_WP.sum(0) / self.counts_W.sum(), self.ids_W[often_W], words_VP)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the running step is not part of it."""
        return {"grid": self.grid, "ids": self.ids_W, "sums": self.sums_WP, "counts": self.counts_W}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RunningBaseline":
        """The inverse of `state_dict`."""
        baseline = cls(tuple(state["grid"]))
        baseline.ids_W, baseline.sums_WP, baseline.counts_W = (state[key] for key in ("ids", "sums", "counts"))
        return baseline

    def _nothing(self) -> Sums:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, self.grid[0] * self.grid[1]), torch.zeros(0)


def _summed(ids_T: Tensor, rows_TP: Tensor, counts_T: Tensor) -> Sums:
    """Sums by token id: ids ascending [W], rows [W, P], counts [W]."""
    ids_W, at_T = ids_T.unique(return_inverse=True)
    sums_WP = torch.zeros(len(ids_W), rows_TP.shape[1]).index_add_(0, at_T, rows_TP)
    return ids_W, sums_WP, torch.zeros(len(ids_W)).index_add_(0, at_T, counts_T)
