"""What a placement really comes to: every tenant's P99 from the performance model and the queue
themselves, no tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from igniterd.perf import PerformanceModel
from igniterd.perf.api import Tenant
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan
from igniterd.planner.queueing import respond

LEVEL = 0.95
"""Plans are made at this upper confidence bound of the service times."""
_ROUNDS = 4
"""How busy tenants are and how they slow each other is solved by turns; each turn shrinks the error
by the slowdown (about 0.1)."""
_SETTLED, _SETTLED_MANY = 0.004, 0.02
"""A GPU is not evaluated again once nobody is busier or idler by this; of many GPUs the rougher
figure, which moves a P99 by 0.2 %."""


@dataclass(slots=True)
class Placement:
    """One tenant as configured, and what is predicted of it."""

    model: str
    share: float
    max_batch: int
    delay_ms: float
    rate_per_s: float
    burstiness: float
    busy: float = 0.0  # fraction of the time it executes
    batch: float = 1.0  # mean batch
    mean_ms: float = math.nan
    p99_ms: float = math.nan


def evaluate(
    groups: Sequence[tuple[GpuType, Sequence[Placement]]],
    *,
    level: float = LEVEL,
    rounds: int = _ROUNDS,
) -> None:
    """Fill in ``busy``, ``batch``, ``mean_ms`` and ``p99_ms`` of every placement; a group is one
    GPU.

    ``busy`` and ``batch`` as given are where the rounds start. A tenant that is given more than it
    can serve is always busy with full batches, and its times are infinite.
    """
    pending = [group for group in groups if group[1]]
    settled = _SETTLED if len(pending) <= 100 else _SETTLED_MANY
    for _ in range(rounds):
        before = [[p.busy for p in placements] for _, placements in pending]
        _one_round(pending, level)
        after = [[p.busy for p in placements] for _, placements in pending]
        moved = [
            max(abs(x - y) for x, y in zip(b, a, strict=True))
            for b, a in zip(before, after, strict=True)
        ]
        pending = [
            group
            for group, change in zip(pending, moved, strict=True)
            if change > settled and len(group[1]) > 1
        ]
        if not pending:
            return


def _one_round(groups: Sequence[tuple[GpuType, Sequence[Placement]]], level: float) -> None:
    rows = [
        (p, _curve(gpu.model, p, placements, level), gpu.service_cv(p.model))
        for gpu, placements in groups
        for p in placements
    ]
    for queue in sorted({(p.burstiness, cv) for p, _, cv in rows}):
        chosen = [(p, curve) for p, curve, cv in rows if (p.burstiness, cv) == queue]
        widest = max(p.max_batch for p, _ in chosen)
        curves = np.empty((len(chosen), widest))
        for row, (_, curve) in zip(curves, chosen, strict=True):
            row[: curve.size], row[curve.size :] = curve, curve[-1]
        answer = respond(
            np.array([p.rate_per_s for p, _ in chosen]),
            curves,
            np.array([p.max_batch for p, _ in chosen], dtype=np.int64),
            np.array([p.delay_ms for p, _ in chosen]),
            service_cv=queue[1],
            burstiness=queue[0],
        )
        for i, (p, _) in enumerate(chosen):
            if answer.ok[i]:
                p.busy, p.batch = float(answer.utilisation[i]), float(answer.mean_batch[i])
                p.mean_ms, p.p99_ms = float(answer.mean_ms[i]), float(answer.p99_ms[i])
            else:
                p.busy, p.batch, p.mean_ms, p.p99_ms = 1.0, float(p.max_batch), math.inf, math.inf


def _curve(
    model: PerformanceModel, own: Placement, placements: Sequence[Placement], level: float
) -> np.ndarray:
    neighbours = [Tenant(p.model, p.batch, p.share, p.busy) for p in placements if p is not own]
    return model.service_curve_ms(own.model, own.share, neighbours, own.max_batch, level=level)[1]


def assess(
    plan: ProvisionPlan,
    gpus: Sequence[GpuType],
    burstiness: dict[str, float],
    *,
    level: float = LEVEL,
) -> ProvisionPlan:
    """The plan with every tenant's utilisation, mean and P99 as igniterd's model predicts them at
    the upper bound.

    ``burstiness`` by workload name; a workload not in it has the plan's. This is how plans of other
    strategies are judged too.
    """
    kinds = {gpu.name: gpu for gpu in gpus}
    groups = [
        (
            kinds[gpu.gpu],
            [
                _placement(seat, burstiness.get(seat.workload, plan.burstiness))
                for seat in gpu.tenants
            ],
        )
        for gpu in plan.gpus
    ]
    evaluate(groups, level=level)
    judged = []
    for gpu, (_, placements) in zip(plan.gpus, groups, strict=True):
        judged.append(with_predictions(gpu, placements))
    return replace(plan, gpus=tuple(judged))


def with_predictions(gpu: PlannedGpu, placements: Sequence[Placement]) -> PlannedGpu:
    """The GPU's record with what was predicted of its tenants."""
    seats = (
        replace(seat, mean_ms=p.mean_ms, p99_ms=p.p99_ms, utilisation=p.busy)
        for seat, p in zip(gpu.tenants, placements, strict=True)
    )
    return replace(gpu, tenants=tuple(seats))


def _placement(seat: PlannedTenant, burstiness: float) -> Placement:
    return Placement(
        seat.model,
        seat.share,
        seat.max_batch_size,
        seat.max_queue_delay_us / 1000.0,
        seat.rate_per_s,
        burstiness,
    )
