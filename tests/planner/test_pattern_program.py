"""The programs over patterns, on a cutting-stock example worked by hand.

Two types. A is served whole (piece 0). B is served whole (piece 1) or in halves (piece 2, twice).
A GPU holds one A, or one B, or A with half a B, or three halves of B.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.planner.cuts import Offer
from igniterd.planner.pattern_program import PatternProgram
from igniterd.planner.patterns import Pattern

OFFER = Offer(np.array([1.0, 1.0, 0.5]), [(0, (0,)), (1, (1,)), (1, (2, 2))])
PATTERNS: list[Pattern] = [(0, 0), (0, 1), (0, 0, 2), (0, 2, 2, 2)]


def program(a: int, b: int, most: float = math.inf) -> PatternProgram:
    return PatternProgram(OFFER, [a, b], [1.0], [most])


def test_the_linear_program_by_hand() -> None:
    """Four A and three B: four GPUs hold A with half a B each, which leaves one B, two halves, at
    two thirds of a GPU. So a half is worth 1/3, and A the rest of a GPU it shares, 2/3."""
    relaxed = program(4, 3).relax(PATTERNS)
    assert relaxed.cost == pytest.approx(4 + 2 / 3)
    assert set(relaxed.used) == {(0, 0, 2), (0, 2, 2, 2)}
    value, scarce = relaxed.duals
    assert value[[0, 2]] == pytest.approx([2 / 3, 1 / 3])
    assert scarce == pytest.approx([0.0])


def test_the_integer_program_by_hand() -> None:
    """Two thirds of a GPU are one. The last B is left whole, which takes fewer replicas."""
    rounded = program(4, 3).round(PATTERNS)
    assert rounded is not None
    assert sum(rounded.gpus) == 5
    assert rounded.cuts == [4, 1, 2]
    assert rounded.gpus == [0, 1, 4, 0]


def test_parts_of_one_workload_are_not_counted_on_one_gpu() -> None:
    """Three thirds of B beside A would be one GPU. There is one B only: its other thirds would need
    a GPU each. So A and B are alone."""
    offer = Offer(np.array([1.0, 1.0, 1 / 3]), [(0, (0,)), (1, (1,)), (1, (2, 2, 2))])
    patterns: list[Pattern] = [(0, 0), (0, 1), (0, 2), (0, 0, 2, 2, 2)]
    one, four = (PatternProgram(offer, [n, n], [1.0], [math.inf]).round(patterns) for n in (1, 4))
    assert one is not None
    assert (one.gpus, one.cuts) == ([1, 1, 0, 0], [1, 1, 0])
    assert four is not None
    assert (four.gpus, four.cuts) == ([0, 0, 0, 4], [4, 0, 4]), "four can change among themselves"


def test_nobody_is_left_out_for_the_parts_of_another() -> None:
    """Of one GPU, to be shared by A and the thirds of B, neither answer holds. The one that is
    cheaper because it leaves B out is not taken; whoever assembles it sees that it does not fit."""
    offer = Offer(np.array([1.0, 1.0, 1 / 3]), [(0, (0,)), (1, (1,)), (1, (2, 2, 2))])
    patterns: list[Pattern] = [(0, 0), (0, 1), (0, 2), (0, 0, 2, 2, 2)]
    found = PatternProgram(offer, [1, 1], [1.0], [1]).round(patterns)
    assert found is not None
    assert (found.gpus, found.cuts) == ([0, 0, 0, 1], [1, 0, 1])


def test_who_is_beyond_the_stock_is_left_out() -> None:
    """Three GPUs serve A with half a B three times, which is one B: four of seven. Or two GPUs hold
    A with a half, and one three halves: two A and two B are four as well. Never five."""
    rounded = program(4, 3, most=3).round(PATTERNS)
    assert rounded is not None
    assert sum(rounded.gpus) <= 3
    assert sum(rounded.cuts) == 4
    assert program(4, 3, most=3).relax(PATTERNS).duals[1][0] > 0.0


def test_nobody_is_left_out_while_a_gpu_is() -> None:
    rounded = program(4, 3, most=5).round(PATTERNS)
    assert rounded is not None
    assert sum(rounded.cuts) == 7


def test_many_are_rounded_as_well_as_few() -> None:
    """Beyond 5000 workloads only what is left over is rounded: no more than a GPU is lost here."""
    rounded = program(4000, 3001).round(PATTERNS)
    assert rounded is not None
    cost = program(4000, 3001).relax(PATTERNS).cost
    assert cost <= sum(rounded.gpus) + 1e-6 <= cost + 2
    assert rounded.cuts[0] >= 4000
    assert rounded.cuts[1] + rounded.cuts[2] >= 3001


def test_the_cheaper_kind_is_used_while_there_is_any() -> None:
    """Three A, two cheap GPUs: the third takes the dear one. One more cheap one would save the
    difference, 2."""
    both: list[Pattern] = [(0, 0), (1, 0)]
    of = PatternProgram(Offer(np.array([1.0]), [(0, (0,))]), [3], [3.0, 1.0], [math.inf, 2])
    relaxed, rounded = of.relax(both), of.round(both)
    assert rounded is not None
    assert rounded.gpus == [1, 2]
    assert relaxed.cost == pytest.approx(5.0)
    assert relaxed.duals[0] == pytest.approx([3.0])
    assert relaxed.duals[1] == pytest.approx([0.0, 2.0])


PATTERN = st.builds(
    lambda kind, pieces: (kind, *sorted(pieces)),
    st.integers(0, 1),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=2),
    st.lists(st.sampled_from([1.0, 7.0, math.inf]), min_size=2, max_size=2),
    st.lists(PATTERN, min_size=1, max_size=8, unique=True),
)
def test_duals_prove_the_cost_and_price_what_is_used(
    counts: list[int], prices: list[float], most: list[float], patterns: list[Pattern]
) -> None:
    """Strong duality: the dual program comes to the cost of the linear one. No pattern is worth
    more than it costs, and what is used is worth as much. Whole numbers cost no less."""
    of = PatternProgram(OFFER, counts, prices, most)
    relaxed = of.relax(patterns)
    value, scarce = relaxed.duals
    assert of.dual_cost(value, scarce) == pytest.approx(relaxed.cost, rel=1e-6, abs=1e-6)
    slack = {p: prices[p[0]] + scarce[p[0]] - value[list(p[1:])].sum() for p in patterns}
    assert min(slack.values()) >= -1e-6
    assert [slack[p] for p in relaxed.used] == pytest.approx([0.0] * len(relaxed.used), abs=1e-6)
    rounded = of.round(patterns)
    assert rounded is not None
    left_out = sum(counts) - min(counts[0], rounded.cuts[0])
    left_out -= min(counts[1], rounded.cuts[1] + rounded.cuts[2])
    cost = sum(prices[p[0]] * n for p, n in zip(patterns, rounded.gpus, strict=True))
    assert cost + 1e4 * max(prices) * left_out >= relaxed.cost * (1.0 - 1e-6)
    for kind in (0, 1):
        used = [n for p, n in zip(patterns, rounded.gpus, strict=True) if p[0] == kind]
        assert sum(used) <= most[kind]
