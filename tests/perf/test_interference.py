"""Interference: weights come back from co-runs made with them, the prior fills what was not seen,
neighbours never help."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.data.v100 import build
from igniterd.perf.api import UNCAPPED
from igniterd.perf.interference import (
    FEATURES,
    CoRunSample,
    Neighbour,
    Prior,
    estimate_prior,
    learn,
    shipped_prior,
)
from igniterd.perf.kernels import mean as kernel

TRUE = np.array([0.1, 0.05, -0.04, 0.12])
OPEN = Prior(np.zeros(FEATURES), np.eye(FEATURES))


def together(parts: np.ndarray) -> float:
    return float(parts.max() + (parts.sum() - parts.max()) / 3)


def observation(
    victim: int, *others: Neighbour, alone_ms: float = 10.0, weights: np.ndarray = TRUE
) -> CoRunSample:
    """A co-run without noise: parts by the features, the worst in full and a third of the
    others."""
    blank = CoRunSample(victim, 1.0, alone_ms, 1e-8, 2.0, others)
    parts = np.array([blank.features(o)[:FEATURES] @ weights for o in others])
    return CoRunSample(victim, alone_ms * (1 + together(parts)), alone_ms, 1e-8, 2.0, others)


def grid(victim: int, model: int, weights: np.ndarray = TRUE) -> list[CoRunSample]:
    return [
        observation(victim, Neighbour(model, b, s), alone_ms=t, weights=weights)
        for b in (1, 4, 32)
        for s in (0.2, 0.5, 0.8)
        for t in (3.0, 40.0)
    ]


def test_the_weights_of_a_pair_are_found() -> None:
    found = learn(2, grid(0, 1), OPEN)
    weights, spreads = found.weights, found.spreads
    features = np.array([o.features(o.neighbours[0])[:FEATURES] for o in grid(0, 1)])
    assert features @ weights[0, 1] == pytest.approx(features @ TRUE, abs=2e-3)
    assert np.trace(spreads[0, 1]) < 0.1 * FEATURES


def test_what_was_not_seen_keeps_the_prior() -> None:
    prior = Prior(TRUE, 0.01 * np.eye(FEATURES))
    found = learn(3, grid(0, 1, 2 * TRUE), prior)
    weights, spreads = found.weights, found.spreads
    assert weights[1, 0] == pytest.approx(TRUE) and weights[0, 2] == pytest.approx(TRUE)
    assert spreads[0, 2] == pytest.approx(prior.covariance)
    assert weights[0, 1][0] > TRUE[0]


def test_three_at_once_teach_about_both_neighbours() -> None:
    prior = Prior(TRUE, 0.01 * np.eye(FEATURES))
    seen = [
        observation(0, Neighbour(1, b, 0.3), Neighbour(2, b, 0.4), weights=1.5 * TRUE)
        for b in (1, 4, 16)
    ]
    found = learn(3, seen, prior)
    weights, spreads = found.weights, found.spreads

    def predicted(o: CoRunSample) -> float:
        return together(
            np.array([o.features(n)[:FEATURES] @ weights[0, n.model] for n in o.neighbours])
        )

    assert [predicted(o) for o in seen] == pytest.approx([o.slowdown for o in seen], abs=0.01)
    assert all(np.trace(spreads[0, j]) < np.trace(prior.covariance) for j in (1, 2))


def test_a_prior_is_mean_and_spread_over_pairs() -> None:
    seen = grid(0, 1, TRUE) + grid(1, 0, 3 * TRUE)
    prior = estimate_prior(seen)
    assert (
        prior.mean == pytest.approx(2 * TRUE) and (np.linalg.eigvalsh(prior.covariance) > 0).all()
    )
    with pytest.raises(ValueError, match="two ordered pairs with 4 co-runs each; there are 1"):
        estimate_prior(grid(0, 1))


def test_the_shipped_prior_is_what_the_tool_writes() -> None:
    made, shipped = build.prior(), shipped_prior()
    assert made.mean == pytest.approx(shipped.mean, rel=1e-4) and made.covariance == pytest.approx(
        shipped.covariance, rel=1e-3
    )


def test_a_cost_per_batch_below_nothing_is_not_believed() -> None:
    odd = TRUE * np.array([1, -1, 1, 1])
    weights = learn(2, grid(0, 1, odd), OPEN).weights
    assert weights[0, 1, 1] == pytest.approx(0, abs=1e-12)


parts = st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1)), min_size=1, max_size=6)


def combined(neighbours: list[tuple[float, float]]) -> float:
    e, d = (np.array(column) for column in zip(*neighbours, strict=True))
    order = np.empty(len(e), np.int64)
    kernel.rank(e, order)
    assert sorted(order) == list(range(len(e))) and (np.diff(e[order]) <= 0).all()
    return float(kernel.combined(e, d, order))


@settings(deadline=None)
@given(parts, st.tuples(st.floats(0, 0.5), st.floats(0, 1)), st.floats(0, 1))
def test_more_and_busier_neighbours_never_cost_less(
    neighbours: list[tuple[float, float]], more: tuple[float, float], busier: float
) -> None:
    slow = combined(neighbours)
    each = [d * e for e, d in neighbours]
    assert max(each) - 1e-9 <= slow <= sum(each) + 1e-9
    assert combined([*neighbours, more]) >= slow - 1e-9
    (e, d), *rest = neighbours
    assert combined([(e, max(d, busier)), *rest]) >= slow - 1e-9


@settings(deadline=None)
@given(parts)
def test_it_is_the_expectation_over_who_executes(neighbours: list[tuple[float, float]]) -> None:
    expected = 0.0
    for executing in itertools.product((False, True), repeat=len(neighbours)):
        chance = np.prod(
            [d if on else 1 - d for (_, d), on in zip(neighbours, executing, strict=True)]
        )
        expected += float(chance) * together(
            np.array([e if on else 0.0 for (e, _), on in zip(neighbours, executing, strict=True)])
        )
    assert combined(neighbours) == pytest.approx(expected, abs=1e-9)


def floored(rise: float, model: int, *, beside_ms: float = 0.0) -> CoRunSample:
    """A victim whose host takes 5 ms and its GPU 1 ms, its host slower by ``rise``."""
    time = beside_ms or 5.0 * (1 + rise)
    return CoRunSample(0, time, 1.0, 1e-6, 1.0, (Neighbour(model, 2, 0.4),), 5.0, 0.6)


def test_one_co_run_on_the_floor_tells_how_much_it_rises_beside_anybody() -> None:
    before = learn(3, [], shipped_prior()).rises[0]
    mean, variance = learn(3, [floored(0.45, 1)], shipped_prior()).rises[0]
    assert before == pytest.approx([0.2, 0.2**2 + 0.03**2])
    assert mean == pytest.approx(0.45, abs=0.02) and variance < 0.05**2
    assert 0.2 + 1.65 * before[1] ** 0.5 > 0.5  # until then the bound admits it


def test_a_floor_hides_what_the_gpu_part_would_have_taken() -> None:
    """No slowdown of a GPU part of 1 ms shows behind 5 ms of the host."""
    found = learn(2, [floored(0.3, 1)], shipped_prior())
    assert found.weights[0, 1] == pytest.approx(shipped_prior().mean, abs=0.01)


def uncapped(cost: float, load: float, gpu_ms: float = 10.0) -> CoRunSample:
    """A victim of 10 ms (2 ms at batch 1) beside one uncapped neighbour."""
    near = (Neighbour(1, 4, UNCAPPED, load),)
    blank = CoRunSample(0, 1.0, gpu_ms, 1e-6, 2.0, near, share=UNCAPPED)
    e = cost * blank.features(near[0])[-1]
    return CoRunSample(0, gpu_ms * (1 + e), gpu_ms, 1e-6, 2.0, near, share=UNCAPPED)


def test_what_an_uncapped_neighbour_costs_is_learnt_and_leaves_the_weights() -> None:
    found = learn(2, [uncapped(1.2, 8.0)], shipped_prior())
    before = learn(2, [], shipped_prior())
    assert 1.0 < found.contention[0, 1, 0] < 1.2  # drawn to the usual 0.65 a little
    assert found.contention[0, 1, 1] / 1.2**2 < before.contention[0, 1, 1] / 0.65**2
    assert found.contention[1, 0] == pytest.approx(before.contention[1, 0])
    assert found.weights[0, 1] == pytest.approx(shipped_prior().mean)
    assert found.spreads[0, 1] == pytest.approx(before.spreads[0, 1])


def test_what_short_kernels_cost_says_little_of_contention() -> None:
    """It costs 1.2 beside long kernels. Beside short ones it was 0.05 less than that, as it may."""
    short = uncapped(1.2, 0.5, gpu_ms=20.0)
    less = replace(short, time_ms=short.time_ms - 0.05 * 20.0)
    sure = learn(2, [uncapped(1.2, 8.0)], shipped_prior())
    found = learn(2, [uncapped(1.2, 8.0), less], shipped_prior())
    assert found.contention[0, 1, 0] == pytest.approx(sure.contention[0, 1, 0], rel=0.1)


def test_capped_co_runs_say_nothing_of_contention() -> None:
    found = learn(2, grid(0, 1, 5 * TRUE), shipped_prior())
    assert found.contention == pytest.approx(learn(2, [], shipped_prior()).contention)


def test_of_two_that_contradict_each_other_the_slower_is_left_to_the_prior_and_to_the_bound() -> (
    None
):
    """At batch 2 beside another 170 % slower, at batch 16 hardly: no form has both."""
    small = CoRunSample(0, 2.7 * 3.0, 3.0, 1e-6, 2.0, (Neighbour(1, 16, 0.4),), share=0.6)
    large = CoRunSample(0, 1.05 * 24.0, 24.0, 1e-6, 2.0, (Neighbour(1, 2, 0.6),), share=0.4)
    found = learn(2, [small, large], shipped_prior())
    weights, spread = found.weights[0, 1], found.spreads[0, 1]

    def slow(o: CoRunSample) -> tuple[float, float]:
        f = o.features(o.neighbours[0])[:FEATURES]
        return float(f @ weights), float(f @ spread @ f) ** 0.5

    assert slow(large)[0] == pytest.approx(0.05, abs=0.05)
    mean, sd = slow(small)
    assert mean < 0.5 and mean + 2.2 * sd > 1.7


def test_what_agrees_is_believed_however_slow_it_is() -> None:
    steep = 5 * TRUE
    found = learn(2, grid(0, 1, steep), shipped_prior())
    features = np.array([o.features(o.neighbours[0])[:FEATURES] for o in grid(0, 1)])
    assert features @ found.weights[0, 1] == pytest.approx(features @ steep, abs=0.05)


def test_an_odd_co_run_takes_nothing_from_what_the_floor_told() -> None:
    """Its neighbour is hardly on the GPU, and it is 40 % slower there: nothing explains that."""
    idle = (Neighbour(2, 2, 0.6, busy=0.05),)
    odd = CoRunSample(0, 1.4 * 16.0, 16.0, 1e-6, 1.0, idle, 5.0, 0.4)
    told = [floored(0.7, model) for model in (1, 3, 4)]
    alone, found = (learn(5, seen, shipped_prior()).rises[0] for seen in (told, [*told, odd]))
    assert found == pytest.approx(alone, abs=0.02)
