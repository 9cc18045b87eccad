"""The search for patterns against all multisets of pieces, tried one after the other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.arrays import F64, I64
from igniterd.planner.kernels.pricing import MOST_PIECES, Limits, Pieces, price
from igniterd.planner.kernels.sketch import EXTRA_UNITS, Sketch, sum_needs

TOP = 12
UNLIMITED = 2**40


class Drawn(NamedTuple):
    """Pieces with values, on a GPU of ``TOP`` units."""

    pieces: Pieces
    value: F64
    room: int

    def worth(self, chosen: tuple[int, ...]) -> float:
        return float(self.value[list(chosen)].sum())

    def code(self, chosen: tuple[int, ...]) -> int:
        return int(self.pieces.code[list(chosen)].sum())

    def admits(self, chosen: tuple[int, ...]) -> bool:
        """Whether memory, copies and units allow the set."""
        p, who = self.pieces, np.array(chosen, dtype=np.int64)
        if p.memory[who].sum() > self.room:
            return False
        families = Counter(p.family[who].tolist())
        if any(count > p.copies[family] for family, count in families.items()):
            return False
        return int(sum_needs(p.sketch, p.model, p.overlap, who, who.size, TOP)) <= TOP

    def sets(self) -> Iterator[tuple[int, ...]]:
        """All that may be on one GPU."""
        for size in range(1, TOP + 1):
            admitted = False
            for chosen in itertools.combinations_with_replacement(range(self.value.size), size):
                if self.admits(chosen):
                    admitted = True
                    yield chosen
            if not admitted:  # needs only rise with company
                return


class Found(NamedTuple):
    sets: list[tuple[int, ...]]
    most: float
    looked: int


def search(
    drawn: Drawn,
    cost: float = 1e-6,
    sets: int = 10**6,
    packed: int = 2,
    banned: tuple[int, ...] = (),
) -> Found:
    found = np.full((drawn.value.size, MOST_PIECES), -1, dtype=np.int64)
    limits = Limits(TOP, drawn.room, cost, sets, packed)
    codes = np.sort(np.array(banned, dtype=np.int64))
    count, most, looked = price(drawn.pieces, drawn.value, limits, codes, found)
    rows = [tuple(sorted(row[row >= 0].tolist())) for row in found[:count]]
    return Found(rows, float(most), int(looked))


def drawn_by(seed: int, n: int, calm: bool = False) -> Drawn:
    """Random pieces; with ``calm`` they do not disturb one another."""
    rng, models, sizes = np.random.default_rng(seed), 2, 2
    sketch = Sketch(
        rng.integers(2, TOP + 3, n),
        1.0 + np.cumsum(rng.uniform(0.0, 0.2, (n, EXTRA_UNITS)), axis=1),
        rng.integers(0, sizes, n),
        rng.uniform(0.0, 0.0 if calm else 0.4, (n, models, sizes)),
    )
    families = np.sort(rng.integers(0, max(1, n - 1), n))
    pieces = Pieces(
        sketch,
        rng.integers(0, models, n),
        rng.integers(1, 5, n),
        families,
        rng.integers(1, 4, n),
        rng.integers(0, 2**58, n),
        float(rng.uniform(0.0, 1.0)),
    )
    return Drawn(pieces, rng.uniform(0.0, 1.0, n), int(rng.integers(4, 20)))


DRAWN = st.builds(drawn_by, st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())


@settings(max_examples=150)
@given(DRAWN, st.integers(1, 4))
def test_the_best_pattern_is_the_best_of_all_sets(drawn: Drawn, packed: int) -> None:
    """And what it says no pattern exceeds is exactly that worth, or what a GPU costs."""
    best = max((drawn.worth(chosen) for chosen in drawn.sets()), default=0.0)
    found = search(drawn, packed=packed)
    assert max(map(drawn.worth, found.sets), default=0.0) == pytest.approx(best)
    assert found.most >= best - 1e-9
    assert all(drawn.admits(chosen) for chosen in found.sets)


@settings(max_examples=100)
@given(DRAWN, st.integers(1, 5))
def test_what_is_known_not_to_hold_is_not_proposed(drawn: Drawn, count: int) -> None:
    """With the best sets forbidden, the best of the rest is found. Sets of one piece are never
    among them: who does not hold alone is not offered."""
    ranked = sorted(drawn.sets(), key=lambda chosen: (-drawn.worth(chosen), chosen))
    banned = [chosen for chosen in ranked if len(chosen) > 1][:count]
    best = max((drawn.worth(s) for s in ranked if s not in banned), default=0.0)
    found = search(drawn, banned=tuple(map(drawn.code, banned)))
    assert not {*found.sets} & {*banned}
    assert max(map(drawn.worth, found.sets), default=0.0) == pytest.approx(best)


@settings(max_examples=150)
@given(DRAWN, st.sampled_from([1, 2, 5]), st.integers(1, 4))
def test_a_search_cut_short_still_says_what_no_pattern_exceeds(
    drawn: Drawn, sets: int, packed: int
) -> None:
    best = max((drawn.worth(chosen) for chosen in drawn.sets()), default=0.0)
    found = search(drawn, sets=sets, packed=packed)
    assert found.most >= best - 1e-9
    assert all(drawn.admits(chosen) for chosen in found.sets)


@settings(max_examples=100)
@given(DRAWN, st.floats(0.2, 3.0))
def test_only_what_is_worth_more_than_a_gpu_costs_is_proposed(drawn: Drawn, cost: float) -> None:
    """It is proposed whenever there is any."""
    best = max((drawn.worth(chosen) for chosen in drawn.sets()), default=0.0)
    found = search(drawn, cost=cost)
    assert all(drawn.worth(chosen) > cost for chosen in found.sets)
    assert bool(found.sets) == (best > cost)
    assert max(found.most, cost) >= best - 1e-9


def by_hand(units: list[int], value: list[float], copies: int, memory: int = 1) -> Drawn:
    """Pieces that do not disturb one another, each of a workload type of its own."""
    n = len(units)
    zeros: I64 = np.zeros(n, dtype=np.int64)
    sketch = Sketch(np.array(units), np.full((n, EXTRA_UNITS), 1.6), zeros, np.zeros((n, 1, 1)))
    pieces = Pieces(
        sketch,
        zeros,
        np.full(n, memory),
        np.arange(n),
        np.full(n, copies),
        2 ** np.arange(n, dtype=np.int64) * 1000,
        0.0,
    )
    return Drawn(pieces, np.array(value), UNLIMITED)


def test_a_knapsack_worked_by_hand() -> None:
    """7, 5 and 4 units at 8, 5 and 4.5, and 12 there are: 7 with 5 is worth 13, three times 4 is
    worth 13.5. With two of each allowed 7 with 5 is best."""
    assert (0, 1) in search(by_hand([7, 5, 4], [8.0, 5.0, 4.5], copies=2)).sets
    assert (2, 2, 2) in search(by_hand([7, 5, 4], [8.0, 5.0, 4.5], copies=3)).sets


def test_memory_is_kept_to() -> None:
    """Three fit the units, two the memory."""
    drawn = by_hand([4], [1.0], copies=3, memory=10)._replace(room=25)
    assert search(drawn).sets == [(0, 0)]
