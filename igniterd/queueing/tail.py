"""Response time of a request through Triton's dynamic batcher: mean and percentiles of the
stationary distribution.

The batcher as it is. Without a queue delay, a batch starts when an instance is free and takes what
is queued, up to the largest batch. With one, batches are made up when their delay is over, though
the instance still executes, and hardly topped up: see
:mod:`igniterd.queueing.kernels.batcher` for the rule. With a largest batch of 1 a delay has no effect. The service time of a batch depends on
its size and is gamma distributed around its mean.

One instance without a delay is computed (:mod:`igniterd.queueing.kernels.stationary`): within 2 %
of an event-by-event simulation in median and P99, for constant, Poisson and bursty arrivals.
Between constant and Poisson arrivals percentiles are interpolated (a few percent). A queue delay,
or several instances, are simulated with the same draws in every call
(:mod:`igniterd.queueing.kernels.monte_carlo`): milliseconds instead of a fraction of one, P99 good
to about 3 % up to 80 % load. So a comparison with and without a delay has that error; one of two
delays, or of nearby rates, has less.

On Triton 2.51 (largest batches 1 to 16, with a delay of 6 ms and without,
``bench/results/tails.txt``), the P99 told is within 10.3 % of the measured one at all points from
30 to 70 % load.

Overload is a status, never an extrapolation: where the rate is not below what full batches can
serve, no figure is given.
"""  # noqa: E501

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igniterd.arrays import F64
from igniterd.queueing.kernels import monte_carlo as drawn
from igniterd.queueing.kernels import stationary as kernels

_T = TypeVar("_T", np.float64, np.int64)

MAX_BATCH = 512
SERVICE_CV = 0.1
"""Coefficient of variation of one service time where none was measured."""
MAX_CV = 1.0
MAX_SCV = 100.0
MAX_INSTANCES = 64
_QUANTILES = (0.5, 0.95, 0.99)


class TailStatus(StrEnum):
    """What became of an evaluation."""

    OK = "ok"
    # no stationary distribution, or so near to none that its percentiles mean nothing
    OVERLOAD = "overload"
    BAD_INPUT = "bad_input"


@dataclass(frozen=True, slots=True)
class TailResult:
    """Stationary response time of one model; every figure is NaN unless ``status`` is ok."""

    status: TailStatus
    message: str = ""
    mean_ms: float = math.nan
    p50_ms: float = math.nan
    p95_ms: float = math.nan
    p99_ms: float = math.nan
    utilisation: float = math.nan  # fraction of the time an instance is executing
    mean_batch: float = math.nan  # requests in a batch, mean over the batches
    step_ms: float = field(default=math.nan, repr=False)
    # of P(T > t) beyond the end of ``cdf``
    decay_per_ms: float = field(default=math.inf, repr=False)
    # P(T <= i step_ms), i = 0, 1, …
    cdf: F64 = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def success(self) -> bool:
        return self.status is TailStatus.OK

    def quantile(self, q: float) -> float:
        """Time (ms) within which a fraction ``q`` of the requests is answered; NaN unless ok."""
        if not self.success:
            return math.nan
        if not 0.0 < q < 1.0:
            raise ValueError(f"q is {q}: give a fraction above 0 and below 1")
        return float(kernels.quantile(self.cdf, self.step_ms, self.decay_per_ms, q))

    def attainment(self, slo_ms: float) -> float:
        """Fraction of the requests answered within ``slo_ms``; NaN unless ok."""
        if not self.success:
            return math.nan
        end = (self.cdf.size - 1) * self.step_ms
        if slo_ms > end:
            return 1.0 - (1.0 - float(self.cdf[-1])) * math.exp(-self.decay_per_ms * (slo_ms - end))
        return float(np.interp(slo_ms, np.arange(self.cdf.size) * self.step_ms, self.cdf))


@dataclass(frozen=True, slots=True)
class TailRows:
    """Many evaluations; every array has a row an evaluation, NaN where ``ok`` is false."""

    ok: NDArray[np.bool_]
    mean_ms: F64
    p50_ms: F64
    p95_ms: F64
    p99_ms: F64
    utilisation: F64
    mean_batch: F64


LEAST_PER_MS = 1e-7
"""One request in three hours never meets another, and the chain has figures left to tell one from
none: at 1e-13 it has not. A model that was asked for nothing for a quarter of an hour comes to
that, as its rate is forgotten exponentially."""


def compiled_before() -> bool:
    """Whether numba has kept what it compiled of the queue since that was last changed."""
    changed_s = Path(kernels.__file__).stat().st_mtime
    return any(
        kept.stat().st_mtime >= changed_s
        for kept in Path(kernels.solve.stats.cache_path).glob("*.solve-*.nbi")
    )


class _Case(NamedTuple):
    """What rows of one call have in common."""

    cv: float
    instances: int
    arrival_scv: float


def response_time(
    rate_per_s: float,
    service_ms: ArrayLike,
    *,
    service_cv: float = SERVICE_CV,
    max_queue_delay_ms: float = 0.0,
    instances: int = 1,
    arrival_scv: float = 1.0,
) -> TailResult:
    """Response time for open arrivals of ``rate_per_s``.

    ``service_ms``, shape (B,): mean service time of batches 1..B, B the largest batch.
    ``service_cv``: coefficient of variation of one service time (0 to 1). ``arrival_scv``: squared
    coefficient of variation of the times between arrivals (0 constant, 1 Poisson, above 1 bursty:
    hyperexponential with two phases of balanced means). Never raises for what the numbers are:
    ``status`` and ``message`` say what is wrong.
    """
    service = np.ascontiguousarray(service_ms, dtype=np.float64)
    case = _Case(service_cv, instances, arrival_scv)
    problem = _problem(rate_per_s, service, max_queue_delay_ms, case)
    if problem:
        return TailResult(TailStatus.BAD_INPUT, message=problem)
    found = _distribution(rate_per_s * 1e-3, service, max_queue_delay_ms, case)
    if found is None:
        return TailResult(TailStatus.OVERLOAD, message=_overload(rate_per_s, service, instances))
    p50, p95, p99 = (found.quantile(q) for q in _QUANTILES)
    return TailResult(
        TailStatus.OK,
        mean_ms=found.mean_ms,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        utilisation=found.utilisation,
        mean_batch=found.mean_batch,
        step_ms=found.step_ms,
        decay_per_ms=found.decay_per_ms,
        cdf=found.cdf,
    )


def response_times(
    rates_per_s: ArrayLike,
    service_ms: ArrayLike,
    *,
    batches: ArrayLike | None = None,
    service_cv: float = SERVICE_CV,
    max_queue_delay_ms: ArrayLike = 0.0,
    instances: int = 1,
    arrival_scv: float = 1.0,
) -> TailRows:
    """Many evaluations in one call; rates, curves, batch limits and delays broadcast over the rows.

    ``rates_per_s`` () or (R,); ``service_ms`` (B,) or (R, B); ``batches`` (R,) the largest batch of
    each row (all of B when not given); ``max_queue_delay_ms`` () or (R,). Raises ``ValueError``
    naming the first row that is not valid; overload is ``ok`` false.
    """
    curves = np.atleast_2d(np.asarray(service_ms, dtype=np.float64))
    most = curves.shape[1]
    rates, delays = (
        np.asarray(rates_per_s, dtype=np.float64),
        np.asarray(max_queue_delay_ms, dtype=np.float64),
    )
    limits = np.asarray(most if batches is None else batches, dtype=np.int64)
    n = np.broadcast_shapes(rates.shape, delays.shape, limits.shape, curves.shape[:1])
    rates, delays, limits = _spread(rates, n), _spread(delays, n), _spread(limits, n)
    curves = _spread(curves, (*n, most))
    case = _Case(service_cv, instances, arrival_scv)
    for row in range(rates.size):
        if not 1 <= limits[row] <= most:
            raise ValueError(
                f"row {row}: batches is {limits[row]}: give 1 to {most}, the batches of the "
                "service curve"
            )
        problem = _problem(float(rates[row]), curves[row], float(delays[row]), case)
        if problem:
            raise ValueError(f"row {row}: {problem}")
    out = np.full((rates.size, 6), math.nan)
    for row in range(rates.size):
        found = _distribution(
            float(rates[row]) * 1e-3, curves[row, : limits[row]], float(delays[row]), case
        )
        if found is not None:
            out[row, :3] = [found.quantile(q) for q in _QUANTILES]
            out[row, 3:] = found.mean_ms, found.utilisation, found.mean_batch
    p50, p95, p99, mean, utilisation, batch = out.T
    return TailRows(np.isfinite(p50), mean, p50, p95, p99, utilisation, batch)


def _spread(a: NDArray[_T], shape: tuple[int, ...]) -> NDArray[_T]:
    return np.ascontiguousarray(np.broadcast_to(a, shape))


class _Distribution(NamedTuple):
    """A stationary response time; the fields of :class:`TailResult`."""

    mean_ms: float
    utilisation: float
    mean_batch: float
    step_ms: float
    decay_per_ms: float
    cdf: F64

    def quantile(self, q: float) -> float:
        return float(kernels.quantile(self.cdf, self.step_ms, self.decay_per_ms, q))


def _distribution(
    rate_per_ms: float, service: F64, delay: float, case: _Case
) -> _Distribution | None:
    """The answer for valid arguments; ``None`` for overload."""
    rate_per_ms = max(rate_per_ms, LEAST_PER_MS)
    if not rate_per_ms * service[-1] / service.size < case.instances * (1.0 - 1e-9):
        return None
    if case.instances > 1 or (delay > 0.0 and service.size > 1):
        return _drawn(rate_per_ms, service, delay, case)
    if 0.0 < case.arrival_scv < 1.0:
        smooth, random = (_chain(rate_per_ms, service, case.cv, scv) for scv in (0.0, 1.0))
        return _between(smooth, random, case.arrival_scv)
    return _chain(rate_per_ms, service, case.cv, case.arrival_scv)


_times = lru_cache(maxsize=4)(drawn.draw_times)
_factors = lru_cache(maxsize=4)(drawn.draw_factors)


def _drawn(rate: float, service: F64, delay: float, case: _Case) -> _Distribution:
    requests = drawn.requests_for(rate * service[-1] / (service.size * case.instances))
    times, factors = _times(requests, float(case.arrival_scv)), _factors(requests, float(case.cv))
    cdf, step, mean, utilisation, batch = drawn.tail_drawn(
        rate, service, delay, case.instances, times, factors
    )
    return _Distribution(mean, utilisation, batch, step, math.inf, cdf)


def _chain(rate: float, service: F64, cv: float, scv: float) -> _Distribution:
    step, decay, k, ratio, used, inside, points = kernels.layout(rate, service, cv, scv)
    stats = np.empty(kernels.STATS)
    cdf = kernels.solve(
        rate * step, service[:used] / step, cv, scv, decay * step, k, ratio, inside, points, stats
    )
    mean, utilisation, batch = (float(x) for x in stats)
    return _Distribution(mean * step, min(1.0, utilisation), batch, step, decay, cdf)


def _between(smooth: _Distribution, random: _Distribution, scv: float) -> _Distribution:
    """Percentiles, and with them everything else, interpolated between constant (``scv`` 0) and
    Poisson arrivals (1)."""
    levels = np.clip(random.cdf, 1e-12, 1.0 - 1e-9)
    times = (1.0 - scv) * np.array(
        [smooth.quantile(q) for q in levels]
    ) + scv * random.step_ms * np.arange(levels.size)
    step = float(times[-1]) / (levels.size - 1)
    cdf = np.interp(step * np.arange(levels.size), np.maximum.accumulate(times), random.cdf)
    mean, utilisation, batch = (
        (1.0 - scv) * a + scv * b for a, b in zip(smooth[:3], random[:3], strict=True)
    )
    return _Distribution(mean, utilisation, batch, step, random.decay_per_ms / scv, cdf)


def _problem(rate: float, service: F64, delay: float, case: _Case) -> str:
    """What is wrong with the arguments, or nothing."""
    if service.ndim != 1 or not 1 <= service.size <= MAX_BATCH:
        return (
            f"service_ms has shape {service.shape}: give the mean service times of batches "
            f"1..B, 1 <= B <= {MAX_BATCH}"
        )
    if not (service.min() > 0.0 and service.max() < math.inf):
        worst = int(np.flatnonzero(~((service > 0.0) & np.isfinite(service)))[0])
        return f"service_ms of batch {worst + 1} is {service[worst]}: give a positive number of ms"
    good = (
        math.isfinite(rate) and rate > 0.0,
        0.0 <= case.cv <= MAX_CV,
        math.isfinite(delay) and delay >= 0.0,
        1 <= case.instances <= MAX_INSTANCES,
        0.0 <= case.arrival_scv <= MAX_SCV,
    )
    if all(good):  # thousands are checked for a plan
        return ""
    messages = (
        f"rate_per_s is {rate}: give a positive number of requests a second",
        f"service_cv is {case.cv}: give a number from 0 (constant) to {MAX_CV:g}",
        f"max_queue_delay_ms is {delay}: give 0 or a positive number of ms",
        f"instances is {case.instances}: give 1 to {MAX_INSTANCES}",
        f"arrival_scv is {case.arrival_scv}: give 0 (constant) to {MAX_SCV:g}",
    )
    return messages[good.index(False)]


def _overload(rate: float, service: F64, instances: int) -> str:
    largest = service.size
    most = 1e3 * largest / float(service[-1]) * instances
    return (
        f"{rate:g} requests/s is not below the {most:.6g}/s that full batches of {largest} "
        f"({service[-1]:.4g} ms each) can serve"
    )
