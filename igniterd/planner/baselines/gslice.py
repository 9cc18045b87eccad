"""gslice+: Dhakal et al., GSLICE, SoCC 2020, on the published placement, as the evaluation of Xu et
al. (IEEE TPDS 34(3), 2023, sec. 5) describes it.

Every tenant tunes itself alone from measured feedback, against thresholds: the latency must stay
below half the SLO, the throughput above the rate. Nobody foresees what a step does to the
neighbours. Nobody gets more than the GPU has left; then the batch gives way, and with it the rate
that can be served. The published performance model plays the feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igniterd.perf.api import Tenant
from igniterd.perf.igniter_model import IgniterModel
from igniterd.planner.baselines.igniter import Demand, place
from igniterd.planner.plan import PlannedGpu, PlannedTenant
from igniterd.planner.workloads import Workload

THRESHOLD = 0.1
"""A tenant is content between 90 % and 100 % of its latency target."""
ROUNDS = 200
"""Tuning alone can go in circles; it is stopped after so many rounds of all tenants."""


@dataclass(slots=True, eq=False)
class _Tenant:
    """A tenant with the batch and the share (in units) that it has tuned itself to."""

    workload: Workload
    batch: int
    units: int
    most_batch: int


def gslice(
    model: IgniterModel, demand: Demand, gpu: str, price: float | None
) -> tuple[PlannedGpu, ...]:
    """GSLICE+ on the published placement, from the published batch and least share."""
    placed = place(model, demand)
    per_gpu: list[list[_Tenant]] = [[] for _ in range(placed.gpus)]
    for i, workload in enumerate(demand.workloads):
        tenant = _Tenant(
            workload, int(demand.batch[i]), int(demand.lower[i]), model.max_batch(workload.model)
        )
        per_gpu[int(placed.gpu_of[i])].append(tenant)
    unit = model.share_unit
    result = []
    for tenants in per_gpu:
        for _ in range(ROUNDS):
            changed = [_tune(model, tenants, own) for own in tenants]  # each has its turn
            if not any(changed):
                break
        seats = (
            PlannedTenant(
                t.workload.name,
                t.workload.model,
                t.workload.slo_p99_ms,
                t.workload.rate_per_s,
                round(t.units * unit, 9),
                t.batch,
            )
            for t in tenants
        )
        result.append(PlannedGpu(gpu, tuple(seats), price))
    return tuple(result)


def _tune(model: IgniterModel, tenants: Sequence[_Tenant], own: _Tenant) -> bool:
    """One look of one tenant at its own latency and rate; whether it changed anything."""
    unit, target_ms = model.share_unit, own.workload.slo_p99_ms / 2.0
    content_ms = (1 - THRESHOLD) * target_ms
    now = model.predict([Tenant(t.workload.model, t.batch, t.units * unit) for t in tenants])[
        tenants.index(own)
    ]
    free = round(1.0 / unit) - sum(t.units for t in tenants)
    if now.latency_ms > target_ms:
        if free > 0:
            own.units += 1
        elif own.batch > 1:
            own.batch -= 1
        else:
            return False
        return True
    if now.throughput_per_s < own.workload.rate_per_s:
        if own.batch < own.most_batch and now.latency_ms < content_ms:
            own.batch += 1
        elif free > 0:
            own.units += 1
        else:
            return False
        return True
    enough_per_s = own.workload.rate_per_s / (1 - THRESHOLD)
    slack = now.latency_ms < content_ms and now.throughput_per_s > enough_per_s
    if slack and own.units > 1:
        own.units -= 1
        return True
    return False
