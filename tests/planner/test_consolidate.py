"""What repairs scattered is gathered again, and only where every P99 holds."""

from __future__ import annotations

from typing import Any

import pytest

from igniterd.planner.consolidate import consolidate
from igniterd.planner.least_shares import ShareSolver
from igniterd.planner.problem import pose
from igniterd.planner.repair import Placed, calibrate, check, repair


@pytest.fixture
def scattered(v100, v100_workloads) -> tuple[Placed, ShareSolver]:
    """Every workload on a GPU of its own."""
    problem = pose(v100_workloads, (v100,), 0.0)
    solver = ShareSolver(problem)
    calibrate(problem, solver, 0.95)
    return repair(
        check(problem, solver, [(0, [item]) for item in range(problem.parent.size)], 0.95),
        solver,
        0.95,
    ), solver


def test_tenants_move_together_and_hold(scattered: Any) -> None:
    placed, solver = scattered
    before = [list(group.items) for group in placed.groups]
    fewer = consolidate(placed, solver, 0.95)
    assert len(fewer.groups) < len(placed.groups)
    assert sorted(item for group in fewer.groups for item in group.items) == sorted(
        item for items in before for item in items
    )
    assert fewer.missing == []
    assert [list(group.items) for group in placed.groups] == before


def test_what_misses_is_left_alone(scattered: Any) -> None:
    placed, solver = scattered
    placed.placements[0][0].p99_ms = 1e9
    assert consolidate(placed, solver, 0.95) is placed


def test_no_try_no_change(scattered: Any) -> None:
    placed, solver = scattered
    assert len(consolidate(placed, solver, 0.95, tries=0).groups) == len(placed.groups)
