"""igniterd's strategy: P99 within the SLO for every workload under its arrival process, at the upper bound of the service times.

The search (:mod:`igniterd.planner.search`) runs on tables. What it finds is checked with the performance model and the queue
themselves, and what does not hold is mended: its goal is lowered by as much as it missed, its GPU is settled again, and who no
longer fits moves. So every placement of the answer has been evaluated exactly; see :mod:`igniterd.planner.exact`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.model.kernels import packing
from igniterd.planner.exact import LEVEL, Placement, evaluate
from igniterd.planner.gpus import GpuType
from igniterd.planner.problem import Problem, pose
from igniterd.planner.records import PlannedGpu, ProvisionPlan, Seat
from igniterd.planner.search import best_host, pack
from igniterd.planner.settle import Group, Pack, Settler
from igniterd.planner.workloads import Infeasible, Workload

_MENDS = 8
_TOLERANCE = 1.0 + 1e-9


@dataclass(slots=True)
class Placed:
    """The answer in the planner's own terms: GPUs, and on each the items and their placements, in the same order."""

    problem: Problem
    groups: list[Group]
    placements: list[list[Placement]]
    unplaced: list[int]  # items the search has no GPU left for


def plan_own(
    workloads: Sequence[Workload], gpus: tuple[GpuType, ...], burstiness: float, *, level: float = LEVEL, seed: int = 0
) -> ProvisionPlan:
    """The plan of igniterd's strategy."""
    problem = pose(workloads, gpus, burstiness, level=level)
    settler = Settler(problem)
    packs = pack(problem, settler, seed)
    placed = mend(problem, settler, packs, level)
    return to_plan(placed, burstiness)


def mend(problem: Problem, settler: Settler, packs: Sequence[Pack], level: float) -> Placed:
    """Check every GPU exactly and mend what misses, until nothing does."""
    groups = [settler.group(kind, items) for kind, items in packs]
    placements = [place(problem, group) for group in groups]
    changed = list(range(len(groups)))
    for _ in range(_MENDS):
        evaluate([(problem.gpus[groups[g].kind], placements[g]) for g in changed], level=level, rounds=2)
        missed = [g for g in changed if _lower_goals(problem, groups[g], placements[g])]
        if not missed:
            break
        settler.forget()
        changed = _resettle(problem, settler, groups, missed)
        placements += [[] for _ in range(len(groups) - len(placements))]
        for g in changed:
            placements[g] = place(problem, groups[g])
    kept = [g for g, group in enumerate(groups) if group.items]
    return _within_stock(Placed(problem, [groups[g] for g in kept], [placements[g] for g in kept], []))


def place(problem: Problem, group: Group) -> list[Placement]:
    """Placements of a GPU: what the search found, and the units left over given, one by one, to whoever is nearest to its SLO."""
    units = _spread(problem, group)
    t, items, top = problem.tables, problem.items, int(problem.tables.units[group.kind])
    placements = []
    for k, item in enumerate(group.items):
        model = problem.models[int(items.model[item])]
        batch = min(int(t.caps[group.option[k]]), int(t.most_batch[group.kind, items.model[item]]))
        first = float(t.first_ms[group.kind, items.model[item], units[k]]) * group.stretch[k]
        delay = round(float(t.delay[group.option[k]]) * first, 1)
        rate, c2 = 1e3 * float(items.rate[item]), problem.burstiness_of(item)
        placements.append(Placement(model, units[k] / top, batch, delay, rate, c2, group.busy[k], group.batch[k]))
    return placements


def _spread(problem: Problem, group: Group) -> list[int]:
    """Units of each tenant with the GPU's spare ones given away: half of them, so that a new tenant or a surge still finds some."""
    units = list(group.units)
    spare = (int(problem.tables.units[group.kind]) - sum(units) + 1) // 2
    for _ in range(spare):
        strain = [table_p99(problem, group, k, units[k]) / float(problem.items.goal_ms[i]) for k, i in enumerate(group.items)]
        units[int(np.argmax(strain))] += 1
    return units


def _lower_goals(problem: Problem, group: Group, placements: Sequence[Placement]) -> bool:
    """Lower the goal of every tenant that misses its SLO, so far that the tables find what was predicted exactly; whether one missed."""
    missed = False
    top = int(problem.tables.units[group.kind])
    for k, (item, placement) in enumerate(zip(group.items, placements, strict=True)):
        slo = problem.workloads[int(problem.parent[item])].slo_p99_ms
        if placement.p99_ms <= slo * _TOLERANCE:
            continue
        missed = True
        ratio = slo / placement.p99_ms if math.isfinite(placement.p99_ms) else 0.9
        goal = float(problem.items.goal_ms[item])
        by_table = table_p99(problem, group, k, round(placement.share * top))
        problem.lower_goal(item, max(0.8, min(1.0, by_table / goal) * ratio * 0.999))
    return missed


def table_p99(problem: Problem, group: Group, k: int, units: int) -> float:
    """P99 (ms) of tenant ``k`` of a group on ``units``, by the search's tables."""
    i, t = problem.items, problem.tables
    item = group.items[k]
    queue, model, rate = int(i.queue[item]), int(i.model[item]), float(i.rate[item])
    return float(packing.p99_ms(t, group.kind, queue, model, units, group.option[k], rate, group.stretch[k]))


def _resettle(problem: Problem, settler: Settler, groups: list[Group], missed: Sequence[int]) -> list[int]:
    """Settle these GPUs again; tenants that no longer fit move to others or to new ones. The GPUs that changed."""
    changed = set(missed)
    homeless: list[int] = []
    for g in missed:
        kind, items = groups[g].kind, list(groups[g].items)
        while len(items) > 1 and not settler.fits(kind, items):
            leaver = _leaver(problem, settler, kind, items)
            items.remove(leaver)
            homeless.append(leaver)
        if not settler.fits(kind, items):
            homeless.append(problem.split(items[0]))  # not even alone any more: two replicas
            settler.forget()
        groups[g] = settler.group(kind, items)
    packs = [(group.kind, group.items) for group in groups]
    for item in sorted(homeless, key=lambda i: -int(problem.alone[:, i].min())):
        host = best_host(problem, settler, packs, item, _roomy(problem, groups, item), {})
        if host is None:
            kind = int(np.argmin([_cost(problem, k, item) for k in range(len(problem.gpus))]))
            groups.append(settler.group(kind, [item]))
            packs.append((kind, [item]))
            host = len(groups) - 1
        else:
            groups[host] = settler.group(groups[host].kind, [*groups[host].items, item])
            packs[host] = (groups[host].kind, groups[host].items)
        changed.add(host)
    return sorted(changed)


def _roomy(problem: Problem, groups: Sequence[Group], item: int) -> list[int]:
    """GPUs whose spare units are enough for the item alone, fullest first, a bounded number of them."""
    spare = [(int(problem.tables.units[g.kind]) - g.total, i) for i, g in enumerate(groups) if g.items]
    return [i for free, i in sorted(spare) if free >= problem.alone[groups[i].kind, item]][:64]


def _leaver(problem: Problem, settler: Settler, kind: int, items: Sequence[int]) -> int:
    """The tenant to go: the smallest whose going is enough, else the largest."""
    sizes = sorted(items, key=lambda i: int(problem.alone[kind, i]))
    for item in sizes:
        if settler.fits(kind, [i for i in items if i != item]):
            return item
    return sizes[-1]


def _cost(problem: Problem, kind: int, item: int) -> float:
    if problem.alone[kind, item] > problem.tables.units[kind]:
        return math.inf
    return float(problem.alone[kind, item]) / float(problem.tables.units[kind]) * (problem.gpus[kind].price_per_hour or 1.0)


def _within_stock(placed: Placed) -> Placed:
    """Take back the least filled GPUs of a kind beyond the number there are."""
    problem = placed.problem
    for kind, gpu in enumerate(problem.gpus):
        mine = [g for g, group in enumerate(placed.groups) if group.kind == kind]
        if gpu.most is None or len(mine) <= gpu.most:
            continue
        over = set(sorted(mine, key=lambda g: -sum(float(problem.alone[kind, i]) for i in placed.groups[g].items))[gpu.most :])
        placed.unplaced += [i for g in over for i in placed.groups[g].items]
        keep = [g for g in range(len(placed.groups)) if g not in over]
        placed = Placed(problem, [placed.groups[g] for g in keep], [placed.placements[g] for g in keep], placed.unplaced)
    return placed


def lower_bounds(problem: Problem) -> tuple[float, float | None]:
    """(GPUs, cost an hour) that no plan can do without: least shares with no neighbours at all, added up, on the best kind for each."""
    if not problem.workloads:
        return 0.0, 0.0
    fractions = problem.bound / problem.tables.units[:, None]
    gpus = float(fractions.min(axis=0).sum())
    prices = [gpu.price_per_hour for gpu in problem.gpus]
    if any(price is None for price in prices):
        return gpus, None
    return gpus, float((fractions * np.array(prices, dtype=np.float64)[:, None]).min(axis=0).sum())


def to_plan(placed: Placed, burstiness: float) -> ProvisionPlan:
    """The answer as records."""
    problem = placed.problem
    gpus = []
    for group, placements in zip(placed.groups, placed.placements, strict=True):
        kind = problem.gpus[group.kind]
        seats = tuple(_seat(problem, item, p) for item, p in zip(group.items, placements, strict=True))
        gpus.append(PlannedGpu(kind.name, seats, kind.price_per_hour))
    lost = sorted({int(problem.parent[i]) for i in placed.unplaced})
    out_of_stock = [Infeasible(problem.workloads[w].name, "needs a GPU more than there are of any kind that could take it") for w in lost]
    bound, cost = lower_bounds(problem)
    return ProvisionPlan("igniterd", burstiness, tuple(gpus), (*problem.rejected, *out_of_stock), bound, cost)


def _seat(problem: Problem, item: int, p: Placement) -> Seat:
    workload = problem.workloads[int(problem.parent[item])]
    return Seat(
        workload.name,
        p.model,
        workload.slo_p99_ms,
        p.rate_per_s,
        round(p.share, 9),
        p.max_batch,
        round(1000 * p.delay_ms),
        p.mean_ms,
        p.p99_ms,
        p.busy,
    )
