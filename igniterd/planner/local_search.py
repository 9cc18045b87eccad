"""One GPU less for a few workloads: moves, swaps and shifts of rate that lower what overflows
(simulated annealing)."""

from __future__ import annotations

import math

import numpy as np

from igniterd.planner.least_shares import Pack, ShareSolver
from igniterd.planner.problem import Problem

SMALL = 60
"""Up to so many items the search is worth its time."""
_STEPS = 4000
_HEAT = 1.5
"""Units of overflow a step may add at the start, on average; falls to nothing at the end (simulated
annealing)."""
_SHIFT = 0.2
"""Chance that a step shifts rate between replicas of a workload, where there are any; and the part
of the rate it shifts."""


def drop_gpus(problem: Problem, solver: ShareSolver, groups: list[Pack], seed: int) -> list[Pack]:
    """Do without the GPU that would save most, as often as that succeeds; never below the lower
    bound."""
    rng = np.random.default_rng(seed)
    while len(groups) > max(1, least_gpus(problem)):
        spare = max(
            range(len(groups)),
            key=lambda g: (_price(problem, groups[g]), -_alone(problem, groups[g])),
        )
        fewer = _Annealing(problem, solver, groups, spare, rng).run()
        if fewer is None:
            return groups
        groups = fewer
    return groups


def least_gpus(problem: Problem) -> int:
    """GPUs that no plan can do without: the least fractions of a GPU, over the kinds, added up."""
    if not problem.workloads:
        return 0
    return math.ceil(
        float((problem.bound / problem.tables.units[:, None]).min(axis=0).sum()) - 1e-9
    )


def _price(problem: Problem, group: Pack) -> float:
    return problem.gpus[group[0]].price_per_hour or 1.0


def _alone(problem: Problem, group: Pack) -> int:
    return int(problem.alone[group[0], group[1]].sum())


class _Annealing:
    """All items on all GPUs but one, with as little overflow as moves, swaps and shifts of rate can
    reach."""

    def __init__(
        self,
        problem: Problem,
        solver: ShareSolver,
        groups: list[Pack],
        spare: int,
        rng: np.random.Generator,
    ) -> None:
        self.problem, self.solver, self.rng = problem, solver, rng
        self.kinds = [kind for g, (kind, _) in enumerate(groups) if g != spare]
        self.members = [list(items) for g, (_, items) in enumerate(groups) if g != spare]
        for item in sorted(groups[spare][1], key=lambda i: -int(problem.alone[:, i].min())):
            over = [self.overflow(g, [*items, item]) for g, items in enumerate(self.members)]
            self.members[int(np.argmin(over))].append(item)
        self.cost = [self.overflow(g, items) for g, items in enumerate(self.members)]
        self.replicated = problem.shifts and np.unique(problem.parent).size < problem.parent.size

    def run(self) -> list[Pack] | None:
        """The GPUs once nothing overflows; ``None``, and the problem as it was, when that is not
        reached."""
        before = self.problem.snapshot()
        for step in range(_STEPS):
            over = [g for g, value in enumerate(self.cost) if value > 0]
            if not over:
                return [
                    (kind, items)
                    for kind, items in zip(self.kinds, self.members, strict=True)
                    if items
                ]
            g = over[int(self.rng.integers(len(over)))]
            heat = _HEAT * (1 - step / _STEPS)
            if self.replicated and self.rng.random() < _SHIFT:
                self._shift(g, heat)
            elif len(self.kinds) > 1:
                self._exchange(g, heat)
        self.problem.restore(before)
        return None

    def overflow(self, g: int, items: list[int]) -> float:
        """Units above the GPU's; memory above the GPU's, or two replicas of one workload, count as
        a whole GPU of units."""
        if not items:
            return 0.0
        units = int(self.problem.tables.units[self.kinds[g]])
        over = max(0, self.solver.total(self.kinds[g], items) - units)
        twice = len({int(self.problem.parent[i]) for i in items}) < len(items)
        return over + (units if twice or not self.problem.fits_memory(self.kinds[g], items) else 0)

    def _accept(self, change: float, heat: float) -> bool:
        return change <= 0 or (heat > 0 and self.rng.random() < math.exp(-change / heat))

    def _exchange(self, g: int, heat: float) -> None:
        """Move an item of ``g`` to another GPU, or swap it with one there."""
        h = int(self.rng.integers(len(self.kinds) - 1))
        h += h >= g
        mine = self.members[g][int(self.rng.integers(len(self.members[g])))]
        place = int(self.rng.integers(len(self.members[h]) + 1))
        theirs = self.members[h][place : place + 1]  # nothing: a move
        new_g = [i for i in self.members[g] if i != mine] + theirs
        new_h = [i for i in self.members[h] if i not in theirs] + [mine]
        cost_g, cost_h = self.overflow(g, new_g), self.overflow(h, new_h)
        if self._accept(cost_g + cost_h - self.cost[g] - self.cost[h], heat):
            self.members[g], self.members[h], self.cost[g], self.cost[h] = (
                new_g,
                new_h,
                cost_g,
                cost_h,
            )

    def _shift(self, g: int, heat: float) -> None:
        """Shift a part of the rate of an item of ``g`` to another replica of its workload."""
        mine = self.members[g][int(self.rng.integers(len(self.members[g])))]
        parent = self.problem.parent
        others = [i for i in np.flatnonzero(parent == parent[mine]).tolist() if i != mine]
        if not others:
            return
        other = others[int(self.rng.integers(len(others)))]
        h = next(h for h, items in enumerate(self.members) if other in items)
        old = float(self.problem.items.rate[mine]), float(self.problem.items.rate[other])
        part = _SHIFT * old[0]
        self._rates(mine, other, old[0] - part, old[1] + part)
        changed = sorted({g, h})
        cost = [self.overflow(k, self.members[k]) for k in changed]
        if self._accept(sum(cost) - sum(self.cost[k] for k in changed), heat):
            for k, value in zip(changed, cost, strict=True):
                self.cost[k] = value
        else:
            self._rates(mine, other, *old)

    def _rates(self, mine: int, other: int, first: float, second: float) -> None:
        self.problem.set_item(mine, rate=first)
        self.problem.set_item(other, rate=second)
