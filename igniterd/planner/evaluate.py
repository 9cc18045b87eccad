"""What a placement really comes to: every tenant's P99 as :mod:`igniterd.predict` says, no
tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan
from igniterd.planner.workloads import Workload
from igniterd.predict import CoLocation, Demand, LatencyPrediction
from igniterd.records import Allocation

LEVEL = 0.95
"""Plans are made at this upper confidence bound of the service times."""


@dataclass(slots=True)
class Placement:
    """One tenant as configured, and what is predicted of it."""

    model: str
    share: float
    max_batch: int
    delay_ms: float
    rate_per_s: float
    arrival_scv: float
    utilisation: float = 0.0  # fraction of the time it executes
    batch: float = 1.0  # mean batch
    mean_ms: float = math.nan
    p99_ms: float = math.nan

    def demand(self, name: str) -> Demand:
        """What is asked of the predictor, under this name."""
        return Demand(
            name,
            self.model,
            self.rate_per_s,
            math.inf,
            max_batch=self.max_batch,
            arrival_scv=self.arrival_scv,
        )

    @property
    def allocation(self) -> Allocation:
        """As the daemon would apply it."""
        return Allocation(self.share, self.max_batch, round(1000 * self.delay_ms))

    @property
    def prediction(self) -> LatencyPrediction:
        """As far as it is predicted."""
        return LatencyPrediction(
            p99_ms=self.p99_ms,
            p50_ms=math.nan,
            mean_ms=self.mean_ms,
            utilisation=self.utilisation,
            mean_batch=self.batch,
        )

    def take(self, prediction: LatencyPrediction) -> None:
        """Fill in what is predicted."""
        self.utilisation, self.batch = prediction.utilisation, prediction.mean_batch
        self.mean_ms, self.p99_ms = prediction.mean_ms, prediction.p99_ms


def evaluate(
    groups: Sequence[tuple[GpuType, Sequence[Placement]]], *, level: float = LEVEL
) -> None:
    """Fill in ``utilisation``, ``batch``, ``mean_ms`` and ``p99_ms`` of every placement; a group is
    one GPU.

    ``utilisation`` and ``batch`` as given are where the fixed point is sought from. A tenant that
    is given more than it can serve is always busy with full batches, and its times are infinite.
    """
    for kind in dict.fromkeys(gpu for gpu, _ in groups):
        mine = [placements for gpu, placements in groups if gpu is kind]
        predicted = kind.predictor(level).together_all(
            [_co_location(placements) for placements in mine]
        )
        for placements, served in zip(mine, predicted, strict=True):
            for i, placement in enumerate(placements):
                placement.take(served[str(i)])


def _co_location(placements: Sequence[Placement]) -> CoLocation:
    """The question to the predictor; tenants go by their place, as one model may be there twice."""
    named = [(str(i), placement) for i, placement in enumerate(placements)]
    return CoLocation(
        [p.demand(name) for name, p in named],
        {name: p.allocation for name, p in named},
        {name: p.prediction for name, p in named},
    )


def assess(
    plan: ProvisionPlan,
    gpus: Sequence[GpuType],
    arrival_scv: dict[str, float],
    *,
    level: float = LEVEL,
) -> ProvisionPlan:
    """The plan with every tenant's utilisation, mean and P99 as igniterd's model predicts them at
    the upper bound.

    ``arrival_scv`` by workload name; a workload not in it has the plan's. This is how plans of
    other strategies are judged too.
    """
    kinds = {gpu.name: gpu for gpu in gpus}
    groups = [
        (
            kinds[gpu.gpu],
            [
                _placement(seat, arrival_scv.get(seat.workload, plan.arrival_scv))
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
        replace(seat, mean_ms=p.mean_ms, p99_ms=p.p99_ms, utilisation=p.utilisation)
        for seat, p in zip(gpu.tenants, placements, strict=True)
    )
    return replace(gpu, tenants=tuple(seats))


def _placement(seat: PlannedTenant, arrival_scv: float) -> Placement:
    return Placement(
        seat.model,
        seat.share,
        seat.max_batch_size,
        seat.max_queue_delay_us / 1000.0,
        seat.rate_per_s,
        arrival_scv,
    )


def tenant_of(workload: Workload, p: Placement) -> PlannedTenant:
    """The record of a workload, or a part of it, as it is placed."""
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
        p.utilisation,
    )
