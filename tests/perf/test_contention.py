"""Contention: what is typical is a factor a victim times one a neighbour, and one co-run that says
otherwise is in the minority."""

import numpy as np
import pytest

from igniterd.perf.api import UNCAPPED
from igniterd.perf.contention import typical
from igniterd.perf.interference import CONTENTION, CoRunSample, Neighbour, learn, shipped_prior

WAITS, KEEPS = np.array([1.0, 0.5, 0.8, 0.3]), np.array([0.6, 0.9, 0.0, 0.7])
COSTS = np.outer(WAITS, KEEPS)
EVERYBODY = np.ones((4, 4), dtype=np.bool_)


def test_a_product_is_typical_of_itself() -> None:
    assert typical(COSTS, EVERYBODY)[0] == pytest.approx(COSTS)


@pytest.mark.parametrize("said", [0.01, 3.0])
def test_one_that_is_off_moves_nothing(said: float) -> None:
    costs = COSTS.copy()
    costs[0, 1] = said
    assert typical(costs, EVERYBODY)[0] == pytest.approx(COSTS)


def test_what_nobody_told_follows_from_what_others_did_and_counts_for_nothing() -> None:
    costs, told = COSTS.copy(), EVERYBODY.copy()
    costs[1, 1], told[1, 1] = 7.0, False
    assert typical(costs, told)[0] == pytest.approx(COSTS)


def test_of_two_none_is_in_the_minority() -> None:
    costs, told = COSTS.copy(), EVERYBODY.copy()
    costs[0, 1], told[0, 2:] = 0.01, False
    found, follows = typical(costs, told)
    assert found[0] == pytest.approx(costs[0])
    assert follows.tolist() == [[False] * 4] + [[True] * 4] * 3
    assert (typical(np.zeros((3, 3)), np.ones((3, 3), dtype=np.bool_))[0] == 0).all()


def co_run(victim: int, model: int, cost: float) -> CoRunSample:
    near = (Neighbour(model, 4, UNCAPPED, 8.0),)
    blank = CoRunSample(victim, 1.0, 10.0, 1e-6, 2.0, near, share=UNCAPPED)
    e = cost * blank.features(near[0])[-1]
    return CoRunSample(victim, 10.0 * (1 + e), 10.0, 1e-6, 2.0, near, share=UNCAPPED)


def test_a_neighbour_that_was_hardly_there_once_is_taken_midway_and_the_bound_admits_both() -> None:
    pairs = [(i, j) for i in range(4) for j in range(4)]
    usual = learn(4, [co_run(i, j, 0.65) for i, j in pairs], shipped_prior())
    once = learn(
        4, [co_run(i, j, 0.05 if (i, j) == (0, 1) else 0.65) for i, j in pairs], shipped_prior()
    )
    little, much = learn(2, [co_run(0, 1, 0.05)], shipped_prior()).contention[0, 1, 0], 0.65
    assert usual.contention[..., 0] == pytest.approx(np.full((4, 4), much), rel=0.02)
    mean, variance = once.contention[0, 1]
    assert mean == pytest.approx((little + much) / 2, rel=0.02)
    assert mean + 1.65 * variance**0.5 > much > mean + 0.5 * variance**0.5
    elsewhere = np.array([p for p in pairs if p != (0, 1)]).T
    assert once.contention[tuple(elsewhere)] == pytest.approx(usual.contention[tuple(elsewhere)])


def test_a_pair_that_never_ran_together_costs_what_is_typical_of_both() -> None:
    pairs = [(i, j) for i in range(4) for j in range(4)]
    seen = [co_run(i, j, COSTS[i, j]) for i, j in pairs if (i, j) != (0, 1)]
    found = learn(4, seen, shipped_prior())
    mean, variance = found.contention[0, 1]
    assert mean == pytest.approx(COSTS[0, 1], rel=0.05)
    assert mean > 1.3 * CONTENTION[0]
    # it is less sure than one that did, and surer than one of which nothing tells
    nothing = learn(4, [], shipped_prior()).contention[0, 1]
    assert found.contention[2, 1, 1] < variance
    assert variance**0.5 / mean < 0.8 * nothing[1] ** 0.5 / nothing[0]
