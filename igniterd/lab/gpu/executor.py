"""How an execution on the emulated GPU goes on while others come and go.

An execution is an amount of work: the time it would take alone at its share. It is done at a rate
that depends on who else executes:

- Tenants with an MPS share run together. Each does its work at 1 / slowdown, the slowdown by the
  rules of ``truth.py``. When the shares of those executing exceed the whole board, everyone is
  slower by that excess.
- A process without an MPS share owns the whole board while it runs, and so does the group of all
  processes with one: a board without MPS runs one at a time. n of these busy together each get 1/n
  of the time (time slices are much shorter than an execution).
- A copy with a host floor does its work no faster than its host launches it. Others count it with
  the part of the time for which it keeps the GPU busy: in their slowdown, in the shares that exceed
  the board, and as so much of a turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log, sqrt
from typing import NamedTuple

from igniterd.lab.gpu.boardfile import Slot
from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor
from igniterd.lab.gpu.truth import (
    DISPERSION_CV,
    STRAGGLER_CHANCE,
    STRAGGLER_FACTOR,
    UNITS,
    TruthTables,
    neighbour_weight,
)

SLICE_S = 0.004  # longest sleep before looking around again: others may have come or gone
# Triton counts as execution also the way of a batch to the stub process and back, which the tables
# include already: an execution is taken to have begun so much earlier. Measured on a lightly loaded
# two-core machine, so that Triton's compute time is the table's.
HANDOVER_S = 0.0008
_NEARLY_S = 20e-6  # work left that is not worth another sleep


class Running(NamedTuple):
    """Another copy that executes: indices into the tables; ``units`` is 0 without an MPS share;
    ``busy`` is the part of the time, in (0, 1], for which it keeps the GPU busy."""

    model: int
    units: int
    batch: int
    busy: float = 1.0


class Rates:
    """The rate of work of one copy: its model, units (0 without an MPS share) and host floor.

    By batch: ``solo_ms`` is its time alone, ``busy`` the part of its time for which it keeps the
    GPU busy, ``added_w`` the power above idle that it draws.
    """

    def __init__(
        self, tables: TruthTables, model: int, units: int, floor: HostFloor = NO_FLOOR
    ) -> None:
        self._shared = units > 0
        self.units = units if self._shared else UNITS
        # Plain lists: one figure out of a list is several times quicker to get than one out of an
        # array.
        gpu_ms: list[float] = tables.solo_ms[model, :, self.units].tolist()
        power_w: list[float] = tables.power_w[model, :, self.units].tolist()
        self.solo_ms = [floor.batch_ms(ms, beside=False) for ms in gpu_ms]
        # Index 0 is no batch. Of the time alone: the GPU's, and the floor beside others.
        self._gpu_part = [0.0, *(g / t for g, t in zip(gpu_ms[1:], self.solo_ms[1:], strict=True))]
        self._raised = [0.0, *(floor.least_ms(beside=True) / t for t in self.solo_ms[1:])]
        self.busy = [0.0, *(floor.busy(ms) for ms in gpu_ms[1:])]
        idle_w = tables.idle_power_w
        self.added_w = [(w - idle_w) * b for w, b in zip(power_w, self.busy, strict=True)]
        self._excess: list[list[list[float]]] = tables.excess[model, :, :, :, self.units].tolist()
        self._weight = [neighbour_weight(u, self.units) for u in range(UNITS + 1)]

    def rate(self, batch: int, others: Sequence[Running]) -> float:
        """Work done in a second, in seconds of executing alone; in (0, 1]."""
        if not others:
            return 1.0
        longer = self._gpu_part[batch] * self._gpu_slowdown(batch, others)
        return 1.0 / max(self._raised[batch], longer)

    def _gpu_slowdown(self, batch: int, others: Sequence[Running]) -> float:
        without = sum(o.busy for o in others if o.units == 0)
        beside = [o for o in others if o.units > 0]
        if not self._shared:
            return 1.0 + without + min(1.0, sum(o.busy for o in beside))
        slowdown = 1.0 + sum(
            self._excess[o.model][batch][o.batch] * self._weight[o.units] * o.busy for o in beside
        )
        granted = self.units + sum(o.units * o.busy for o in beside)
        return slowdown * max(1.0, granted / UNITS) * (1.0 + without)


class Dispersion:
    """Single executions around their mean: log-normal with mean 1, and rare stragglers; the mean of
    all is 1."""

    def __init__(
        self,
        seed: str,
        cv: float = DISPERSION_CV,
        chance: float = STRAGGLER_CHANCE,
        factor: float = STRAGGLER_FACTOR,
    ) -> None:
        self._random = random.Random(seed)
        self._sigma = sqrt(log(1.0 + cv * cv))
        self._chance, self._factor = chance, factor
        self._mean = 1.0 + chance * (factor - 1.0)

    def draw(self) -> float:
        """The next execution's time as a multiple of the mean."""
        drawn = self._random.lognormvariate(-(self._sigma**2) / 2.0, self._sigma)
        if self._random.random() < self._chance:
            drawn *= self._factor
        return drawn / self._mean


class Executor:
    """Executes batches of one copy in real time."""

    def __init__(
        self,
        rates: Rates,
        slot: Slot,
        dispersion: Dispersion,
        *,
        slow_factor: float,
        slice_s: float = SLICE_S,
        handover_s: float = HANDOVER_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rates, self._slot, self._dispersion = rates, slot, dispersion
        self._slow, self._slice_s = slow_factor, slice_s
        self._ended_s = 0.0
        self._handover_s, self._clock, self._sleep = handover_s, clock, sleep

    def execute(self, batch: int, started_s: float | None = None) -> float:
        """Take as long as this batch takes, since it reached this process at ``started_s`` (now
        when not given); returns its seconds."""
        arrived = self._clock() if started_s is None else started_s
        start = now = max(arrived - self._handover_s, self._ended_s)
        work = self._rates.solo_ms[batch] / 1e3 * self._slow * self._dispersion.draw()
        self._slot.begin(batch, self._rates.added_w[batch], start, self._rates.busy[batch])
        try:
            while work > _NEARLY_S:
                present = self._slot.others(now, now + 1e-9)
                rate = self._rates.rate(
                    batch, [Running(m, u, b, p) for m, u, b, p, _, _ in present]
                )
                wake = now + min(work / rate, self._slice_s)
                self._sleep(max(0.0, wake - self._clock()))
                before, now = now, self._clock()
                work -= self._done(batch, before, now)
        finally:
            self._slot.end(now)
            self._ended_s = now
        return now - start

    def _done(self, batch: int, since_s: float, now_s: float) -> float:
        """Work done in a span that is over, with the neighbours as they were in each part of it."""
        seen = self._slot.others(since_s, now_s)
        cuts = sorted({since_s, now_s, *(t for *_, a, b in seen for t in (a, b))})
        done = 0.0
        for a, b in pairwise(cuts):
            during = [
                Running(model, units, size, busy)
                for model, units, size, busy, start, end in seen
                if start < b and end > a
            ]
            done += (b - a) * self._rates.rate(batch, during)
        return done
