"""The choice of heads finds those that a plant made informative, and says how sure it is."""

import numpy as np
import torch

from realad_verl.calibrate.heads import choose_heads, head_aurocs

GRID, LABEL = (6, 6), np.arange(80) % 2


def planted(strength: list[float], seed: int = 0) -> torch.Tensor:
    """[80, H, 36] maps of habits; on anomalous images each head lights up one cell by its strength."""
    random = np.random.default_rng(seed)
    habit = random.gamma(0.5, size=(1, len(strength), 36)) + 0.1
    maps = habit * random.gamma(20, 1 / 20, size=(80, len(strength), 36))
    for i in np.flatnonzero(LABEL):
        cell = random.integers(36)
        maps[i, :, cell] += habit[0, :, cell] * np.array(strength)
    return torch.tensor(maps).float()


def test_informative_heads_rank_first():
    strength = [0.0, 3.0, 0.0, 2.0, 0.0, 0.0]
    choice = choose_heads(planted(strength), LABEL, 0)
    assert choice.heads[0] == 1 and set(choice.heads) <= {1, 3}
    assert choice.auroc_H[[1, 3]].min() > 0.9 and choice.auroc_H[[0, 2, 4, 5]].max() < 0.75
    assert choice.half_overlap == 1.0
    again = choose_heads(planted(strength), LABEL, 0)
    assert again.heads == choice.heads and again.size_auroc == choice.size_auroc


def test_nothing_to_find_is_told():
    """No head knows anything: held-out AUROC stays at chance, whatever the best head's own AUROC pretends."""
    choice = choose_heads(planted([0.0] * 24), LABEL, 0)
    assert max(choice.size_auroc.values()) < 0.65
    assert abs(choice.half_rank) < 0.4  # the overlap of halves is 1 where all heads are chosen
    assert head_aurocs(planted([0.0] * 24), LABEL).max() > 0.55
