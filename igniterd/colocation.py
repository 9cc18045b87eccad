"""Models that share a GPU: what is asked of each, how it fares, and the fixed point of their mutual
slowing. Pure; :mod:`igniterd.predict` answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from igniterd.estimators.bias import pressure_of
from igniterd.loads import BiasEstimate
from igniterd.perf.api import UNCAPPED, Tenant
from igniterd.records import Allocation, most_on_one

UTILISATION_STEP = 0.05
BATCH_STEP = 0.5
BATCH_FELT = 0.2
"""A batch that changes by 5 % counts as a utilisation that changes by 0.01."""
IDLE = 0.005
"""A neighbour that executes less of the time is left out of a rounded question."""

CONTENDED = 4.0
"""Who executes on the same SMs slows a model about so many times as much as who keeps as much busy
beside it, by what the model predicts. GPUs are compared by it, nothing is predicted with it."""

Neighbours = tuple[Tenant, ...]
"""Who else executes on the GPU, one an instance; of a rounded question as :func:`quantised`."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One model to be served on one GPU, or on several that are predicted together.

    ``rate_per_s`` and ``slo_ms`` are what to plan for (margins included); ``bias`` multiplies
    predicted service times, unless ``learnt`` says more of it; ``steerable`` says whether a share
    can be given to it alone (a process of its own). ``reserved``: a part of the GPU that is not
    planned with and that it may hold all the same. ``pinned``: it stays as it is here;
    ``keeps_batch``: its batches do. ``gpus``: the GPU of each instance, where several are predicted
    together; ``devices``: their numbers in its server, as its allocation has them.
    """

    model: str
    profiled_as: str
    rate_per_s: float
    slo_ms: float
    priority: int = 1
    min_share: float = 0.05
    max_share: float = 1.0
    max_batch: int = 32
    # items a request brings: they are executed together, whatever batches are formed of requests
    brings: int = 1
    min_batch: int = 1  # requests that bring a batch of their own must not find the limit below it
    bias: float = 1.0
    learnt: BiasEstimate | None = None
    arrival_scv: float = 1.0
    steerable: bool = True
    instances: int = 1
    reserved: float = 0.0
    pinned: Allocation | None = None
    keeps_batch: int | None = None
    gpus: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()

    def instances_on(self, gpu: str) -> int:
        """Its instances on ``gpu``; all of them where there is only one."""
        return self.gpus.count(gpu) if self.gpus else self.instances

    @property
    def most_instances(self) -> int:
        """Instances on the GPU that has most of them."""
        return most_on_one(self.gpus, self.instances)


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """How one model fares: ``p99_ms`` is infinite in overload; ``busy`` is the fraction of the time
    an instance executes."""

    p99_ms: float
    p50_ms: float
    mean_ms: float
    utilisation: float
    mean_batch: float

    @property
    def overloaded(self) -> bool:
        return not math.isfinite(self.p99_ms)


@dataclass(frozen=True, slots=True)
class CoLocation:
    """One GPU to predict: what is to be served there, and the allocations by ``Demand.model``.

    ``near``: how the models fare, about, where that is known: the fixed point is sooner found from
    there.
    """

    demands: Sequence[Demand]
    allocations: Mapping[str, Allocation]
    near: Mapping[str, LatencyPrediction] = field(default_factory=dict)


class FixedPoint:
    """The fixed point of busy times and mutual slowing of one GPU, found by turns: everybody is
    asked for beside the others as they are, then all move at once."""

    def __init__(self, gpu: CoLocation) -> None:
        self.gpu = gpu
        self.gpus = [demand.gpus for demand in gpu.demands]
        self.several = any(self.gpus)
        self.served: dict[str, LatencyPrediction] = {}
        self.tenants = self._tenants(gpu.near)

    def _tenants(self, served: Mapping[str, LatencyPrediction]) -> list[Neighbours]:
        return [
            as_tenants(demand, self.gpu.allocations[demand.model], served.get(demand.model))
            for demand in self.gpu.demands
        ]

    def asked(self, *, exact: bool) -> Iterator[tuple[Demand, Allocation, Neighbours]]:
        """Every model, beside the others as they are now. An instance has its model's others
        beside it too."""
        tenants = self.tenants if exact else [quantised(each) for each in self.tenants]
        for i, demand in enumerate(self.gpu.demands):
            if self.several:
                beside = beside_on_busiest(i, self.gpus, tenants)
            else:
                beside = sum(tenants[:i] + tenants[i + 1 :], tenants[i][1:])
            yield demand, self.gpu.allocations[demand.model], beside

    def moved(self, answers: Iterator[LatencyPrediction]) -> float:
        """Take one answer for every model; the largest change of a utilisation, 0 where nobody has
        a neighbour.

        Who is always busy is not settled by that: a change of its batch counts too.
        """
        before = self.tenants
        self.served = {demand.model: next(answers) for demand in self.gpu.demands}
        self.tenants = self._tenants(self.served)
        if sum(len(each) for each in before) == 1:
            return 0.0
        return max(
            max(
                abs(now[0].utilisation - then[0].utilisation),
                BATCH_FELT * abs(math.log(now[0].batch / then[0].batch)),
            )
            for now, then in zip(self.tenants, before, strict=True)
        )


def beside_on_busiest(
    i: int, gpus: Sequence[tuple[str, ...]], tenants: Sequence[Neighbours]
) -> Neighbours:
    """Whom model ``i`` feels on the GPU where the others slow it most, by what they keep busy.

    ``gpus``: of each model, the GPU of each instance. A model on several GPUs has one queue, and an
    instance serves as fast as its GPU lets it; all are taken to be as slow as the slowest.
    """
    own = max((t.share for t in tenants[i]), default=0.0)  # idle ones may be left out

    def felt(beside: Neighbours) -> float:
        contending = [t for t in beside if max(own, t.share) >= UNCAPPED]
        return pressure_of(beside) + (CONTENDED - 1.0) * pressure_of(contending)

    return max((_beside_on(gpu, i, gpus, tenants) for gpu in sorted(set(gpus[i]))), key=felt)


def _beside_on(
    gpu: str, i: int, gpus: Sequence[tuple[str, ...]], tenants: Sequence[Neighbours]
) -> Neighbours:
    found: Neighbours = tenants[i][: gpus[i].count(gpu) - 1]
    for j, there in enumerate(gpus):
        if j != i:
            found += tenants[j][: there.count(gpu)]
    return found


def quantised(neighbours: Iterable[Tenant]) -> Neighbours:
    """Neighbours as the others feel them, in steps, so that what is remembered of them serves
    again; idle ones are not felt."""
    return tuple(
        Tenant(
            t.model,
            max(1.0, round(t.batch / BATCH_STEP) * BATCH_STEP),
            round(t.share, 4),
            min(1.0, math.ceil(t.utilisation / UTILISATION_STEP) * UTILISATION_STEP),
        )
        for t in neighbours
        if t.utilisation > IDLE
    )


def as_tenants(
    demand: Demand, allocation: Allocation, service: LatencyPrediction | None
) -> tuple[Tenant, ...]:
    """The neighbours that the others feel, one an instance; before anything is known, half busy
    with half its batch."""
    share = allocation.effective_share
    if service is None:
        one = Tenant(demand.profiled_as, max(1.0, allocation.max_batch_size / 4), share, 0.5)
    else:
        one = Tenant(demand.profiled_as, service.mean_batch, share, service.utilisation)
    return (one,) * max(1, allocation.instances)
