"""Who gets the units of share of a GPU that nobody needs."""

from __future__ import annotations

from igniterd.planner.least_shares import Group
from igniterd.planner.problem import Problem
from igniterd.queueing.kernels import lookup

_WORTH = 0.1
"""What a larger share must bring: the least fall of the P99 for the growth of the share, both as
logarithms. What waits for the GPU has 0.25 and more, what waits for its host some 0.02."""


def give(problem: Problem, group: Group, spare: int) -> list[int]:
    """Units of each tenant of a GPU once up to ``spare`` more are given, one by one, to whoever is
    nearest to its SLO of those whom more speeds up.

    A tenant that waits for its host is no faster with more: what nobody gains by stays spare.
    """
    units, growing = list(group.units), list(range(len(group.units)))
    strain = [_strain(problem, group, k, units[k]) for k in growing]
    while growing and spare > 0:
        k = max(growing, key=strain.__getitem__)
        if not _gains(problem, group, k, units[k]):
            growing.remove(k)
            continue
        units[k] += 1
        spare -= 1
        strain[k] = _strain(problem, group, k, units[k])
    return units


def table_p99(problem: Problem, group: Group, k: int, units: int) -> float:
    """P99 (ms) of tenant ``k`` of a group on ``units``, by the search's tables."""
    i, t = problem.items, problem.tables
    item = group.items[k]
    queue, model, rate = int(i.queue[item]), int(i.model[item]), float(i.rate[item])
    return float(
        lookup.p99_ms(t, group.kind, queue, model, units, group.option[k], rate, group.slowdown[k])
    )


def _strain(problem: Problem, group: Group, k: int, units: int) -> float:
    return table_p99(problem, group, k, units) / float(problem.items.goal_ms[group.items[k]])


def _gains(problem: Problem, group: Group, k: int, units: int) -> bool:
    """Whether some larger share is worth it. One unit more need not be: the bound of the service
    times has ripples, and dips where they were measured."""
    now, top = table_p99(problem, group, k, units), int(problem.tables.units[group.kind])
    return any(
        table_p99(problem, group, k, more) < now * (units / more) ** _WORTH
        for more in range(units + 1, top + 1)
    )
