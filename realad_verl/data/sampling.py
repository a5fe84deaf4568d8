"""Which images go into train and val: balanced, seeded, and independent of the order in which files were found.

Every choice is made in the order of a hash of (seed, name). So the same seed picks the same images on every machine,
and adding images to a dataset changes few of the earlier choices.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from realad_verl.data.datasets.base import Sample


@dataclass(frozen=True)
class Selection:
    """samples: what was chosen, sorted by id. dropped: category -> why none of it was chosen."""

    samples: list[Sample]
    dropped: dict[str, str]


def seeded_key(seed: int, *names: str) -> bytes:
    """Sort key of a seeded order."""
    return hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()


def select(samples: Sequence[Sample], *, balance: bool, max_per_class: int | None, seed: int) -> Selection:
    """Choose images.

    balance: in every category as many normal as anomalous images, so that the category does not tell the answer; a
    category with images of one class only is dropped. max_per_class: at most that many normal and that many anomalous
    images in all, spread over the categories as evenly as they allow.
    """
    pools: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        pools[sample.category, sample.label].append(sample)
    counts = {c: (len(pools[c, 0]), len(pools[c, 1])) for c in sorted({sample.category for sample in samples})}
    capacity = {0: {c: n for c, (n, _) in counts.items()}, 1: {c: n for c, (_, n) in counts.items()}}
    dropped = {}
    if balance:
        capacity = dict.fromkeys((0, 1), {c: min(pair) for c, pair in counts.items()})
        dropped = {c: f"{n} normal, {a} anomalous images" for c, (n, a) in counts.items() if not min(n, a)}
    chosen = []
    for label in (0, 1):
        quotas = spread(capacity[label], max_per_class)
        for category, quota in quotas.items():
            chosen += _in_seeded_order(pools[category, label], seed)[:quota]
    return Selection(sorted(chosen, key=lambda sample: sample.id), dropped)


def spread(capacity: Mapping[str, int], total: int | None) -> dict[str, int]:
    """Share ``total`` out over the names as evenly as their capacity allows (None: all of it)."""
    if total is None:
        return dict(capacity)
    quotas, left = {}, total
    for position, (name, limit) in enumerate(sorted(capacity.items(), key=lambda item: (item[1], item[0]))):
        quotas[name] = min(limit, left // (len(capacity) - position))
        left -= quotas[name]
    return quotas


def _in_seeded_order(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """One image of each group, in the order of the groups; then a second of each. Pairs so stay complete."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    ranked = [
        (rank, seeded_key(seed, "group", group), sample)
        for group, members in groups.items()
        for rank, sample in enumerate(sorted(members, key=lambda s: seeded_key(seed, "member", s.id)))
    ]
    return [sample for _, _, sample in sorted(ranked, key=lambda item: item[:2])]


def split_train_val(samples: Sequence[Sample], val_fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Part the samples into (train, val), both in a seeded mixed order.

    Whole groups go to one side. The share is kept within each class and category as far as whole groups allow: what one
    of them rounds away is carried on to the next category, so each class is right to one group.
    """
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.group].append(sample)
    strata: dict[tuple, list[str]] = defaultdict(list)
    for group, content in members.items():
        strata[tuple(sorted({(sample.label, sample.category) for sample in content}))].append(group)
    val_groups: set[str] = set()
    seen = 0
    for _, groups in sorted(strata.items()):
        seen += len(groups)
        wanted = int(val_fraction * seen + 0.5) - len(val_groups)
        val_groups |= set(sorted(groups, key=lambda group: seeded_key(seed, "split", group))[:wanted])
    mixed = sorted(samples, key=lambda sample: seeded_key(seed, "row", sample.id))
    return (
        [sample for sample in mixed if sample.group not in val_groups],
        [sample for sample in mixed if sample.group in val_groups],
    )
