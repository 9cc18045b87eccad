"""Patterns: evaluated once, and what is said to hold holds."""

from __future__ import annotations

from typing import Any

import pytest

from igniterd.planner import patterns
from igniterd.planner.cuts import offer_cuts
from igniterd.planner.evaluate import LEVEL, evaluate
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.least_shares import ShareSolver
from igniterd.planner.patterns import PatternBook, shifted
from igniterd.planner.problem import pose
from igniterd.planner.repair import slo_ms
from igniterd.planner.workloads import Workload


def test_who_misses_gets_a_unit_from_who_has_time() -> None:
    """Of 20 units 8, 6 and 6: the first is above its SLO, the second needs half of its time."""
    assert shifted([8, 6, 6], [1.05, 0.5, 0.9], 20) == [9, 5, 6]


def test_who_misses_by_far_gets_two() -> None:
    assert shifted([8, 6], [1.5, 0.4], 14) == [10, 4]


def test_spare_units_are_given_first() -> None:
    assert shifted([8, 6], [1.05, 0.9], 20) == [9, 6]


def test_there_is_no_shift_where_nobody_can_give() -> None:
    assert shifted([8, 6], [1.05, 0.95], 14) is None


@pytest.fixture
def book(v100: GpuType, v100_workloads: tuple[Workload, ...]) -> PatternBook:
    problem = pose(list(v100_workloads), (v100,), 1.0)
    offer_cuts(problem, even=False)
    return PatternBook(ShareSolver(problem), LEVEL)


def test_a_pattern_is_evaluated_once(book: PatternBook, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(groups: Any, *, level: float) -> None:
        asked.append(len(groups))
        evaluate(groups, level=level)

    monkeypatch.setattr(patterns, "evaluate", counted)
    book.ask([(0, 0), (0, 0, 5)])
    before = sum(asked)
    book.ask([(0, 0), (0, 0, 5)])
    assert before >= 2
    assert sum(asked) == before


def test_what_holds_holds_when_it_is_evaluated_again(book: PatternBook) -> None:
    problem = book.solver.problem
    n = problem.parent.size
    pairs = [(0, i, j) for i in range(0, n, 7) for j in range(i, n, 11)]
    book.ask(pairs)
    held = [p for p in pairs if book.holds(p)]
    assert held
    assert len(held) < len(pairs), "some do not fit"
    for pattern in held:
        found = book.known[pattern]
        assert sum(p.share for p in found.placements) <= 1 + 1e-9
        evaluate([(problem.gpus[0], found.placements)], level=LEVEL)
        for item, p in zip(found.group.items, found.placements, strict=True):
            assert p.p99_ms <= slo_ms(problem, item) * 1.001


def test_a_pattern_far_above_the_gpu_does_not_hold(v100: GpuType) -> None:
    """What the tables never settle has no shares to be evaluated with."""
    problem = pose([Workload("V", "vgg19", 20, 300)], (v100,), 1.0)
    book = PatternBook(ShareSolver(problem), LEVEL)
    book.ask([(0, 0, 0, 0, 0)])
    assert not book.holds((0, 0, 0, 0, 0))
    assert book.failing() == [(0, 0, 0, 0, 0)]
