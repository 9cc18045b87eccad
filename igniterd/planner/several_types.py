"""Several kinds of GPU: together and each alone, whichever costs least; what a kind that has run
out has no room for goes to others.

The search picks a kind for each workload by what its share would cost, as if GPUs could be rented
in parts. For few workloads they cannot: one GPU that is half empty may cost more than several of
the cheaper kind. So the plans on one kind alone are made as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from igniterd.planner.alike import alike
from igniterd.planner.by_pattern import plan_by_pattern
from igniterd.planner.evaluate import LEVEL
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import ProvisionPlan
from igniterd.planner.problem import OUT_OF_STOCK
from igniterd.planner.single_type import plan_igniterd
from igniterd.planner.workloads import Workload

_REPEATED, _TYPES, _OFTEN = 2.0, 40, 10.0
"""Workloads of a type, on average, from which on they are planned by pattern, and the same with
more types than so many: there patterns gain less, and take minutes."""
_FEW = 40
"""Up to so many workloads, cut evenly, are planned by pattern in any case: packing cuts unevenly at
first."""
_BOTH = 400
"""Up to so many workloads that are repeated are packed too."""
_WHOLE = 1e-6  # of a workload's rate: less than this is not left over


def plan_types(
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    *,
    level: float = LEVEL,
    seed: int = 0,
    even: bool = False,
) -> ProvisionPlan:
    """The plan of igniterd's strategy on the kinds of GPU offered: of patterns where workloads are
    repeated, else packed; both where that costs little, and then the better one.

    ``even``: replicas of a workload get equal parts of its traffic.
    """
    types = alike(workloads)
    copies = len(workloads) / max(1, len(types))
    found = None
    repeated = copies >= (_REPEATED if len(types) <= _TYPES else _OFTEN)
    if repeated or (even and len(workloads) <= _FEW):
        found = plan_by_pattern(workloads, gpus, arrival_scv, level=level, even=even, types=types)
    if found is not None and len(workloads) > _BOTH:
        return found
    packed = _plan_packed(workloads, gpus, arrival_scv, level, seed, even)
    if found is None:
        return packed
    best, other = sorted([found, packed], key=_rank)
    return _with_bounds(best, other)


def _with_bounds(plan: ProvisionPlan, other: ProvisionPlan) -> ProvisionPlan:
    """The plan with the bounds of whichever has the higher ones, GPUs first, then money."""

    def height(one: ProvisionPlan) -> tuple[float, float]:
        return one.lower_bound_gpus or 0.0, one.lower_bound_cost_per_hour or 0.0

    if height(other) <= height(plan):
        return plan
    return replace(
        plan,
        lower_bound_gpus=other.lower_bound_gpus,
        lower_bound_cost_per_hour=other.lower_bound_cost_per_hour,
        bound_by=other.bound_by,
    )


def _plan_packed(
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    level: float,
    seed: int,
    even: bool,
) -> ProvisionPlan:
    """The workloads packed. Takes about as many times as long as there are kinds, and once more."""

    def planned(offered: tuple[GpuType, ...]) -> ProvisionPlan:
        return _plan_left_over(
            plan_igniterd(workloads, offered, arrival_scv, level=level, seed=seed, even=even),
            workloads,
            gpus,
            level,
            seed,
            even,
        )

    together = planned(gpus)
    if len(gpus) == 1:
        return together
    best = min([together, *(planned((gpu,)) for gpu in gpus)], key=_rank)
    gpus_least, cost_least = together.lower_bound_gpus, together.lower_bound_cost_per_hour
    return replace(
        best, kinds=len(gpus), lower_bound_gpus=gpus_least, lower_bound_cost_per_hour=cost_least
    )


def _rank(plan: ProvisionPlan) -> tuple[int, float, int]:
    return (
        len(plan.infeasible),
        math.inf if plan.cost_per_hour is None else plan.cost_per_hour,
        len(plan.gpus),
    )


def _plan_left_over(
    plan: ProvisionPlan,
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    level: float,
    seed: int,
    even: bool,
) -> ProvisionPlan:
    """The plan with what is left over for want of GPUs planned on those kinds there are still GPUs
    of."""
    for _ in gpus:  # every turn uses up a kind
        left = _left_over(plan, workloads)
        offered = _in_stock(plan, gpus)
        if not left or not offered:
            return plan
        names = {w.name for w in left}
        more = plan_igniterd(left, offered, plan.arrival_scv, level=level, seed=seed, even=even)
        kept = tuple(entry for entry in plan.infeasible if entry.workload not in names)
        needed = (
            None
            if plan.needed_gpus is None or more.needed_gpus is None
            else plan.needed_gpus + more.needed_gpus
        )
        plan = replace(
            plan,
            gpus=(*plan.gpus, *more.gpus),
            infeasible=(*kept, *more.infeasible),
            needed_gpus=needed,
        )
    return plan


def _left_over(plan: ProvisionPlan, workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads, at the rates, that are not placed because a kind of GPU has run out."""
    out = {entry.workload for entry in plan.infeasible if entry.reason.startswith(OUT_OF_STOCK)}
    placed = dict.fromkeys(out, 0.0)
    for seat in (seat for gpu in plan.gpus for seat in gpu.tenants):
        if seat.workload in placed:
            placed[seat.workload] += seat.rate_per_s
    left = [
        replace(w, rate_per_s=w.rate_per_s - placed[w.name]) for w in workloads if w.name in placed
    ]
    return [w for w in left if w.rate_per_s > _WHOLE * (w.rate_per_s + placed[w.name])]


def _in_stock(plan: ProvisionPlan, gpus: Sequence[GpuType]) -> tuple[GpuType, ...]:
    """The kinds that have not run out, each with the number still there."""
    used = {gpu.name: sum(one.gpu == gpu.name for one in plan.gpus) for gpu in gpus}
    return tuple(
        gpu
        if gpu.most is None
        else GpuType(gpu.profile, gpu.price_per_hour, gpu.most - used[gpu.name])
        for gpu in gpus
        if gpu.most is None or gpu.most > used[gpu.name]
    )
