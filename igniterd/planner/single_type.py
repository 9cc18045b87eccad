"""igniterd's strategy: P99 within the SLO for every workload under its arrival process, at the
upper bound of the service times.

The search (:mod:`igniterd.planner.fill`) runs on tables. What it finds is checked with the
performance model and the queue themselves (:mod:`igniterd.planner.evaluate`); where a P99 misses,
the tables are corrected by what was found and the plan is packed again or mended
(:mod:`igniterd.planner.repair`). So every placement of the answer has been evaluated exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from igniterd.planner.consolidate import consolidate
from igniterd.planner.evaluate import LEVEL, Placement
from igniterd.planner.fill import pack
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.least_shares import Settler
from igniterd.planner.local_search import SMALL
from igniterd.planner.lower_bound import lower_bounds
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan
from igniterd.planner.problem import Problem, pose
from igniterd.planner.repair import Placed, calibrate, check, correct, mend
from igniterd.planner.workloads import Infeasible, Workload

OUT_OF_STOCK = "needs a GPU beyond the"
"""How the reason begins that a workload lost for want of GPUs is given."""
REPACKED = 200
"""Up to so many items, a plan that misses somewhere is packed anew with what was learnt before it
is mended GPU by GPU."""


def plan_own(
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    burstiness: float,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> ProvisionPlan:
    """The plan of igniterd's strategy."""
    problem = pose(workloads, gpus, burstiness, level=level)
    return to_plan(within_stock(solve(problem, level, seed)), burstiness)


def solve(problem: Problem, level: float, seed: int) -> Placed:
    """Pack, check, pack again with corrected goals where something misses, mend, and gather what
    mending scattered."""
    settler = Settler(problem)
    calibrate(problem, settler, level)
    found = check(problem, settler, pack(problem, settler, seed), level)
    count = problem.parent.size
    for turn in range(3 if count <= SMALL else 1 if count <= REPACKED else 0):
        if not found.missing:
            break
        for group, placements in zip(found.groups, found.placements, strict=True):
            correct(problem, group, placements)
        problem.split_unfit()
        # goals are tighter now: where splitting did not save a GPU before, it does not now
        found = check(
            problem, settler, pack(problem, settler, seed + turn + 1, splits=False), level
        )
    return consolidate(mend(found, settler, level), settler, level)


def within_stock(placed: Placed) -> Placed:
    """Take back the least filled GPUs of a kind beyond the number there are."""
    problem = placed.problem
    for kind, gpu in enumerate(problem.gpus):
        mine = [g for g, group in enumerate(placed.groups) if group.kind == kind]
        if gpu.most is None or len(mine) <= gpu.most:
            continue
        over = set(
            sorted(
                mine,
                key=lambda g: -sum(float(problem.alone[kind, i]) for i in placed.groups[g].items),
            )[gpu.most :]
        )
        placed.unplaced.update(
            {
                i: f"{OUT_OF_STOCK} {gpu.most} {gpu.name} there are"
                for g in over
                for i in placed.groups[g].items
            }
        )
        keep = [g for g in range(len(placed.groups)) if g not in over]
        placed = Placed(
            problem,
            [placed.groups[g] for g in keep],
            [placed.placements[g] for g in keep],
            placed.unplaced,
        )
    return placed


def to_plan(placed: Placed, burstiness: float) -> ProvisionPlan:
    """The answer as records."""
    problem = placed.problem
    gpus = []
    for group, placements in zip(placed.groups, placed.placements, strict=True):
        kind = problem.gpus[group.kind]
        seats = tuple(
            _seat(problem, item, p) for item, p in zip(group.items, placements, strict=True)
        )
        gpus.append(PlannedGpu(kind.name, seats, kind.price_per_hour))
    lost = {int(problem.parent[item]): why for item, why in placed.unplaced.items()}
    out_of_stock = [Infeasible(problem.workloads[w].name, why) for w, why in sorted(lost.items())]
    bound, cost = lower_bounds(problem)
    needed = sum(group.total / int(problem.tables.units[group.kind]) for group in placed.groups)
    return ProvisionPlan(
        "igniterd", burstiness, tuple(gpus), (*problem.rejected, *out_of_stock), bound, cost, needed
    )


def _seat(problem: Problem, item: int, p: Placement) -> PlannedTenant:
    workload = problem.workloads[int(problem.parent[item])]
    return PlannedTenant(
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
