"""The lower bound: no plan, however it is found, does with less; and it knows what neighbours
cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.bound.kernels import pricing
from bench.bound.parts import part_worth
from bench.bound.proof import EFFORT, Proof, prove
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.kernels import shares as packing
from igniterd.planner.kernels.shares import Items
from igniterd.planner.lower_bound import curves, lower_bounds
from igniterd.planner.problem import Problem, needs, pick, pose
from igniterd.planner.workloads import Workload
from igniterd.queueing.kernels import lookup

QUICK = replace(
    EFFORT, crowds=(((0.8, 1.0), 2), ((1.0,), 4)), step=0.01, compositions=500, rounds=6
)
EXACTLY = 1.0 + 1e-6


@pytest.fixture(scope="module")
def posed(v100: Any, v100_workloads: Any) -> Problem:
    return pose(v100_workloads, (v100,), 1.0)


def some(problem: Problem, chosen: Sequence[tuple[int, float, float]]) -> Items:
    """Workloads like those of the problem: (which, SLO over its SLO, rate over its rate)."""
    like = pick(problem.whole, np.array([c[0] for c in chosen]))
    slo, rate = np.array([c[1] for c in chosen]), np.array([c[2] for c in chosen])
    return like._replace(goal_ms=like.goal_ms * slo, rate=like.rate * rate)


@pytest.fixture(scope="module")
def proof_of(posed: Any) -> Callable[[Items], Proof]:
    return lambda whole: prove(posed.tables, whole, [1.0], QUICK)


def together(problem: Problem, items: Items, who: Sequence[int]) -> int:
    """Units these items need on one GPU, by the search's own rule."""
    top, chosen = int(problem.tables.units[0]), np.array(who, dtype=np.int64)
    shares = packing.empty_shares()
    return int(packing.least_shares(problem.tables, items, 0, chosen, len(who), top, shares))


def holds(
    problem: Problem, items: Items, who: Sequence[int], units: Sequence[int], options: Sequence[int]
) -> bool:
    """Whether these workloads hold their SLOs on so many units with these largest batches, by the
    tables' rules."""
    t = problem.tables
    stretch = [1.0] * len(who)
    for _ in range(30):  # from below: each round slows everybody more, until nothing changes
        seen = [
            lookup.behaviour(t, 0, items.queue[i], items.model[i], u, c, items.rate[i], s)
            for i, u, c, s in zip(who, units, options, stretch, strict=True)
        ]
        before, stretch = stretch, []
        for a, i in enumerate(who):
            push = [
                seen[b][0]
                * lookup.pair_gain(
                    t, 0, items.model[i], units[a], items.model[j], units[b], seen[b][1]
                )
                for b, j in enumerate(who)
                if b != a
            ]
            worst = max(push, default=0.0)
            stretch.append(1.0 + worst + float(t.overlap[0]) * (sum(push) - worst))
        if np.allclose(before, stretch, rtol=1e-9):
            break
    return all(
        lookup.p99_ms(t, 0, items.queue[i], items.model[i], u, c, items.rate[i], s)
        <= items.goal_ms[i]
        for i, u, c, s in zip(who, units, options, stretch, strict=True)
    )


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to put the items on GPUs."""
    if not items:
        yield []
        return
    first, *rest = items
    for small in partitions(rest):
        yield [[first], *small]
        for k in range(len(small)):
            yield [*small[:k], [first, *small[k]], *small[k + 1 :]]


like_the_paper = st.tuples(st.integers(0, 11), st.floats(1.0, 1.6), st.floats(0.05, 1.0))


@settings(max_examples=8)
@given(chosen=st.lists(like_the_paper, min_size=2, max_size=8))
def test_no_gpu_is_worth_more_than_one(posed: Any, proof_of: Any, chosen: Any) -> None:
    """Every set of up to four that the search's rule lets on one GPU; for any prices with that
    property the sum is a bound."""
    whole = some(posed, chosen)
    proof = proof_of(whole)
    assert proof.total == pytest.approx(proof.worth.sum())
    for count in (1, 2, 3, 4):
        for who in itertools.combinations(range(len(chosen)), count):
            if together(posed, whole, who) <= posed.tables.units[0]:
                assert proof.worth[list(who)].sum() <= EXACTLY


@settings(max_examples=10)
@given(chosen=st.lists(like_the_paper, min_size=2, max_size=3), seed=st.integers(0, 1000))
def test_no_gpu_with_shares_and_batches_of_any_kind_is_worth_more_than_one(
    posed: Any, proof_of: Any, chosen: Any, seed: int
) -> None:
    """Shares above the least, and largest batches the search would not choose, change who disturbs
    whom: still no GPU beats its price."""
    whole = some(posed, chosen)
    if proof_of(whole).worth.sum() <= EXACTLY:
        return  # these may well share a GPU
    t, rng = posed.tables, np.random.default_rng(seed)
    least = needs(t, whole)[0]
    spare = int(t.units[0] - least.sum())
    for _ in range(40 if spare >= 0 else 0):
        # all units given away
        extra = np.diff(np.sort(np.append(rng.integers(0, spare + 1, len(chosen) - 1), [0, spare])))
        most = [int(np.count_nonzero(t.caps <= t.most_batch[0, m])) for m in whole.model]
        assert not holds(
            posed,
            whole,
            range(len(chosen)),
            (least + extra).tolist(),
            [int(rng.integers(m // 2, m)) for m in most],
        )


@settings(max_examples=8)
@given(chosen=st.lists(like_the_paper, min_size=1, max_size=5))
def test_no_way_to_put_them_on_gpus_takes_fewer(posed: Any, proof_of: Any, chosen: Any) -> None:
    """All partitions of up to five workloads."""
    problem = some(posed, chosen)
    least = proof_of(problem).total
    top = int(posed.tables.units[0])
    fits: dict[tuple[int, ...], bool] = {}
    fewest = math.inf
    for gpus in partitions(list(range(len(chosen)))):
        for members in map(tuple, gpus):
            if members not in fits:
                fits[members] = together(posed, problem, members) <= top
        if all(fits[tuple(members)] for members in gpus):
            fewest = min(fewest, len(gpus))
    assert fewest >= least - 1e-6


@settings(max_examples=20)
@given(
    chosen=like_the_paper,
    times=st.floats(1.0, 4.0),
    cuts=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=4),
)
def test_parts_of_any_split_are_worth_the_whole_together(
    posed: Any, chosen: Any, times: Any, cuts: Any
) -> None:
    t, whole = posed.tables, some(posed, [(chosen[0], chosen[1], chosen[2] * times)])
    one = np.zeros(1, dtype=np.int64)
    worth = part_worth(curves(t, whole, 1.05), whole.rate, [1.0], one, one)[0][0]
    sizes = np.array([1.0, *cuts]) / (1.0 + sum(cuts))
    parts = pick(whole, np.zeros(sizes.size, dtype=np.int64))
    units = needs(t, parts._replace(rate=parts.rate * sizes))[0]
    if (units <= t.units[0]).all():
        assert worth[units].sum() >= 1.0 - 1e-9


def test_neighbours_raise_the_bound(posed: Any) -> None:
    """Above the sum of what the workloads need alone."""
    whole = some(posed, [(i, 1.2, 0.7) for i in range(12)])
    alone = float(needs(posed.tables, whole).sum() / posed.tables.units[0])
    assert (
        prove(posed.tables, whole, [1.0], replace(QUICK, compositions=4000, rounds=25)).total
        > 1.01 * alone
    )


def test_harm_is_not_above_what_any_neighbour_does(posed: Any) -> None:
    t, whole = posed.tables, posed.whole
    alone = needs(t, whole)[0]
    harm = np.zeros((whole.model.size, int(t.units[0]) + 1, len(posed.models), t.gain_units.size))
    pricing.harms(t, whole, 0, alone, harm)
    for i, j in itertools.permutations(np.flatnonzero(alone <= t.units[0]).tolist(), 2):
        units = int(alone[j])
        busy, batch = lookup.behaviour(
            t, 0, whole.queue[j], whole.model[j], units, 4, whole.rate[j], 1.07
        )
        for size, own in enumerate(t.gain_units.tolist()):
            push = busy * lookup.pair_gain(t, 0, whole.model[i], own, whole.model[j], units, batch)
            assert harm[j, units, whole.model[i], size] <= push + 1e-12


def test_alike_workloads_are_grouped_and_the_bound_grows_with_them(
    posed: Any, proof_of: Any
) -> None:
    """Twice the workloads take twice the GPUs, in as many rows."""
    few = proof_of(posed.whole)
    twice = prove(
        posed.tables, pick(posed.whole, np.tile(np.arange(12), 2)), [1.0], replace(QUICK, groups=12)
    )
    assert twice.total == pytest.approx(2 * few.total, rel=0.02)
    assert twice.worth.shape == (24,)


def test_what_fits_no_gpu_is_bounded_by_its_parts(posed: Any, proof_of: Any) -> None:
    """Four times the rate of W12: more than one GPU, no more than eight equal parts."""
    whole = some(posed, [(11, 1.0, 4.0)])
    assert needs(posed.tables, whole)[0, 0] > posed.tables.units[0]
    eighths = int(needs(posed.tables, some(posed, [(11, 1.0, 0.5)]))[0, 0])
    assert eighths <= posed.tables.units[0]
    assert 1.5 < proof_of(whole).total <= 8.0 * eighths / int(posed.tables.units[0])


def test_a_second_kind_as_fast_and_twice_the_price_changes_little(
    v100: GpuType, v100_workloads: tuple[Workload, ...], posed: Any, proof_of: Any
) -> None:
    both = pose(v100_workloads, (v100, GpuType(v100.profile, 6.12)), 1.0)
    assert prove(both.tables, both.whole, [3.06, 6.12], QUICK).total == pytest.approx(
        3.06 * proof_of(posed.whole).total, rel=0.02
    )


def test_nothing_to_plan(posed: Any, proof_of: Any) -> None:
    assert proof_of(pick(posed.whole, np.zeros(0, dtype=np.int64))).total == 0.0


def test_a_workload_may_be_split_over_kinds(v100: GpuType) -> None:
    """The sum of least shares allows for a large part on one kind and a small one on another."""
    board = v100.profile.board.model_copy(update={"name": "other"})
    other = GpuType(v100.profile.model_copy(update={"board": board}), 3.06)
    rate = 1.02 * 400.0
    one = lower_bounds(pose([Workload("A", "vgg19", 30.0, rate)], (v100,), 1.0))
    both = lower_bounds(pose([Workload("A", "vgg19", 30.0, rate)], (v100, other), 1.0))
    assert 0 < both[0] <= one[0]
    assert both[1] == pytest.approx(3.06 * both[0])
