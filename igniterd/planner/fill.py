"""igniterd's search: which workloads share which GPU, in how few GPUs (or for how little money).

1. Every item takes the kind of GPU on which what it needs there, among others, costs least.
2. For each kind, :func:`igniterd.planner.kernels.fill.fill` packs the items.
3. With few workloads, a search over moves and swaps tries to do with one GPU less
   (:mod:`igniterd.planner.local_search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from igniterd.arrays import I64
from igniterd.planner.kernels import fill as filling
from igniterd.planner.kernels import shares as packing
from igniterd.planner.least_shares import Group, Pack, ShareSolver, sketched
from igniterd.planner.local_search import SMALL, drop_gpus
from igniterd.planner.problem import Problem, pick

_ASKED = 16
_MANY = 8
"""So many GPUs whose tenants no longer fit are filled anew, all of them together."""


def pack(problem: Problem, solver: ShareSolver, seed: int = 0) -> list[Pack]:
    """Which items share which GPU; ``seed`` is of the local search."""
    groups: list[Pack] = []
    kinds = choose_kinds(problem)
    for kind in range(len(problem.gpus)):
        which = np.flatnonzero(kinds == kind)
        if which.size:
            groups += [(kind, members) for members in fill_kind(problem, kind, which)]
    groups = separate_replicas(problem, solver, groups)
    if 2 <= problem.parent.size <= SMALL:
        groups = drop_gpus(problem, solver, groups, seed)
    return groups


def separate_replicas(problem: Problem, solver: ShareSolver, groups: list[Pack]) -> list[Pack]:
    """No two replicas of a workload on one GPU: they become one, or where that needs more than the
    GPU has, one of them moves."""
    groups = [(kind, list(members)) for kind, members in groups]
    for g in range(len(groups)):
        kind, members = groups[g]
        for item in [
            i for n, i in enumerate(members) if problem.parent[i] in problem.parent[members[:n]]
        ]:
            first = next(i for i in members if problem.parent[i] == problem.parent[item])
            rates = float(problem.items.rate[first]), float(problem.items.rate[item])
            members.remove(item)
            problem.set_item(first, rate=rates[0] + rates[1])
            if solver.fits(kind, members):
                problem.set_item(item, rate=0.0)
                continue
            problem.set_item(first, rate=rates[0])
            host = best_host(
                problem, solver, groups, item, [h for h in range(len(groups)) if h != g], {}
            )
            if host is None:
                groups.append((kind, [item]))
            else:
                groups[host][1].append(item)
    return problem.without_idle(groups)


def choose_kinds(problem: Problem) -> I64:
    """The kind of GPU for each item: least money for what it needs among average neighbours;
    without prices, least share."""
    t, n = problem.tables, problem.items.model.size
    cost = np.full((len(problem.gpus), n), np.inf)
    for kind, gpu in enumerate(problem.gpus):
        crowded = np.zeros(n, dtype=np.int64)
        packing.crowded_needs(t, problem.items, kind, problem.alone[kind], crowded)
        each = np.minimum(crowded, t.units[kind]) / t.units[kind] * (gpu.price_per_hour or 1.0)
        cost[kind] = np.where(problem.alone[kind] <= t.units[kind], each, np.inf)
    return np.asarray(np.argmin(cost, axis=0), dtype=np.int64)


def fill_kind(problem: Problem, kind: int, which: I64) -> list[list[int]]:
    """GPUs of one kind filled with these items; see :mod:`igniterd.planner.kernels.fill`."""
    t, items = problem.tables, pick(problem.items, which)
    if (problem.alone[kind, which] > t.units[kind]).any():
        raise ValueError("an item that fits no GPU alone has to be split before it is packed")
    n = which.size
    sketch = sketched(t, items, kind)
    order = np.argsort(-sketch.alone, kind="stable").astype(np.int64)
    memory, room = problem.memory(kind)[which], problem.room(kind)
    gpu_of = np.zeros(n, np.int64)
    gpus = int(filling.fill(t, items, kind, sketch, order, memory, room, gpu_of))
    members: list[list[int]] = [[] for _ in range(gpus)]
    for item, gpu in zip(which.tolist(), gpu_of.tolist(), strict=True):
        members[gpu].append(item)
    return members


def fill_anew(
    problem: Problem, solver: ShareSolver, groups: list[Group], missing: Sequence[int]
) -> tuple[range, list[int]]:
    """Fill the GPUs among these whose tenants no longer fit anew, all together, if they are many:
    the GPUs this takes more, and who has no place.

    One tenant after the other moved to a GPU with room for it would fill hardly any.
    """
    unfit = [g for g in missing if not solver.fits(groups[g].kind, groups[g].items)]
    before = len(groups)
    if len(unfit) < _MANY:
        return range(before, before), []
    packs, left = _refill(problem, [(groups[g].kind, groups[g].items) for g in unfit])
    new = [solver.group(kind, items) for kind, items in packs]
    new += [Group(groups[g].kind, []) for g in unfit[len(new) :]]
    for g, group in zip(unfit, new, strict=False):
        groups[g] = group
    groups += new[len(unfit) :]
    return range(before, len(groups)), left


def _refill(problem: Problem, packs: Sequence[Pack]) -> tuple[list[Pack], list[int]]:
    """The items of these GPUs on new ones, and those left without: replicas that would be beside
    another of their workload, and what is too large for a GPU."""
    new: list[Pack] = []
    left: list[int] = []
    for kind in range(len(problem.gpus)):
        items = [i for of, members in packs if of == kind for i in members]
        fits = [i for i in items if problem.alone[kind, i] <= problem.tables.units[kind]]
        left += [i for i in items if problem.alone[kind, i] > problem.tables.units[kind]]
        filled = fill_kind(problem, kind, np.array(fits, dtype=np.int64)) if fits else []
        for members in filled:
            first = {int(problem.parent[i]): i for i in reversed(members)}
            new.append((kind, sorted(first.values(), key=members.index)))
            left += [i for i in members if first[int(problem.parent[i])] != i]
    return new, left


def empty_worst(
    problem: Problem,
    solver: ShareSolver,
    groups: list[Pack],
    tries: int = 12,
    most_tenants: int = 64,
    once: bool = False,
) -> list[Pack]:
    """Empty the GPUs with least on them into the others, while that succeeds; give up after
    ``tries`` that cannot be emptied.

    Only GPUs with at most ``most_tenants`` are emptied; ``once``: no more than one of them.
    """
    t = problem.tables

    def weight(group: Pack) -> float:
        kind, members = group
        price = problem.gpus[kind].price_per_hour or 1.0
        return float(problem.alone[kind, members].sum()) / int(t.units[kind]) / price

    small = [g for g in range(len(groups)) if len(groups[g][1]) <= most_tenants]
    queue = sorted(small, key=lambda g: weight(groups[g]))[: tries if len(groups) <= 100 else 3]
    gone: set[int] = set()
    for g in queue:
        hosts = [h for h in range(len(groups)) if h != g and h not in gone]
        new = relocate(problem, solver, groups, groups[g][1], hosts)
        if new is not None:
            gone.add(g)
            for host, members in new.items():
                groups[host] = (groups[host][0], members)
            if once:
                break
    return [group for g, group in enumerate(groups) if g not in gone]


def relocate(
    problem: Problem, solver: ShareSolver, groups: list[Pack], items: list[int], hosts: list[int]
) -> dict[int, list[int]] | None:
    """New members of the hosts that take all of ``items``, or ``None``."""
    new: dict[int, list[int]] = {}
    for item in sorted(items, key=lambda i: -int(problem.alone[:, i].min())):
        found = best_host(problem, solver, groups, item, hosts, new)
        if found is None:
            return None
        new[found] = [*new.get(found, groups[found][1]), item]
    return new


def best_host(
    problem: Problem,
    solver: ShareSolver,
    groups: list[Pack],
    item: int,
    hosts: Sequence[int],
    new: Mapping[int, list[int]],
) -> int | None:
    """The host where the sum of shares grows least with ``item``, of the ``_ASKED`` with most room
    by what their tenants need alone.

    ``new``: members of hosts that have changed since ``groups``.
    """
    roomy = []
    for h in hosts:
        kind, members = groups[h][0], new.get(h, groups[h][1])
        left = (
            int(problem.tables.units[kind])
            - sum(solver.alone(kind, i) for i in members)
            - solver.alone(kind, item)
        )
        if left >= 0:
            roomy.append((-left, h))
    best, growth = None, np.inf
    for _, h in sorted(roomy)[:_ASKED]:
        kind, members = groups[h][0], new.get(h, groups[h][1])
        if solver.fits(kind, [*members, item]):
            before = solver.total(kind, members) if members else 0
            more = (solver.total(kind, [*members, item]) - before) / int(problem.tables.units[kind])
            if more < growth:
                best, growth = h, more
    return best
