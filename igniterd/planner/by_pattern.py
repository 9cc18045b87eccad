"""The plan of workloads of which many are alike: types with counts, cut and put together by a
linear program over patterns that were each evaluated exactly."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from igniterd.planner.alike import WorkloadType, alike
from igniterd.planner.assemble import FilledGpu, assemble
from igniterd.planner.column_generation import best_mix
from igniterd.planner.cuts import Offer, offer_cuts
from igniterd.planner.evaluate import LEVEL, Placement, evaluate, tenant_of
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.least_shares import ShareSolver
from igniterd.planner.lower_bound import least
from igniterd.planner.pattern_program import PatternProgram
from igniterd.planner.patterns import PatternBook
from igniterd.planner.plan import PlannedGpu, ProvisionPlan
from igniterd.planner.problem import OUT_OF_STOCK, Problem, pose
from igniterd.planner.progress import report
from igniterd.planner.repair import calibrate, holds
from igniterd.planner.workloads import Infeasible, Workload


def plan_by_pattern(
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    *,
    level: float = LEVEL,
    even: bool = False,
    types: list[WorkloadType] | None = None,
) -> ProvisionPlan | None:
    """The plan, or ``None`` where patterns give none (whoever asks packs instead). ``types``: of
    the workloads, where they are known already."""
    like = alike(workloads) if types is None else types
    with _uncollected():
        try:
            found = _plan(workloads, like, gpus, arrival_scv, level, even)
            if found is None:  # the hardest of the likes may be too hard
                like = alike(workloads, 0.0)
                found = _plan(workloads, like, gpus, arrival_scv, level, even)
            return found
        except ArithmeticError as error:  # the solver gave up, or reached its deadline
            report(f"{error}; packing instead")
    return None


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: it would look at every record of a large plan again and
    again, and records form no cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _plan(
    workloads: Sequence[Workload],
    types: list[WorkloadType],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    level: float,
    even: bool,
) -> ProvisionPlan | None:
    named = {one.workload.name: one for one in types}
    problem = pose([one.workload for one in types], gpus, arrival_scv, level=level)
    if any(not _equal(workloads, named[entry.workload]) for entry in problem.rejected):
        return None  # some of them might be possible
    rejected = [
        replace(entry, workload=workloads[n].name)
        for entry in problem.rejected
        for n in named[entry.workload].members
    ]
    if not problem.workloads:
        return ProvisionPlan("igniterd", arrival_scv, (), tuple(rejected), 0.0, 0.0, 0.0)
    types = [named[w.name] for w in problem.workloads]
    offer = offer_cuts(problem, even)
    solver = ShareSolver(problem)
    calibrate(problem, solver, level, split=False, everything=True)
    prices = [1.0 if gpu.price_per_hour is None else gpu.price_per_hour for gpu in gpus]
    most = [float("inf") if gpu.most is None else float(gpu.most) for gpu in gpus]
    program = PatternProgram(offer, [one.count for one in types], prices, most)
    book = PatternBook(solver, level)
    mix = best_mix(problem, program, book)
    if mix is None:
        return None
    filled, left_out = assemble(mix, offer, types)
    used = Counter(gpu.pattern[0] for gpu in filled)
    if any(used[kind] > there for kind, there in enumerate(most)):
        return None  # parts of one workload that could share no GPU took more than there are
    made = _seated(problem, offer, book, filled, workloads, level)
    if made is None:
        return None
    units = problem.tables.units
    needed = sum(book.known[gpu.pattern].group.total / int(units[gpu.pattern[0]]) for gpu in filled)
    # with workloads left out the program's cost is not money
    bounds = _bounds(problem, types, prices, 0.0 if left_out else mix.bound)
    return ProvisionPlan(
        "igniterd",
        arrival_scv,
        made,
        (*rejected, *(_no_gpu_left(workloads[n], gpus) for n in left_out)),
        bounds[0],
        bounds[1],
        needed,
        kinds=len(gpus),
        bound_by="patterns" if bounds[2] else "least shares",
    )


def _equal(workloads: Sequence[Workload], one: WorkloadType) -> bool:
    return len({(workloads[n].slo_p99_ms, workloads[n].rate_per_s) for n in one.members}) == 1


def _no_gpu_left(workload: Workload, gpus: Sequence[GpuType]) -> Infeasible:
    there = " and ".join(f"{gpu.most} {gpu.name}" for gpu in gpus if gpu.most is not None)
    return Infeasible(workload.name, f"{OUT_OF_STOCK} {there} there are")


def _bounds(
    problem: Problem, types: Sequence[WorkloadType], prices: Sequence[float], by_patterns: float
) -> tuple[float, float | None, bool]:
    """(GPUs, cost an hour) no plan can do without, and whether it is the patterns that say so."""
    counts = [one.count for one in types]
    fewest = least(problem, [1.0] * len(prices), counts)
    priced = all(gpu.price_per_hour is not None for gpu in problem.gpus)
    cost = least(problem, prices, counts) if priced else None
    if len(prices) == 1:
        tight = by_patterns / prices[0] > fewest
        fewest = max(fewest, by_patterns / prices[0])
        return fewest, None if cost is None else fewest * prices[0], tight
    tight = cost is not None and by_patterns > cost
    return fewest, None if cost is None else max(cost, by_patterns), tight


def _seated(
    problem: Problem,
    offer: Offer,
    book: PatternBook,
    filled: Sequence[FilledGpu],
    workloads: Sequence[Workload],
    level: float,
) -> tuple[PlannedGpu, ...] | None:
    """The GPUs as records. What differs from its pattern, in a rate or in who is there, is
    evaluated; ``None`` where somebody then misses."""
    groups: list[tuple[GpuType, list[Placement]]] = []
    seats: list[list[Workload]] = []
    differing: list[int] = []
    for gpu in filled:
        placements, mine, rates, same = [], [], [], gpu.whole
        pieces = zip(gpu.pattern[1:], gpu.who, book.known[gpu.pattern].placements, strict=True)
        for piece, n, placement in pieces:
            if n is None:
                continue
            rate = workloads[n].rate_per_s * float(offer.fraction[piece])
            same &= abs(rate - placement.rate_per_s) <= 1e-9 * rate
            placements.append(placement)
            rates.append(rate)
            mine.append(workloads[n])
        if not same:
            differing.append(len(groups))
            placements = [
                replace(p, rate_per_s=rate) for p, rate in zip(placements, rates, strict=True)
            ]
        groups.append((problem.gpus[gpu.pattern[0]], placements))
        seats.append(mine)
    evaluate([groups[g] for g in differing], level=level)
    for g in differing:
        if not all(holds(p, w.slo_p99_ms) for p, w in zip(groups[g][1], seats[g], strict=True)):
            return None
    return tuple(
        PlannedGpu(
            gpu.name,
            tuple(tenant_of(w, p) for w, p in zip(mine, placements, strict=True)),
            gpu.price_per_hour,
        )
        for (gpu, placements), mine in zip(groups, seats, strict=True)
    )
