"""What a model's P99 would be: the performance model and the tail of the queue, asked together and
remembered. Pure.

Tenants slow each other by executing, and how long a tenant executes depends on how slowed it is;
:meth:`LatencyPredictor.together` finds the fixed point. Answers are memoised on keys rounded to a
few per cent, because a search and the ticks after it ask nearly the same questions again and again;
rates and interference are rounded up, so that a remembered answer is never an optimistic one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from igniterd.arrays import F64
from igniterd.estimators.bias import CENTRE, bound, elsewhere, pressure_of
from igniterd.memo import Memo
from igniterd.perf.api import PerformanceModel, Tenant
from igniterd.queueing.tail import response_time
from igniterd.records import Allocation, BiasEstimate

RATE_STEP = 1.02
BIAS_STEP = 1.01
TILT_STEP = 0.02
BOUND_STEP = 1.02
_BIAS_LOG, _BOUND_LOG = math.log(BIAS_STEP), math.log(BOUND_STEP)
DUTY_STEP = 0.05
ROUNDS = 4
MEMO_SIZE = 2_000
"""Answers of each kind that are remembered at least; twice as many take eleven megabytes. A search
for twelve models asks for some 200, five minutes of traffic of 64 models for some 1,400."""

Beside = tuple[Tenant, ...]
"""The neighbours of a model as :func:`felt` rounds them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One model to be served on one GPU.

    ``rate_per_s`` and ``slo_ms`` are what to plan for (margins included); ``bias`` multiplies
    predicted service times, unless ``learnt`` says more of it; ``steerable`` says whether a share
    can be given to it alone (a process of its own). ``reserved``: a part of the GPU that is not
    planned with and that it may hold all the same. ``pinned``: it stays as it is here;
    ``keeps_batch``: its batches do.
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
    burstiness: float = 1.0
    steerable: bool = True
    instances: int = 1
    reserved: float = 0.0
    pinned: Allocation | None = None
    keeps_batch: int | None = None


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """How one model fares: ``p99_ms`` is infinite in overload; ``busy`` is the fraction of the time
    an instance executes."""

    p99_ms: float
    p50_ms: float
    mean_ms: float
    busy: float
    mean_batch: float

    @property
    def overloaded(self) -> bool:
        return not math.isfinite(self.p99_ms)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Predicted service times (ms) of batches 1..B, each (B,), and where: neighbours as rounded for
    remembering.

    ``number`` is no other curve's of the same predictor, so that answers of a forgotten one are
    never taken for those of another.
    """

    number: int
    mean_ms: F64
    upper_ms: F64
    share: float
    pressure: float


def _up(value: float, step: float) -> float:
    """``value`` rounded up to the next power of ``step``."""
    return 0.0 if value <= 0 else float(step ** math.ceil(math.log(value) / math.log(step) - 1e-9))


class LatencyPredictor:
    """Predictions for the tenants of one kind of GPU at one confidence level.

    ``upper=False`` plans on mean service times instead of their upper bounds: what to expect,
    rather than what to promise.
    """

    def __init__(
        self, model: PerformanceModel, *, level: float, service_cv: float = 0.1, upper: bool = True
    ) -> None:
        self.model = model
        self.level = level
        self.service_cv = service_cv
        self.upper = upper
        self._alone: dict[tuple[str, int], F64] = {}
        self._curves: Memo[Curve] = Memo(MEMO_SIZE)
        self._served: Memo[LatencyPrediction] = Memo(MEMO_SIZE)
        self._numbers = count()

    def curve_ms(self, profiled_as: str, max_batch: int, share: float, beside: Beside) -> F64:
        """Service time (ms) of batches 1..max_batch beside neighbours as :func:`felt`, as profiled,
        shape (max_batch,)."""
        curve = self._curve(profiled_as, max_batch, share, beside)
        return curve.upper_ms if self.upper else curve.mean_ms

    def corrected_ms(self, demand: Demand, share: float, beside: Beside) -> F64:
        """The same as live traffic corrects it: what the queue of ``demand`` is predicted from."""
        curve = self._curve(demand.profiled_as, demand.max_batch, share, beside)
        return _corrected(curve, self.upper, demand.max_batch, self._live(demand, curve))

    def alone_ms(self, demand: Demand) -> F64:
        """Service time (ms) alone as profiled, shape (units, max_batch): on 1, 2, … units of
        share."""
        key = (demand.profiled_as, demand.max_batch)
        if key not in self._alone:
            units = round(1 / self.model.share_unit)
            shares = np.asarray(
                [n * self.model.share_unit for n in range(1, units + 1)], dtype=np.float64
            )
            curves = self.model.share_curves_ms(
                demand.profiled_as, shares, (), demand.max_batch, level=self.level
            )
            self._alone[key] = curves[int(self.upper)]
        return self._alone[key]

    def _curve(self, profiled_as: str, max_batch: int, share: float, beside: Beside) -> Curve:
        key = (profiled_as, max_batch, round(share, 4), beside)
        curve = self._curves.get(key)
        if curve is None:
            mean, upper = self.model.service_curve_ms(
                profiled_as, share, beside, max_batch, level=self.level
            )
            curve = self._curves.keep(
                key, Curve(next(self._numbers), mean, upper, share, pressure_of(beside))
            )
        return curve

    def served(
        self, demand: Demand, allocation: Allocation, beside: Beside, *, growth: float = 1.0
    ) -> LatencyPrediction:
        """How ``demand``, its rate times ``growth``, fares under ``allocation`` beside what
        :func:`felt` makes of its neighbours."""
        share = allocation.share if allocation.share is not None else 1.0
        curve = self._curve(demand.profiled_as, demand.max_batch, share, beside)
        brings = max(1, demand.brings)
        largest = min(max(allocation.max_batch_size, brings), demand.max_batch) or 1
        rate = planned_rate(demand, growth)
        live = self._live(demand, curve)
        key = (
            curve.number,
            largest,
            allocation.max_queue_delay_us,
            allocation.instances,
            rate,
            live,
            demand.burstiness,
            brings,
        )
        known = self._served.get(key)
        if known is None:
            service_ms = of_requests(_corrected(curve, self.upper, largest, live), brings)
            served = self._queue(service_ms, allocation, rate / brings, demand.burstiness)
            known = self._served.keep(key, replace(served, mean_batch=served.mean_batch * brings))
        return known

    def _live(self, demand: Demand, curve: Curve) -> tuple[float, float, float]:
        """What live traffic corrects: bias at the central batch, its tilt, and upper bound over
        mean where that is tighter; in steps."""
        if demand.learnt is None:
            return _up(demand.bias, BIAS_STEP), 0.0, math.inf
        level, tilt, sd = elsewhere(demand.learnt, curve.share, curve.pressure)
        widest = (
            BOUND_STEP ** math.ceil(math.log(bound(sd, self.level)) / _BOUND_LOG)
            if self.upper
            else math.inf
        )
        return (
            BIAS_STEP ** math.ceil(level / _BIAS_LOG),
            round(tilt / TILT_STEP) * TILT_STEP,
            widest,
        )

    def _queue(
        self, service_ms: F64, allocation: Allocation, rate_per_s: float, burstiness: float
    ) -> LatencyPrediction:
        if rate_per_s <= 0:
            first = float(service_ms[0])
            return LatencyPrediction(first * (1 + 2.33 * self.service_cv), first, first, 0.0, 1.0)
        result = response_time(
            rate_per_s,
            np.ascontiguousarray(service_ms),
            service_cv=self.service_cv,
            max_queue_delay_ms=allocation.max_queue_delay_us / 1000,
            instances=allocation.instances,
            burstiness=burstiness,
        )
        if not result.success:
            return LatencyPrediction(math.inf, math.inf, math.inf, 1.0, float(service_ms.shape[0]))
        return LatencyPrediction(
            result.p99_ms,
            result.p50_ms,
            result.mean_ms,
            min(1.0, result.utilisation),
            result.mean_batch,
        )

    def together(
        self,
        demands: Sequence[Demand],
        allocations: Mapping[str, Allocation],
        *,
        growth: float = 1.0,
        near: Mapping[str, LatencyPrediction] | None = None,
    ) -> dict[str, LatencyPrediction]:
        """How every model fares with all of them on one GPU: the fixed point of busy times and
        mutual slowing.

        ``near``: how they fare, about, where that is known: the answer is found sooner from there.
        """
        near = near or {}
        tenants = [as_tenants(d, allocations[d.model], near.get(d.model)) for d in demands]
        served: dict[str, LatencyPrediction] = {}
        for _ in range(ROUNDS):
            before, steps = tenants, [felt(t) for t in tenants]
            for i, d in enumerate(demands):
                # an instance feels the model's others too
                beside = sum(steps[:i] + steps[i + 1 :], steps[i][1:])
                served[d.model] = self.served(d, allocations[d.model], beside, growth=growth)
            tenants = [as_tenants(d, allocations[d.model], served[d.model]) for d in demands]
            if all(
                abs(now[0].duty - then[0].duty) < DUTY_STEP / 2
                for now, then in zip(tenants, before, strict=True)
            ):
                break
        return served


def of_requests(service_ms: F64, brings: int) -> F64:
    """Service times (ms) of 1, 2, … requests that bring so many items each, from those of 1, 2, …
    items.

    A request is executed whole: beyond the largest batch that is known, in proportion.
    """
    known = service_ms.shape[0]
    whole: F64 = (
        service_ms[brings - 1 :: brings] if brings <= known else service_ms[-1:] * (brings / known)
    )
    return whole


def planned_rate(demand: Demand, growth: float) -> float:
    """The rate (1/s) that ``demand`` is asked for when its rate is ``growth`` times as high:
    rounded up, as all answers are remembered."""
    return _up(demand.rate_per_s * growth, RATE_STEP)


def felt(neighbours: Iterable[Tenant]) -> Beside:
    """Neighbours as the others feel them, in steps, so that what is remembered of them serves
    again; idle ones are not felt."""
    return tuple(
        Tenant(
            t.model,
            max(1.0, round(t.batch * 2) / 2),
            round(t.share, 4),
            min(1.0, math.ceil(t.duty / DUTY_STEP) * DUTY_STEP),
        )
        for t in neighbours
        if t.duty > 0.005
    )


def _corrected(curve: Curve, upper: bool, largest: int, live: tuple[float, float, float]) -> F64:
    """Service times (ms) of batches 1..largest: the tighter of the model's own bound and the one
    from live traffic, times the bias."""
    bias, tilt, widest = live
    own = (
        np.minimum(curve.upper_ms[:largest], curve.mean_ms[:largest] * widest)
        if upper
        else curve.mean_ms[:largest]
    )
    return (
        own * bias
        if tilt == 0
        else own
        * bias
        * np.arange(1, largest + 1) ** (tilt / math.log(2))
        * 2 ** (-tilt * CENTRE / math.log(2))
    )


def as_tenants(
    demand: Demand, allocation: Allocation, service: LatencyPrediction | None
) -> tuple[Tenant, ...]:
    """The neighbours that the others feel, one an instance; before anything is known, half busy
    with half its batch."""
    share = allocation.share if allocation.share is not None else 1.0
    if service is None:
        one = Tenant(demand.profiled_as, max(1.0, allocation.max_batch_size / 4), share, 0.5)
    else:
        one = Tenant(demand.profiled_as, service.mean_batch, share, service.busy)
    return (one,) * max(1, allocation.instances)
