"""What a little more of an SLO would save: of workloads that are spread over several GPUs though
one could carry their requests, only not so quickly."""

from __future__ import annotations

import math
from dataclasses import replace

from igniterd.planner import strategies
from igniterd.planner.evaluate import Placement, evaluate
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import ProvisionPlan
from igniterd.planner.strategies import Request
from igniterd.planner.tables import CAPS
from igniterd.planner.workloads import Workload

_MOST_RELIEF = 2.0
"""An SLO above so many times the one asked for is another service, not a relief."""
_ROOM = (1.02, 1.06, 1.12, 1.2)
"""The search reads tables, which are about this close to the queue itself; what is said has been
planned."""
_MAX_SENTENCES = 12


def describe_reliefs(plan: ProvisionPlan, request: Request) -> list[str]:
    """A sentence for each workload that one GPU would carry at an SLO a little above its own."""
    kinds = {gpu.name: gpu for gpu in request.gpus}
    seats: dict[str, list[str]] = {}
    for gpu in plan.gpus:
        for seat in gpu.tenants:
            seats.setdefault(seat.workload, []).append(gpu.gpu)
    spread = [w for w in request.workloads if len(seats.get(w.name, ())) > 1]
    said = []
    for workload in spread[:_MAX_SENTENCES]:
        kind = kinds[seats[workload.name][0]]
        enough_ms = _enough_ms(request, workload, kind)
        if enough_ms is not None:
            said.append(
                f"{workload.name}: {workload.rate_per_s:g} requests/s take "
                f"{len(seats[workload.name])} GPUs, because its "
                f"SLO of {workload.slo_p99_ms:g} ms leaves them hardly a moment to wait for one "
                "another; "
                f"one {kind.name} would do with an SLO of {enough_ms:.6g} ms"
            )
    return said


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
