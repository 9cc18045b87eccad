"""Which points to measure of a model alone. Pure.

The ends of the range first, then the point that takes most off what is still unknown, for the time
it costs. The solo surface (:mod:`igniterd.perf.surface`) knows how certain it is everywhere. What
is left unknown is its variance averaged over the region of use: every batch to the largest, each
weighed by 1 / batch because small ones are run more, at ten shares. Where a batch waits for its
host, one figure says nearly all: such places count by how far the time follows the GPU there, so
points go to the knee and beyond. A candidate at the share that is applied already costs its
measurement alone; any other costs a reload as well. Where reloads are slow, that is what makes
several batches be measured at one share before the next is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.surface import NOISE_SD, Surface, make_grid
from igniterd.perf.trend import greater

Point = tuple[int, float]
"""(batch, share)."""
CHEAP_S = 4.0
"""A minute a model, its pairs included, leaves about this long for each of eleven points."""
FAR = 3.0
"""A point that takes this many times as long as there is for one is too slow to be measured for
being an end of the range."""
_SHARES = 10
_FOLLOWS = 8.0  # a time falls from the GPU's to the host's within a tenth or two of the knee


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
        """What is measured first: the ends of both ranges, the one that takes longest last."""
        few, most, low, high = self.batches[0], self.batches[-1], self.shares[0], self.shares[-1]
        return tuple(dict.fromkeys(((few, high), (most, high), (few, low), (most, low))))

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
        self.surface = Surface(batch, share, time, error)
        self._span, self._measured = span, dict(measured)
        use, weight = _use(span)
        shares = np.linspace(span.shares[0], span.shares[-1], _SHARES)
        self._batch, self._share = np.repeat(use, _SHARES), np.tile(shares, use.shape[0])
        gpu, host, self._variance = self.surface.parts(self._batch, self._share)
        follows = (gpu / greater(host, gpu)) ** _FOLLOWS if self.surface.floored else 1.0
        counted = np.repeat(weight, _SHARES) * follows
        self._weight = counted / np.sum(counted)
        self._expected = dict[Point, tuple[float, float]]()

    def of(self, span: Span, measured: Mapping[Point, tuple[float, float]]) -> bool:
        """Whether this is what is left unknown of ``span`` once ``measured`` is known."""
        return self._span == span and self._measured == measured

    @property
    def deviation(self) -> float:
        """Standard deviation of the relative time, root mean square over the region of use."""
        return float(np.sqrt(self._weight @ self._variance))

    def gains(self, points: Sequence[Point], errors: F64) -> F64:
        """How much of the mean variance each of ``points`` would take away, measured to relative
        ``errors``; shape (points,)."""
        batch, share = np.array(points, dtype=np.float64).T
        across = self.surface.covariance_left(self._batch, self._share, batch, share)
        _, own = self._at(points)
        return np.asarray(self._weight @ across**2 / (own + NOISE_SD**2 + errors**2))

    def times_ms(self, points: Sequence[Point]) -> F64:
        """What a batch is expected to take at each of ``points``, shape (points,)."""
        return self._at(points)[0]

    def time_ms(self, point: Point) -> float:
        """What a batch is expected to take there."""
        return float(self.times_ms([point])[0])

    def _at(self, points: Sequence[Point]) -> tuple[F64, F64]:
        """Mean (ms) and variance of its logarithm, each (points,). Kept: where there are many
        hypotheses, asking once for many points is much quicker than one by one."""
        if fresh := [p for p in points if p not in self._expected]:
            mean, variance = self.surface.at(*np.array(fresh, dtype=np.float64).T)
            found = zip(mean.tolist(), variance.tolist(), strict=True)
            self._expected |= zip(fresh, found, strict=True)
        mean, variance = np.array([self._expected[p] for p in points]).T
        return mean, variance

    def best(self, price: Callable[[Point, float], tuple[float, float]]) -> Point | None:
        """The candidate with the most gain a second, those below ``CHEAP_S`` by gain alone;
        ``None`` when every candidate is measured.

        ``price(point, expected_ms)`` says what measuring it takes (s) and the relative error that
        is reached in that time.
        """
        open_points = [p for p in self._span.candidates if p not in self._measured]
        if not open_points:
            return None
        expected = zip(open_points, self.times_ms(open_points), strict=True)
        cost_s, error = np.array([price(p, float(ms)) for p, ms in expected]).T
        return open_points[
            int(np.argmax(self.gains(open_points, error) / np.maximum(cost_s, CHEAP_S)))
        ]

    def slowest(
        self, price: Callable[[Point, float], tuple[float, float]], limit_s: float
    ) -> Point | None:
        """The last corner, with as large a batch as can be measured in ``limit_s``; ``None`` when
        none can, or when the least share has been measured with more than the least batch."""
        low, (few, *more) = self._span.shares[0], self._span.batches
        if not more or any(b > few and s == low for b, s in self._measured):
            return None
        ends = [(b, low) for b in reversed(more)]
        expected = zip(ends, self.times_ms(ends), strict=True)
        return next((p for p, ms in expected if price(p, float(ms))[0] <= limit_s), None)


def _use(span: Span) -> tuple[F64, F64]:
    """Batches that stand for every one to the largest, and their weights: the sum of 1 / batch
    over those each stands for."""
    use = make_grid(span.max_batch, span.unit).batches
    use = use[use <= span.max_batch]
    every = np.arange(1.0, span.max_batch + 1)
    nearest = np.searchsorted(0.5 * (use[1:] + use[:-1]), every)
    return use, np.bincount(nearest, 1.0 / every, use.shape[0]).astype(np.float64)


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
