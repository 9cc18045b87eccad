"""One GPU less for a few workloads: moves and swaps that lower what overflows, and splitting what will not go in one piece."""

from __future__ import annotations

import math

import numpy as np

from igniterd.planner.problem import Problem
from igniterd.planner.settle import Pack, Settler

SMALL = 60
"""Up to so many items the search is worth its time."""
_STEPS = 1200
_HEAT = 1.5
"""Units of overflow a step may add at the start, on average; falls to nothing at the end (simulated annealing)."""
_SPLITS = 3
"""Items split in two, largest first, when the others will not fit otherwise."""


def squeeze(problem: Problem, settler: Settler, groups: list[Pack], seed: int) -> list[Pack]:
    """Do without the GPU that would save most, as often as that succeeds; never below the lower bound."""
    rng = np.random.default_rng(seed)
    while len(groups) > max(1, least_gpus(problem)):
        spare = max(range(len(groups)), key=lambda g: (_price(problem, groups[g]), -_alone(problem, groups[g])))
        fewer = _without(problem, settler, groups, spare, rng) or _with_splits(problem, settler, groups, spare, rng)
        if fewer is None:
            return groups
        groups = fewer
    return groups


def least_gpus(problem: Problem) -> int:
    """GPUs that no plan can do without: the least fractions of a GPU, over the kinds, added up."""
    if not problem.workloads:
        return 0
    return math.ceil(float((problem.bound / problem.tables.units[:, None]).min(axis=0).sum()) - 1e-9)


def _price(problem: Problem, group: Pack) -> float:
    return problem.gpus[group[0]].price_per_hour or 1.0


def _alone(problem: Problem, group: Pack) -> int:
    return int(problem.alone[group[0], group[1]].sum())


def _with_splits(problem: Problem, settler: Settler, groups: list[Pack], spare: int, rng: np.random.Generator) -> list[Pack] | None:
    """The same with a large item split in halves; the problem keeps the split only if it helps."""
    sizes = problem.alone.min(axis=0)
    for item in np.argsort(-sizes, kind="stable")[:_SPLITS].tolist():
        before = problem.snapshot()
        half = problem.split(item)
        settler.forget()
        trial = [(kind, [*members, half] if item in members else members) for kind, members in groups]
        fewer = _without(problem, settler, trial, spare, rng)
        if fewer is not None:
            return fewer
        problem.restore(before)
        settler.forget()
    return None


def _without(problem: Problem, settler: Settler, groups: list[Pack], spare: int, rng: np.random.Generator) -> list[Pack] | None:
    """The items of all GPUs on all but one of them, or ``None`` when the search does not find how."""
    kinds = [kind for g, (kind, _) in enumerate(groups) if g != spare]
    members = [list(items) for g, (_, items) in enumerate(groups) if g != spare]
    for item in sorted(groups[spare][1], key=lambda i: -int(problem.alone[:, i].min())):
        over = [_overflow(problem, settler, kind, [*items, item]) for kind, items in zip(kinds, members, strict=True)]
        members[int(np.argmin(over))].append(item)
    cost = [_overflow(problem, settler, kind, items) for kind, items in zip(kinds, members, strict=True)]
    for step in range(_STEPS):
        if sum(cost) <= 0:
            return [(kind, items) for kind, items in zip(kinds, members, strict=True) if items]
        _step(problem, settler, kinds, members, cost, _HEAT * (1 - step / _STEPS), rng)
    return None


def _step(
    problem: Problem, settler: Settler, kinds: list[int], members: list[list[int]], cost: list[float], heat: float, rng: np.random.Generator
) -> None:
    """Move an item off an overflowing GPU, or swap it; kept when overflow falls, or by chance while it is hot."""
    over = [g for g, value in enumerate(cost) if value > 0]
    g = over[int(rng.integers(len(over)))]
    h = int(rng.integers(len(kinds) - 1)) if len(kinds) > 1 else 0
    h += h >= g
    if h >= len(kinds) or not members[g]:
        return
    mine = members[g][int(rng.integers(len(members[g])))]
    place = int(rng.integers(len(members[h]) + 1))
    theirs = members[h][place : place + 1]  # nothing: a move
    new_g = [i for i in members[g] if i != mine] + theirs
    new_h = [i for i in members[h] if i not in theirs] + [mine]
    cost_g, cost_h = _overflow(problem, settler, kinds[g], new_g), _overflow(problem, settler, kinds[h], new_h)
    change = cost_g + cost_h - cost[g] - cost[h]
    if change <= 0 or (heat > 0 and rng.random() < math.exp(-change / heat)):
        members[g], members[h], cost[g], cost[h] = new_g, new_h, cost_g, cost_h


def _overflow(problem: Problem, settler: Settler, kind: int, items: list[int]) -> float:
    """Units above the GPU's; memory above the GPU's counts as a whole GPU of units."""
    if not items:
        return 0.0
    units = int(problem.tables.units[kind])
    return max(0, settler.total(kind, items) - units) + (0 if problem.fits_memory(kind, items) else units)
