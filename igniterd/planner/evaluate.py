"""What a placement really comes to: every tenant's P99 as :mod:`igniterd.predict` says, no
tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan
from igniterd.predict import SETTLED, CoLocation, Demand, LatencyPrediction
from igniterd.records import Allocation

LEVEL = 0.95
"""Plans are made at this upper confidence bound of the service times."""
_MANY, _SETTLED_MANY = 100, 0.02
"""More GPUs than so many are evaluated more roughly, which moves a P99 by 0.2 %."""


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

    def demand(self, name: str) -> Demand:
        """What is asked of the predictor, under this name."""
        return Demand(
            name,
            self.model,
            self.rate_per_s,
            math.inf,
            max_batch=self.max_batch,
            burstiness=self.burstiness,
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
            busy=self.busy,
            mean_batch=self.batch,
        )

    def take(self, prediction: LatencyPrediction) -> None:
        """Fill in what is predicted."""
        self.busy, self.batch = prediction.busy, prediction.mean_batch
        self.mean_ms, self.p99_ms = prediction.mean_ms, prediction.p99_ms


def evaluate(
    groups: Sequence[tuple[GpuType, Sequence[Placement]]], *, level: float = LEVEL
) -> None:
    """Fill in ``busy``, ``batch``, ``mean_ms`` and ``p99_ms`` of every placement; a group is one
    GPU.

    ``busy`` and ``batch`` as given are where the fixed point is sought from. A tenant that is given
    more than it can serve is always busy with full batches, and its times are infinite.
    """
    settled = SETTLED if len(groups) <= _MANY else _SETTLED_MANY
    for kind in dict.fromkeys(gpu for gpu, _ in groups):
        mine = [placements for gpu, placements in groups if gpu is kind]
        predicted = kind.predictor(level).together_all(
            [_co_location(placements) for placements in mine], settled=settled
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
