"""Which points to measure, of a model alone and of pairs. Pure.

Alone: the point that takes most off what is still unknown, for the time it costs. The solo surface
(:mod:`igniterd.perf.surface`) knows how certain it is everywhere. What is left unknown is its
variance averaged over the region of use: every batch to the largest, each weighed by 1 / batch
because small ones are run more, at ten shares. A candidate at the share that is applied already
costs its measurement alone; any other costs a reload as well. Where reloads are slow, that is what
makes several batches be measured at one share before the next is tried.

Pairs: two co-runs each. One model has more of the GPU and small batches, the other less and large
ones, then the other way round, as in the shipped profile; in an order of few reloads. Where reloads
are slow, every model gets half the GPU once, and a pair's two co-runs differ in their batches
alone. Every model is also measured alone as it will be in its co-runs, so that what a neighbour
costs is a difference of two measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.surface import NOISE_SD, Surface

Point = tuple[int, float]
"""(batch, share)."""
CHEAP_S = 4.0
"""A minute a model, its pairs included, leaves about this long for each of eleven points."""
_SHARES = 10


@dataclass(frozen=True, slots=True)
class Span:
    """The range to profile: batches 1..``max_batch``, shares ``min_share``..1 in units of
    ``unit``."""

    max_batch: int
    min_share: float
    unit: float

    @property
    def batches(self) -> tuple[int, ...]:
        """Powers of two, and the largest."""
        powers = [2**i for i in range(self.max_batch.bit_length()) if 2**i <= self.max_batch]
        return tuple(sorted({*powers, self.max_batch}))

    @property
    def shares(self) -> tuple[float, ...]:
        """Ten shares from the least to the whole GPU, each a whole number of units."""
        units = round(1.0 / self.unit)
        least = max(1, min(units, round(self.min_share * units)))
        counts = sorted({round(float(n)) for n in np.linspace(least, units, _SHARES)})
        return tuple(n / units for n in counts)

    @property
    def candidates(self) -> tuple[Point, ...]:
        return tuple((b, s) for s in self.shares for b in self.batches)

    @property
    def corners(self) -> tuple[Point, ...]:
        """What is measured first: the ends of both ranges, but not the largest batch at the
        smallest share, which takes longest."""
        low, high = self.shares[0], self.shares[-1]
        return tuple(
            dict.fromkeys(
                ((self.batches[0], high), (self.batches[-1], high), (self.batches[0], low))
            )
        )

    def within(self, most_batch: int) -> Span:
        """The range without batches above ``most_batch``."""
        return replace(self, max_batch=min(self.max_batch, most_batch))


class Unknown:
    """What is left unknown of a model once some points are measured.

    ``measured`` maps (batch, share) to the GPU time (ms) and its relative standard error.
    """

    def __init__(self, span: Span, measured: Mapping[Point, tuple[float, float]]) -> None:
        batch, share = np.array(list(measured), dtype=np.float64).reshape(-1, 2).T
        time, error = np.array(list(measured.values())).reshape(-1, 2).T
        self._surface = Surface(batch, share, time, error)
        self._span, self._measured = span, frozenset(measured)
        use = np.arange(1.0, span.max_batch + 1)
        shares = np.linspace(span.shares[0], span.shares[-1], _SHARES)
        self._batch, self._share = np.repeat(use, _SHARES), np.tile(shares, use.shape[0])
        self._weight = 1.0 / self._batch / np.sum(1.0 / self._batch)

    @property
    def deviation(self) -> float:
        """Standard deviation of the relative time, root mean square over the region of use."""
        _, variance = self._surface.at(self._batch, self._share)
        return float(np.sqrt(self._weight @ variance))

    def gains(self, points: Sequence[Point], errors: F64) -> F64:
        """How much of the mean variance each of ``points`` would take away, measured to relative
        ``errors``; shape (points,)."""
        batch, share = np.array(points, dtype=np.float64).T
        across = self._surface.covariance_left(self._batch, self._share, batch, share)
        _, own = self._surface.at(batch, share)
        return np.asarray(self._weight @ across**2 / (own + NOISE_SD**2 + errors**2))

    def time_ms(self, point: Point) -> float:
        """What a batch is expected to take there."""
        mean, _ = self._surface.at(np.array([float(point[0])]), np.array([point[1]]))
        return float(mean[0])

    def best(self, price: Callable[[Point, float], tuple[float, float]]) -> Point | None:
        """The candidate with the most gain a second, those below ``CHEAP_S`` by gain alone;
        ``None`` when every candidate is measured.

        ``price(point, expected_ms)`` says what measuring it takes (s) and the relative error that
        is reached in that time.
        """
        open_points = [p for p in self._span.candidates if p not in self._measured]
        if not open_points:
            return None
        cost_s, error = np.array([price(p, self.time_ms(p)) for p in open_points]).T
        return open_points[
            int(np.argmax(self.gains(open_points, error) / np.maximum(cost_s, CHEAP_S)))
        ]


def most_out_of_order(measured: Mapping[Point, tuple[float, float]], slack: float) -> Point | None:
    """The point that contradicts the most others, ``None`` when none does: more work on fewer SMs
    was faster by more than ``slack``.

    ``measured`` maps points to time (ms) and relative standard error; of two that contradict each
    other alone, the less certain one.
    """
    conflicts = dict.fromkeys(measured, 0)
    for easy, (easy_ms, _) in measured.items():
        for hard, (hard_ms, _) in measured.items():
            if hard[0] >= easy[0] and hard[1] <= easy[1] and hard_ms < easy_ms * (1 - slack):
                conflicts[easy] += 1
                conflicts[hard] += 1
    worst = max(measured, key=lambda p: (conflicts[p], measured[p][1]))
    return worst if conflicts[worst] else None


MORE, LESS = (0.6, 2), (0.4, 16)
"""(share, batch) of the two tenants of a co-run."""
EVEN = (4, 8)
"""Batches at half the GPU each."""
SLOW_RELOAD_S = 5.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One tenant of a co-run."""

    model: str
    batch: int
    share: float


Run = tuple[Setting, Setting]


def operating_points(largest: int, unit: float, *, even: bool) -> tuple[Point, Point]:
    """(batch, share) of the two tenants of a co-run, shares in whole units of the board; ``even``:
    half the GPU each."""
    if even:
        half = _units(0.5, unit)
        return (min(EVEN[0], largest), half), (min(EVEN[1], largest), half)
    less = _units(LESS[0], unit)
    return (min(LESS[1], largest), less), (min(MORE[1], largest), _units(1.0 - less, unit))


def co_runs(largest: dict[str, int], unit: float, *, even: bool) -> tuple[Run, ...]:
    """The co-runs of every pair of the models, ``largest`` their largest batches."""
    models = list(largest)
    pairs = [(a, b) for a in models for b in models if a != b] if even else _few_flips(models)
    points = {m: operating_points(largest[m], unit, even=even) for m in models}
    return tuple((Setting(a, *points[a][0]), Setting(b, *points[b][1])) for a, b in pairs)


def _few_flips(models: Sequence[str]) -> list[tuple[str, str]]:
    """Every ordered pair (less, more), so that few models change their share from one to the next.

    The models take the lesser share one after another, and then give it back in the same order: 2 n
    - 1 changes in all.
    """
    order, done = list[tuple[str, str]](), set[tuple[str, str]]()

    def add(less: Sequence[str], more: Sequence[str]) -> None:
        fresh = [(s, g) for s in less for g in more if (s, g) not in done]
        order.extend(fresh)
        done.update(fresh)

    for count in range(1, len(models)):
        add(models[:count], models[count:])
    for count in range(1, len(models)):
        add(models[count:], models[:count])
    return order


def _units(share: float, unit: float) -> float:
    """``share`` as a whole number of units, at most the largest one that fits half the board
    twice."""
    units = round(1.0 / unit)
    return max(1, int(share * units + 1e-9)) / units
