"""What misses is mended: nobody is lost, nobody misses, and GPUs are filled rather than opened."""

from __future__ import annotations

import numpy as np
import pytest

from igniterd.planner.evaluate import LEVEL
from igniterd.planner.fill import fill_anew, pack
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.least_shares import Group, ShareSolver
from igniterd.planner.problem import Problem, pose
from igniterd.planner.repair import Moves, check, move_unfit, repair
from igniterd.planner.workloads import Workload

MODELS = ("alexnet", "resnet50", "vgg19", "ssd")


@pytest.fixture
def solver(v100: GpuType) -> ShareSolver:
    rng = np.random.default_rng(5)
    workloads = [
        Workload(f"W{n}", MODELS[n % 4], float(rng.uniform(40, 80)), float(rng.uniform(40, 90)))
        for n in range(80)
    ]
    return ShareSolver(pose(workloads, (v100,), 1.0))


def crowded(solver: ShareSolver, size: int) -> list[Group]:
    """All items, so many to a GPU: more than a GPU holds."""
    n = solver.problem.parent.size
    groups = [solver.group(0, list(range(k, min(k + size, n)))) for k in range(0, n, size)]
    assert sum(not solver.fits(0, group.items) for group in groups) >= 8
    return groups


def everybody(problem: Problem, groups: list[Group]) -> bool:
    return sorted(i for group in groups for i in group.items) == list(range(problem.parent.size))


def test_gpus_that_no_longer_fit_are_filled_anew(solver: ShareSolver) -> None:
    groups = crowded(solver, 8)
    before = len(groups)
    more, left = fill_anew(solver.problem, solver, groups, range(before))
    assert left == []
    assert everybody(solver.problem, groups)
    assert all(solver.fits(0, group.items) for group in groups)
    assert list(more) == list(range(before, len(groups)))


def test_gpus_that_are_not_needed_any_more_stay_empty(solver: ShareSolver) -> None:
    """Two replicas of a small workload on each, which never fit: they share few GPUs instead."""
    problem = solver.problem
    small = [i for i in range(problem.parent.size) if solver.alone(0, i) <= 8][:12]
    groups = [Group(0, [i, problem.split(i)]) for i in small]
    before = sorted(i for group in groups for i in group.items)
    more, left = fill_anew(problem, solver, groups, range(len(groups)))
    assert len(more) == 0
    assert any(not group.items for group in groups)
    assert sorted([*left, *(i for group in groups for i in group.items)]) == before
    assert all(solver.fits(0, group.items) for group in groups if group.items)


def test_few_are_left_to_single_moves(solver: ShareSolver) -> None:
    groups = crowded(solver, 8)[:7]
    before = [list(group.items) for group in groups]
    more, left = fill_anew(solver.problem, solver, groups, range(7))
    assert (list(more), left) == ([], [])
    assert [group.items for group in groups] == before


def test_where_moves_are_counted_nothing_is_filled_anew(solver: ShareSolver) -> None:
    """Most tenants stay where they are: only those go that have to."""
    groups = crowded(solver, 8)
    home = {i: g for g, group in enumerate(groups) for i in group.items}
    move_unfit(solver.problem, solver, groups, range(len(groups)), Moves(1000), {})
    stayed = sum(home[i] == g for g, group in enumerate(groups) for i in group.items)
    assert everybody(solver.problem, groups)
    assert stayed >= 0.25 * len(home)


@pytest.mark.parametrize("size", [2, 8])
def test_nobody_misses_after_repairs(solver: ShareSolver, size: int) -> None:
    """From GPUs that were never looked at; filling from scratch needs about as many."""
    problem = solver.problem
    n = problem.parent.size
    packs = [(0, list(range(k, min(k + size, n)))) for k in range(0, n, size)]
    mended = repair(check(problem, solver, packs, LEVEL), solver, LEVEL)
    assert mended.missing == []
    assert mended.unplaced == {}
    assert everybody(problem, mended.groups)
    if size == 8:
        assert len(mended.groups) <= 1.15 * len(pack(problem, solver))
