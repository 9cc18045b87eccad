"""What a model's P99 is on a GPU that it shares: service times under interference, then the queue.
Pure.

This is the only predictor: the daemon, the planner and the demo ask it. Tenants slow each other by
executing, and how long a tenant executes depends on how slowed it is;
:meth:`LatencyPredictor.together_all` finds the fixed point by turns.

Questions and rounding. ``exact=True`` answers what is asked. Without it, answers are remembered on
rounded questions, because a search and the ticks after it ask nearly the same again and again:

- a rate is rounded up to a power of 1.02; a bias, a bound and a dispersion from live traffic to
  powers of 1.01, 1.02 and 1.05,
- how busy a neighbour is, up to a multiple of 0.05, and its mean batch to the nearest half.

So a remembered answer is the exact one for a slightly harder question, but for the neighbours'
batches, whose rounding weighs less than a percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from igniterd.arrays import F64
from igniterd.colocation import (
    UTILISATION_STEP,
    CoLocation,
    Demand,
    FixedPoint,
    LatencyPrediction,
    Neighbours,
    as_tenants,
    quantised,
)
from igniterd.estimators.bias import CENTRE, bound, elsewhere, pressure_of
from igniterd.memo import Memo
from igniterd.perf.api import UNCAPPED, PerformanceModel, Tenant
from igniterd.queueing.parallel import map_threads
from igniterd.queueing.tail import MAX_CV, SERVICE_CV, response_time
from igniterd.records import Allocation

__all__ = [
    "CoLocation",
    "Demand",
    "LatencyPrediction",
    "LatencyPredictor",
    "Neighbours",
    "as_tenants",
    "quantised",
    "service_cv",
]

RATE_STEP = 1.02
BIAS_STEP = 1.01
TILT_STEP = 0.02
BOUND_STEP = 1.02
CV_STEP = 1.05
SAME_PLACE = 0.1
"""Beside uncapped neighbours, a bound from live traffic counts where their pressure is within this
of where it was learnt."""
ROUNDS = 4
"""Turns of the fixed point at most; each shrinks the error by the slowdown (about 0.1)."""
SETTLED = 0.004
"""The fixed point ends once nobody is busier or idler by this; of a rounded question, by half a
step."""
MEMO_SIZE = 2_000
"""Answers of each kind that are remembered at least; twice as many take eleven megabytes. A search
for twelve models asks for some 200, five minutes of traffic of 64 models for some 1,400."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Service times (ms) of batches 1..B as profiled, each (B,), and where they hold.

    ``number`` is no other curve's of the same predictor, so that answers of a forgotten one are
    never taken for those of another.
    """

    number: int
    mean_ms: F64
    upper_ms: F64
    share: float
    pressure: float
    cv: float = SERVICE_CV  # of one service time alone
    met_cv: float = 0.0  # what meeting uncapped neighbours adds to it
    contended: bool = False  # an uncapped neighbour executes on the same SMs


class LiveCorrection(NamedTuple):
    """What live traffic makes of a curve: ``bias`` at the central batch, ``tilt`` with every
    doubling of the batch, ``bound`` the upper bound over the mean where that is tighter, ``cv`` the
    dispersion of one service time where that is learnt."""

    bias: float
    tilt: float = 0.0
    bound: float = math.inf
    cv: float | None = None


class _Question(NamedTuple):
    """One queue to solve: how ``demand`` fares at ``rate_per_s`` items, of which a request brings
    ``brings`` and a batch has ``max_batch`` at most."""

    demand: Demand
    allocation: Allocation
    curve: Curve
    live: LiveCorrection
    rate_per_s: float
    brings: int
    max_batch: int

    def key(self) -> tuple[object, ...]:
        """What the answer depends on."""
        demand, allocation, curve, live, rate_per_s, brings, max_batch = self
        return (
            curve.number,
            max_batch,
            allocation.max_queue_delay_us,
            allocation.instances,
            rate_per_s,
            live,
            demand.arrival_scv,
            brings,
        )


class LatencyPredictor:
    """Predictions for the tenants of one kind of GPU at one confidence level.

    ``upper=False`` predicts with mean service times instead of their upper bounds at ``level``:
    what to expect, rather than what to promise. ``exact=True`` rounds and remembers nothing.
    """

    def __init__(
        self, model: PerformanceModel, *, level: float, upper: bool = True, exact: bool = False
    ) -> None:
        self.model = model
        self.level = level
        self.upper = upper
        self.exact = exact
        self._alone: dict[tuple[str, int], F64] = {}
        self._curves: Memo[Curve] = Memo(MEMO_SIZE)
        self._served: Memo[LatencyPrediction] = Memo(MEMO_SIZE)
        self._numbers = count()

    # ------------------------------------------------------------ service times

    def curve_ms(
        self, profiled_as: str, *, max_batch: int, share: float, beside: Neighbours
    ) -> F64:
        """Service time (ms) of batches 1..max_batch as profiled, shape (max_batch,)."""
        curve = self._curve(profiled_as, max_batch, share, beside)
        return curve.upper_ms if self.upper else curve.mean_ms

    def corrected_ms(self, demand: Demand, share: float, beside: Neighbours) -> F64:
        """The same as live traffic corrects it: what the queue of ``demand`` is predicted from,
        shape (demand.max_batch,)."""
        curve = self._curve(demand.profiled_as, demand.max_batch, share, beside)
        return self._corrected(curve, demand.max_batch, self._live(demand, curve))

    def dispersion(
        self, profiled_as: str, *, max_batch: int, share: float, beside: Neighbours
    ) -> tuple[float, float]:
        """Coefficient of variation of one service time: as profiled, and what uncapped neighbours
        add to it."""
        curve = self._curve(profiled_as, max_batch, share, beside)
        return curve.cv, curve.met_cv

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

    def _curve(self, profiled_as: str, max_batch: int, share: float, beside: Neighbours) -> Curve:
        if self.exact:
            return self._new_curve(profiled_as, max_batch, share, beside)
        key = (profiled_as, max_batch, round(share, 4), beside)
        known = self._curves.get(key)
        if known is None:
            known = self._new_curve(profiled_as, max_batch, share, beside)
            self._curves.keep(key, known)
        return known

    def _new_curve(
        self, profiled_as: str, max_batch: int, share: float, beside: Neighbours
    ) -> Curve:
        mean, upper = self.model.service_curve_ms(
            profiled_as, share, beside, max_batch, level=self.level
        )
        loose = [t for t in beside if t.share >= UNCAPPED]
        cv = service_cv(self.model, profiled_as)
        met = self._met_cv(profiled_as, share, loose, mean) if loose else 0.0
        pressure = pressure_of(beside)
        return Curve(next(self._numbers), mean, upper, share, pressure, cv, met, bool(loose))

    def _met_cv(
        self, profiled_as: str, share: float, loose: Sequence[Tenant], mean_ms: F64
    ) -> float:
        """The dispersion that uncapped neighbours add that execute some of the time: a batch that
        meets one is slower by all that it costs, another is not. At the middle of the batches."""
        at = len(mean_ms) // 2

        def ms(beside: Neighbours) -> float:
            found = self.model.service_curve_ms(profiled_as, share, beside, at + 1)
            return float(found[0][at])

        alone, variance = ms(()), 0.0
        for t in loose:
            met = ms((t._replace(utilisation=1.0),)) - alone
            variance += t.utilisation * (1.0 - t.utilisation) * (met / float(mean_ms[at])) ** 2
        return math.sqrt(variance)

    def _live(self, demand: Demand, curve: Curve) -> LiveCorrection:
        if demand.learnt is None:
            return LiveCorrection(self._up(demand.bias, BIAS_STEP))
        log_bias, tilt, sd = elsewhere(demand.learnt, curve.share, curve.pressure)
        # what was learnt beside others says little of a neighbour that meets it on the same SMs
        unlike = curve.contended and abs(curve.pressure - demand.learnt.pressure) > SAME_PLACE
        return LiveCorrection(
            self._up(math.exp(log_bias), BIAS_STEP),
            tilt if self.exact else round(tilt / TILT_STEP) * TILT_STEP,
            self._up(bound(sd, self.level), BOUND_STEP) if self.upper and not unlike else math.inf,
            None if demand.learnt.cv is None else self._up(demand.learnt.cv, CV_STEP),
        )

    def _corrected(self, curve: Curve, max_batch: int, live: LiveCorrection) -> F64:
        """Service times (ms) of batches 1..max_batch: the tighter of the model's own bound and the
        one from live traffic, times the bias."""
        own = curve.mean_ms[:max_batch]
        if self.upper:
            own = np.minimum(curve.upper_ms[:max_batch], own * live.bound)
        if live.tilt == 0:
            return own * live.bias
        doublings = np.log2(np.arange(1, max_batch + 1)) - CENTRE
        return np.asarray(own * live.bias * np.exp(live.tilt * doublings))

    # ------------------------------------------------------------ one model

    def planned_rate(self, demand: Demand, growth: float) -> float:
        """The rate (1/s) that is asked for when that of ``demand`` is ``growth`` times as high."""
        return self._up(demand.rate_per_s * growth, RATE_STEP)

    def served(
        self, demand: Demand, allocation: Allocation, beside: Neighbours, *, growth: float = 1.0
    ) -> LatencyPrediction:
        """How ``demand``, its rate times ``growth``, fares under ``allocation`` beside
        ``beside``."""
        question = self._question(demand, allocation, beside, growth)
        return self._solve(question) if self.exact else self._remembered(question)

    def _question(
        self, demand: Demand, allocation: Allocation, beside: Neighbours, growth: float
    ) -> _Question:
        share, brings = allocation.effective_share, max(1, demand.brings)
        curve = self._curve(demand.profiled_as, demand.max_batch, share, beside)
        live, rate = self._live(demand, curve), self.planned_rate(demand, growth)
        # a batch holds one request at least
        max_batch = min(max(allocation.max_batch_size, brings), demand.max_batch) or 1
        return _Question(demand, allocation, curve, live, rate, brings, max_batch)

    def _remembered(self, question: _Question) -> LatencyPrediction:
        key = question.key()
        return self._served.get(key) or self._served.keep(key, self._solve(question))

    def _solve(self, question: _Question) -> LatencyPrediction:
        """The answer of the queue. Its requests bring ``brings`` items each, executed together."""
        demand, allocation, brings = question.demand, question.allocation, question.brings
        curve, live = question.curve, question.live
        items_ms = self._corrected(curve, question.max_batch, live)
        service_ms = of_requests(items_ms, brings)
        own = curve.cv if live.cv is None else live.cv
        cv = min(MAX_CV, math.hypot(own, curve.met_cv))
        if question.rate_per_s <= 0:
            first = float(service_ms[0])
            return LatencyPrediction(first * (1 + 2.33 * cv), first, first, 0.0, float(brings))
        result = response_time(
            question.rate_per_s / brings,
            np.ascontiguousarray(service_ms),
            service_cv=cv,
            max_queue_delay_ms=allocation.max_queue_delay_us / 1000,
            instances=allocation.instances,
            arrival_scv=demand.arrival_scv,
        )
        if not result.success:
            return _overload(float(service_ms.shape[0] * brings))
        return LatencyPrediction(
            p99_ms=result.p99_ms,
            p50_ms=result.p50_ms,
            mean_ms=result.mean_ms,
            utilisation=min(1.0, result.utilisation),
            mean_batch=result.mean_batch * brings,
        )

    # ------------------------------------------------------------ all models of a GPU

    def together(
        self,
        demands: Sequence[Demand],
        allocations: Mapping[str, Allocation],
        *,
        growth: float = 1.0,
        near: Mapping[str, LatencyPrediction] | None = None,
    ) -> dict[str, LatencyPrediction]:
        """How every model fares with all of them on one GPU, by ``Demand.model``."""
        return self.together_all([CoLocation(demands, allocations, near or {})], growth=growth)[0]

    def together_all(
        self, gpus: Sequence[CoLocation], *, growth: float = 1.0
    ) -> list[dict[str, LatencyPrediction]]:
        """The same for many GPUs of this kind at once: the fixed point of busy times and mutual
        slowing of each. An exact predictor solves the queues of a turn on all processors."""
        settled = SETTLED if self.exact else UTILISATION_STEP / 2

        def ask(question: tuple[Demand, Allocation, Neighbours]) -> LatencyPrediction:
            return self.served(*question, growth=growth)

        turns = [FixedPoint(gpu) for gpu in gpus if gpu.demands]
        pending = turns
        for _ in range(ROUNDS):
            questions = [each for turn in pending for each in turn.asked(exact=self.exact)]
            answers = iter(map_threads(ask, questions) if self.exact else map(ask, questions))
            pending = [turn for turn in pending if turn.moved(answers) > settled]
            if not pending:
                break
        served = iter(turns)
        return [next(served).served if gpu.demands else {} for gpu in gpus]

    def _up(self, value: float, step: float) -> float:
        """``value`` rounded up to the next power of ``step``, where this rounds; none is below 0.

        Raises ``ValueError`` for what is not a number: such a model is not taken for an idle one.
        """
        if math.isnan(value):
            raise ValueError(f"a rate, bias or bound is {value}; a number is needed")
        if value <= 0:
            return 0.0
        if self.exact:
            return value
        return float(step ** math.ceil(math.log(value, step) - 1e-9))


def _overload(max_batch: float) -> LatencyPrediction:
    return LatencyPrediction(math.inf, math.inf, math.inf, 1.0, max_batch)


def service_cv(model: PerformanceModel, profiled_as: str) -> float:
    """Coefficient of variation of one service time, as the queue takes it: from the profile where
    that has it."""
    measured = model.service_cv(profiled_as)
    return SERVICE_CV if measured is None else min(MAX_CV, measured)


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
