"""Choosing and parting samples: properties for any dataset."""

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from realad_verl.data.datasets import Sample
from realad_verl.data.sampling import select, split_train_val, spread


def _sample(name: str, label: int, category: str, group: str = "") -> Sample:
    return Sample(name, Path(name), label, category, "x" if label else "good", None, "all", "folder", group)


samples_of = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from("abc"), st.integers(0, 5)), min_size=1, max_size=60
).map(lambda rows: [_sample(f"{i}", label, c, f"{c}{g}") for i, (label, c, g) in enumerate(rows)])


@given(samples_of, st.integers(0, 9), st.none() | st.integers(1, 20))
def test_balance_within_each_category(samples: list[Sample], seed: int, limit: int | None) -> None:
    chosen = select(samples, balance=True, max_per_class=limit, seed=seed)
    counts = Counter((s.category, s.label) for s in chosen.samples)
    for category in "abc":
        assert counts[category, 0] == counts[category, 1]
        if category in chosen.dropped:
            assert len({s.label for s in samples if s.category == category}) == 1
    if limit is not None:
        assert sum(n for (_, label), n in counts.items() if label) <= limit


@given(samples_of, st.integers(0, 9))
def test_no_balance_takes_everything(samples: list[Sample], seed: int) -> None:
    chosen = select(samples, balance=False, max_per_class=None, seed=seed)
    assert sorted(s.id for s in chosen.samples) == sorted(s.id for s in samples)


@given(samples_of, st.integers(0, 9), st.floats(0, 1), st.randoms())
def test_split_keeps_groups_and_ignores_order(samples: list[Sample], seed: int, fraction: float, random) -> None:
    train, val = split_train_val(samples, fraction, seed)
    assert sorted(s.id for s in train + val) == sorted(s.id for s in samples)
    assert not {s.group for s in train} & {s.group for s in val}
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert split_train_val(shuffled, fraction, seed) == (train, val)
    groups, val_groups = len({s.group for s in samples}), len({s.group for s in val})
    assert abs(val_groups - fraction * groups) <= 1


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 30), max_size=6), st.integers(0, 100))
def test_spread_is_even_and_exact(capacity: dict[str, int], total: int) -> None:
    quotas = spread(capacity, total)
    assert sum(quotas.values()) == min(total, sum(capacity.values()))
    assert all(quotas[name] <= limit for name, limit in capacity.items())
    open_ends = [quotas[name] for name, limit in capacity.items() if quotas[name] < limit]
    assert not open_ends or max(quotas.values()) - min(open_ends) <= 1


def test_pairs_stay_complete_under_a_limit() -> None:
    pairs = [
        _sample(f"{i}{kind}", label, "pcb", f"{i}") for i in range(20) for label, kind in enumerate(("temp", "test"))
    ]
    chosen = select(pairs, balance=True, max_per_class=7, seed=3).samples
    assert len(chosen) == 14
    assert set(Counter(sample.group for sample in chosen).values()) == {2}


def test_seeds_differ_and_views_are_spread() -> None:
    views = [_sample(f"{i}v{v}", i % 2, "toy", f"{i}") for i in range(40) for v in range(5)]
    first, second = (select(views, balance=True, max_per_class=10, seed=seed).samples for seed in (0, 1))
    assert {s.id for s in first} != {s.id for s in second}
    assert len({s.group for s in first}) == 20  # one view each, before any object gives a second one
