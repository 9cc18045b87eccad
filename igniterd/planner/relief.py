"""What a little more of an SLO would save: of workloads that are spread over several GPUs though
one could carry their requests, only not so quickly."""

from __future__ import annotations

import math
from dataclasses import replace

from igniterd.planner import strategies
from igniterd.planner.alike import alike
from igniterd.planner.evaluate import Placement, evaluate
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import Advice, PlannedTenant, ProvisionPlan
from igniterd.planner.strategies import Request
from igniterd.planner.tables import CAPS
from igniterd.planner.workloads import Workload

_MOST_RELIEF = 3.0
"""An SLO above so many times the one asked for is another service, not a relief."""
_ROOM = (1.02, 1.06, 1.12, 1.2)
"""The search reads tables, which are about this close to the queue itself; what is said has been
planned."""
_MOST = 12
"""Pieces of advice; each is planned, which takes a moment."""
_CARRIED = 1.0
"""What executes more than all the time, over its replicas, is no case for one GPU."""


def advise(plan: ProvisionPlan, request: Request) -> tuple[Advice, ...]:
    """What the SLO costs each workload that one GPU would carry at an SLO a little above its own;
    once for all that are alike."""
    kinds = {gpu.name: gpu for gpu in request.gpus}
    seats: dict[str, list[tuple[str, PlannedTenant]]] = {}
    for gpu in plan.gpus:
        for seat in gpu.tenants:
            seats.setdefault(seat.workload, []).append((gpu.gpu, seat))
    given: list[Advice] = []
    for one in alike(request.workloads, 0.0):
        mine = seats.get(one.workload.name, [])
        load = sum(seat.utilisation or 0.0 for _, seat in mine)
        if len(mine) < 2 or load > _CARRIED or len(given) == _MOST:
            continue
        enough_ms = _enough_ms(request, one.workload, kinds[mine[0][0]])
        if enough_ms is not None:
            given.append(
                Advice(
                    one.workload.name,
                    one.count - 1,
                    mine[0][0],
                    len(mine),
                    load / len(mine),
                    one.workload.slo_p99_ms,
                    enough_ms,
                )
            )
    return tuple(given)


def _enough_ms(request: Request, workload: Workload, kind: GpuType) -> float | None:
    """The SLO at which all of it is planned on one GPU; None where that is far off."""
    arrival_scv = request.burstiness_by_name()[workload.name]
    most = kind.model.max_batch(workload.model)
    tries = [
        Placement(workload.model, 1.0, cap, 0.0, workload.rate_per_s, arrival_scv)
        for cap in CAPS
        if cap <= most
    ]
    evaluate([(kind, [placement]) for placement in tries], level=request.level)
    least_ms = min(placement.p99_ms for placement in tries)
    for room in _ROOM:
        slo_ms = room * least_ms
        if not workload.slo_p99_ms < slo_ms <= _MOST_RELIEF * workload.slo_p99_ms:
            continue
        slo_ms = _round_up(slo_ms)
        alone = (replace(workload, slo_p99_ms=slo_ms),)
        found = strategies.plan(
            replace(request, workloads=alone, gpus=(kind,), start=None, max_moves=None)
        )
        if found.feasible and len(found.gpus) == 1:
            return slo_ms
    return None


def _round_up(ms: float) -> float:
    """Three digits, never below."""
    step = 10.0 ** (math.floor(math.log10(ms)) - 2)
    return math.ceil(ms / step) * step
