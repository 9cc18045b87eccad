"""One model in a joint search: where it stands, what it would need, and how far guesses at it have
been off. Pure.

A guess reads a table of the queue (:mod:`igniterd.queueing.table`) with the model's service times
as they are at its present share beside its present neighbours; at other shares they are taken to
differ from those alone by the same factors. What the queue itself says where a guess has led
corrects the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.predict import (
    Demand,
    LatencyPrediction,
    LatencyPredictor,
    Neighbours,
    as_tenants,
    quantised,
)
from igniterd.queueing.kernels import table as kernel
from igniterd.queueing.table import queue_table
from igniterd.records import Allocation

BATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
MEND = 2.0
"""The most by which a guess is corrected, either way."""
OVER = 1.1
"""How much is added to a guess where the queue says overload."""
ROOM_COST = 1.02
"""Of the P99, for a larger batch limit."""
WORTH = 0.1
"""What a larger share must bring: the least fall of the P99 for the growth of the share, both as
logarithms."""
EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where a model stands: units of share, the number of its largest batch, how it fares there and
    what it is to its neighbours."""

    units: int
    size: int
    service: LatencyPrediction | None = None
    as_neighbours: Neighbours = ()


class TenantSearch:
    """See the module. ``low`` and ``high`` bound its units of share."""

    def __init__(self, predictor: LatencyPredictor, demand: Demand) -> None:
        self.predictor, self.demand = predictor, demand
        self.unit = predictor.model.share_unit
        most = 1 / demand.most_instances  # each instance is a process with the whole share
        self.low = max(1, math.ceil(min(demand.min_share, most) / self.unit - EPS))
        self.high = max(self.low, math.floor(min(demand.max_share, most) / self.unit + EPS))
        if not demand.steerable:
            self.low = self.high = round(1 / self.unit)
        elif demand.pinned is not None:
            self.low = self.high = max(
                1, math.ceil(demand.pinned.effective_share / self.unit - EPS)
            )
        self.sizes = np.array(
            [b for b in BATCHES if demand.min_batch <= b < demand.max_batch] + [demand.max_batch],
            dtype=np.int64,
        )
        self.mend, self.asked = np.ones(self.sizes.size), np.zeros(self.sizes.size, dtype=np.bool_)
        self.table = queue_table(demand.arrival_scv)
        self.alone = np.pad(predictor.alone_ms(demand), ((0, 0), (1, 0)), constant_values=1.0)
        self.position = Candidate(self.low, 0)
        self.growth, self.fixed, self._failed, self._rate = 1.0, False, 0, 0.0

    @property
    def service(self) -> LatencyPrediction | None:
        return self.position.service

    @property
    def as_neighbours(self) -> Neighbours:
        return self.position.as_neighbours

    @property
    def siblings(self) -> Neighbours:
        """What one instance of the model feels of the others."""
        return self.position.as_neighbours[1:] if self.demand.instances > 1 else ()

    def granted_on(self, gpu: str) -> int:
        """Units of share of ``gpu`` that its instances there may use together."""
        return self.position.units * self.demand.instances_on(gpu)

    @property
    def allocation(self) -> Allocation:
        return self._allocation(self.position.units, self.position.size)

    def _allocation(self, units: int, size: int) -> Allocation:
        if self.demand.pinned is not None:
            return self.demand.pinned
        share = self.share(units) if self.demand.steerable else None
        return Allocation(
            share,
            self.demand.keeps_batch or int(self.sizes[size]),
            0,
            self.demand.instances,
            self.demand.devices,
        )

    def share(self, units: int) -> float:
        return round(min(1.0, units * self.unit), 6)

    def start(
        self, growth: float, fixed: tuple[Allocation, LatencyPrediction] | None = None
    ) -> None:
        """Begin at another growth of the rate, from the last position; or stay where ``fixed``
        says."""
        self.growth, self.fixed, self._failed = growth, fixed is not None, 0
        self._rate = self.predictor.planned_rate(self.demand, growth) / 1000 / self.demand.instances
        if fixed is not None:
            self.place(*fixed)

    def place(self, allocation: Allocation, service: LatencyPrediction | None = None) -> None:
        """Sit at ``allocation``, faring like ``service``, as before if that is not given."""
        units = self.high if allocation.share is None else round(allocation.share / self.unit)
        self._take(
            units,
            int(np.searchsorted(self.sizes, allocation.max_batch_size)),
            service or self.service,
        )

    def _take(self, units: int, size: int, service: LatencyPrediction | None) -> None:
        neighbours = (
            as_tenants(self.demand, self._allocation(units, size), service)
            if service is not None
            else ()
        )
        self.position = Candidate(units, size, service, quantised(neighbours))

    # ------------------------------------------------------------ guesses

    def _curve_ms(self, beside: Neighbours) -> F64:
        """Service times at the present share, with an unused leading element."""
        return np.append(
            1.0, self.predictor.corrected_ms(self.demand, self.share(self.position.units), beside)
        )

    def _least(self, curve: F64, low: int) -> tuple[int, int, LatencyPrediction]:
        """Least units that hold the SLO by guess (one more than ``high`` when none do), the best
        largest batch there, and how it does."""
        units, size, p99_ms, utilisation, batch = kernel.least_units(
            self.table,
            self.alone,
            curve / self.alone[self.position.units - 1],
            self.sizes,
            self.mend,
            self._rate,
            self.demand.slo_ms,
            min(low, self.high),
            self.high,
            self.position.units,
        )
        return units, size, LatencyPrediction(p99_ms, math.nan, math.nan, utilisation, batch)

    def guess(self, beside: Neighbours, free: bool) -> bool | None:
        """Move to where the SLO holds by guess; whether that is a move, None if no share holds it.
        Not ``free``: never to less."""
        now = self.position
        units, size, service = self._least(
            self._curve_ms(beside), self.low if free else max(self.low, now.units)
        )
        if units > self.high:
            return None
        self._take(units, size, service)
        return units != now.units or now.service is None

    def move(self, units: int) -> None:
        """To another share, faring as before."""
        self._take(units, self.position.size, self.service)

    def slo_ratio(self, beside: Neighbours) -> float:
        """P99 over SLO where the model sits, by guess, with the largest batch that makes it least;
        which it takes."""
        curve = self._curve_ms(beside)
        size, p99_ms = kernel.best(self.table, curve, self.sizes, self.mend, self._rate)
        found = kernel.evaluate(self.table, curve, int(self.sizes[size]), self._rate)
        self._take(
            self.position.units, size, LatencyPrediction(p99_ms, math.nan, math.nan, *found[1:])
        )
        return float(p99_ms) / self.demand.slo_ms

    def enough(self, beside: Neighbours) -> int:
        """Fewest units, from where the model sits, beyond which no share is worth more by guess:
        what waits for its host is no faster there.

        ``high`` where that is less than twice as much: so far the bound of the service times has
        ripples, and dips where they were measured.
        """
        first = self.position.units
        factors = self._curve_ms(beside) / self.alone[first - 1]
        p99_ms = np.array(
            [
                kernel.best(self.table, curve * factors, self.sizes, self.mend, self._rate)[1]
                for curve in self.alone[first - 1 : self.high]
            ]
        )
        # the same at every share where what is gained is just worth it
        value = p99_ms * np.arange(first, self.high + 1) ** WORTH
        units = first + int(np.argmax(value <= np.minimum.accumulate(value[::-1])[::-1]))
        return units if 2 * units <= self.high and math.isfinite(value[-1]) else self.high

    def enlarge_batch(self, beside: Neighbours, *, largest: bool) -> None:
        """Guess how the model fares where it sits; ``largest``: with the largest limit that costs
        next to nothing."""
        curve, size = self._curve_ms(beside), self.position.size
        p99_ms, utilisation, batch = kernel.evaluate(
            self.table, curve, int(self.sizes[size]), self._rate
        )
        if largest:
            limit_ms = min(p99_ms * ROOM_COST, max(p99_ms, self.demand.slo_ms / self.mend[size]))
            for wider in range(self.sizes.size - 1, size, -1):
                found = kernel.evaluate(self.table, curve, int(self.sizes[wider]), self._rate)
                if found[0] <= limit_ms:
                    size, (p99_ms, utilisation, batch) = wider, found
                    break
        self._take(
            self.position.units,
            size,
            LatencyPrediction(p99_ms * self.mend[size], math.nan, math.nan, utilisation, batch),
        )

    # ------------------------------------------------------------ the queue itself

    def check(self, beside: Neighbours, free: bool) -> bool | None:
        """As :meth:`guess`, but what holds the SLO where the model sits is asked of the queue; no
        more than one question a call."""
        now = self.position
        served = self.predictor.served(
            self.demand, self._allocation(now.units, now.size), beside, growth=self.growth
        )
        curve = self._curve_ms(beside)
        self._learn(curve, now.size, served.p99_ms)
        holds = served.p99_ms <= self.demand.slo_ms
        units, size, service = self._least(
            curve, max(self.low, self._failed + 1 if holds and free else now.units)
        )
        if holds and units >= now.units:
            self._take(now.units, now.size, served)
            return now.service != served
        if (units, size) == (now.units, now.size):  # the guess cannot be corrected so far
            units += 1
        if not holds and units > now.units:
            self._failed = now.units
        if units > self.high:
            return self._last_resort(beside)
        self._take(units, size, service)
        return True

    def _learn(self, curve: F64, size: int, p99_ms: float) -> None:
        """Correct the guesses by what the queue says of one."""
        guessed = kernel.evaluate(self.table, curve, int(self.sizes[size]), self._rate)[0]
        if not math.isfinite(guessed):
            return
        ratio = p99_ms / guessed if math.isfinite(p99_ms) else self.mend[size] * OVER
        self.mend[size] = min(MEND, max(1 / MEND, ratio))
        self.asked[size] = True
        self.mend[~self.asked] = self.mend[size]

    def _last_resort(self, beside: Neighbours) -> bool | None:
        """The largest share allowed, with any batch limit whose P99 holds; None if none does."""
        order: I64 = np.argsort(
            np.abs(np.arange(self.sizes.size) - self.position.size), kind="stable"
        )
        for size in order.tolist():
            served = self.predictor.served(
                self.demand, self._allocation(self.high, size), beside, growth=self.growth
            )
            if served.p99_ms <= self.demand.slo_ms:
                moved = (self.high, size) != (
                    self.position.units,
                    self.position.size,
                ) or self.service != served
                self._take(self.high, size, served)
                return moved
        return None
