"""How much slower than predicted a model really is, learnt from live traffic. Pure.

The logarithm of measured over predicted service time is a level, and a tilt along the logarithm of
the batch. Both are tracked by a Kalman filter of a random walk: every window adds what it measured
batch by batch, each weighed by its executions, and time takes certainty away. Measurements far from
what is believed count less the farther they are (Huber's weights), so that an odd window carries
nothing away. A level that goes on moving leaves a filter behind: the mean of the last innovations
says how far, and is added where it is more than noise. What single batch sizes leave after level
and tilt is part of the bound that plans are made with.

What is learnt holds where it was learnt: at that share, beside those neighbours. A small bias is an
error of the fit at that place and says little of another; a large one is another engine, or another
clock, and goes along. On the measured V100 tables carrying small biases to other shares makes
predictions worse, see ``bench/calibrate.py``.

A model that has become another is noticed by Page's cumulative sums over the windows' standardised
innovations: windows that go on disagreeing in the same direction are not outliers. Then what was
learnt is forgotten, and what changed is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from igniterd.documents import Document
from igniterd.perf.api import Tenant
from igniterd.records import BiasEstimate

CENTRE = 2.0  # log2 of the batch at which the level is meant
LEVEL_SD = 0.05  # of the log bias, before anything is measured
# of single batch sizes around level and tilt, and how many sizes that is worth
BATCH_SD, BATCH_SIZES = 0.015, 4.0
BATCH_MEMORY = 1 / 60  # of what a size's mean is of, forgotten with every window
TILT_SD = 0.015  # of its change with every doubling of the batch
DRIFT_SD_PER_SQRT_S = 0.002  # at first; then as fast as innovations show
SLOWEST, FASTEST = 0.001**2, 0.02**2  # variances a second that this may become
PACE = 0.1  # how quickly
TILT_DRIFT_SD_PER_SQRT_S = 0.0005
SERVICE_CV = 0.1  # dispersion of one execution
# of a window's mean, however many executions, until it is learnt: neighbours' mix differs from the
# one assumed
SCATTER_SD = 0.015
SCATTER_WINDOWS = 60.0  # windows that its estimate looks back over
LEAST_SCATTER_SD = 0.005
# a log bias well above this is of the model, not of the place: carried along as James and Stein's
# estimator would
LOCAL = 0.06
OCTAVES = 0.5  # of the share over which a local bias is forgotten to 1/e
PRESSURE = 0.25  # the same for what neighbours keep busy of the GPU
CLIP_SIGMA = 2.5
CLIPPED = 0.978  # mean of a squared standard normal that counts at most CLIP_SIGMA**2
LAG_WINDOWS = 30.0  # over which innovations of one sign are taken for a level that moves
LAG_DOUBT = 1.0  # squared standard errors below which they are not
ALLOWED_SIGMA = 1.0  # innovations of this size are no sign of a change
CHANGE = 10.0  # sum of what is above that, each window at most CHANGE_CLIP
CHANGE_CLIP = 4.0
NOTABLE = 0.1  # a smaller change of the level is followed, not said
SAME_PRESSURE = 0.1
MOST_LEVEL = 5.0  # of a log bias that can be believed: e^5 times as slow
FEW = 5  # executions of a window below which nothing is learnt from it


@lru_cache(maxsize=64)
def _deviations(level: float) -> float:
    """Student's quantile (its first terms): a variance learnt from ``SCATTER_WINDOWS`` windows is
    not known exactly."""
    z = NormalDist().inv_cdf(level)
    return z * (1 + (z * z + 1) / (4 * SCATTER_WINDOWS))


@dataclass(frozen=True, slots=True)
class Measured:
    """Executions of one batch size in one window: ``ratio`` is the measured over the predicted mean
    service time."""

    batch: int
    executions: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Point:
    """Where something was learnt: the model's share, and how much of the GPU its neighbours keep
    busy."""

    share: float
    pressure: float = 0.0

    def like(self, share: float, pressure: float) -> float:
        """Correlation of the local biases here and there, in (0, 1]."""
        return math.exp(
            -abs(math.log2(self.share / share)) / OCTAVES - abs(self.pressure - pressure) / PRESSURE
        )


def pressure_of(neighbours: Iterable[Tenant]) -> float:
    """How much of the GPU ``neighbours`` keep busy: share x duty, summed."""
    return sum([t.share * t.duty for t in neighbours])


def elsewhere(learnt: BiasEstimate, share: float, pressure: float) -> tuple[float, float, float]:
    """Level, tilt and standard error that ``learnt`` gives at another share and beside other
    neighbours.

    The farther they are, the less it says, and the less surely.
    """
    if share == learnt.share and pressure == learnt.pressure:
        return learnt.level, learnt.tilt, learnt.sd
    like = Point(learnt.share, learnt.pressure).like(share, pressure)
    level = like * learnt.level + (1 - like) * _carried(learnt.level)
    return (
        level,
        like * learnt.tilt,
        math.sqrt(like * like * learnt.sd**2 + (1 - like * like) * LEVEL_SD**2),
    )


def bound(sd: float, level: float) -> float:
    """Upper bound over mean of a service time whose logarithm is known to ``sd``."""
    return math.exp(_deviations(level) * sd)


def _carried(level: float) -> float:
    """The part of a log bias that belongs to the model wherever it runs."""
    return level * max(0.0, 1 - (LOCAL / level) ** 2) if level else 0.0


class State(NamedTuple):
    """Level, tilt and their covariance."""

    level: float
    tilt: float
    p_level: float
    p_both: float
    p_tilt: float


@dataclass(frozen=True, slots=True)
class Bias:
    """Belief about the log of measured / predicted service time: ``level + tilt x (log2(batch) -
    CENTRE)``, with covariance ``p``."""

    level: float = 0.0
    tilt: float = 0.0
    p_level: float = LEVEL_SD**2
    p_both: float = 0.0
    p_tilt: float = TILT_SD**2
    drift: float = DRIFT_SD_PER_SQRT_S**2  # variance a second by which the level wanders
    scatter: float = SCATTER_SD**2  # variance of a window's mean beyond what its executions explain
    # log ratio, its variance by executions, and standardised innovation of the last window
    last: tuple[float, float, float] | None = None
    lag: float = 0.0  # mean of the last innovations: how far the level is behind one that moves
    p_lag: float = math.inf  # its variance, were there none
    # batch, executions, mean of what is left after level and tilt
    sizes: tuple[tuple[int, float, float], ...] = ()
    point: Point | None = None
    at_s: float | None = None
    windows: int = 0  # learnt from since the last change
    above: float = 0.0  # Page's sums
    below: float = 0.0

    @property
    def coming(self) -> float:
        """The level in the coming window: ahead of the one now by the lag, as far as that is more
        than noise (James and Stein)."""
        return self.level + self._moving * self.lag

    @property
    def _moving(self) -> float:
        """The part of the lag that is believed, 0 to 1."""
        return max(0.0, 1 - LAG_DOUBT * self.p_lag / (self.lag * self.lag)) if self.lag else 0.0

    @property
    def mean(self) -> float:
        """Measured over predicted service time at the central batch."""
        return math.exp(self.coming)

    @property
    def sd(self) -> float:
        """Standard error of its logarithm over a coming window."""
        believed = self._moving
        return math.sqrt(self.p_level + self.scatter + (believed * self.p_lag if believed else 0.0))

    @property
    def across(self) -> float:
        """Variance of single batch sizes around level and tilt: what they were seen to leave, and
        what is usual."""
        square, count = BATCH_SIZES * BATCH_SD**2, 0.0
        for _, executions, left in self.sizes:
            by_chance = SERVICE_CV**2 / executions
            part = BATCH_SD**2 / (BATCH_SD**2 + by_chance)
            square += part * (left * left - by_chance)
            count += part
        # level and tilt took two of them
        return max(LEAST_SCATTER_SD**2, square / (BATCH_SIZES + max(0.0, count - 2)))

    def at(self, batch: float) -> float:
        """Measured over predicted service time of ``batch``."""
        return math.exp(self.coming + self.tilt * (math.log2(batch) - CENTRE))

    def upper(self, level: float) -> float:
        """Upper bound of :attr:`mean` over a coming window."""
        return math.exp(self.coming + _deviations(level) * self.sd)

    @property
    def learnt(self) -> BiasEstimate | None:
        """For plans; None before anything is learnt."""
        if self.point is None or not self.windows:
            return None
        sd = math.sqrt(self.sd**2 + self.across)
        return BiasEstimate(self.point.share, self.point.pressure, self.coming, self.tilt, sd)

    def ahead(self, seconds: float) -> State:
        """What is believed after ``seconds`` without news."""
        p_level = min(self.p_level + self.drift * seconds, max(self.p_level, LEVEL_SD**2))
        p_tilt = min(
            self.p_tilt + TILT_DRIFT_SD_PER_SQRT_S**2 * seconds, max(self.p_tilt, TILT_SD**2)
        )
        return State(self.level, self.tilt, p_level, self.p_both, p_tilt)

    def aged(self, seconds: float) -> Bias:
        """After ``seconds`` without news."""
        ahead = self.ahead(seconds)
        return replace(self, p_level=ahead.p_level, p_tilt=ahead.p_tilt)

    def is_at(self, point: Point) -> bool:
        """Whether it was learnt at ``point``, or nearly: small moves of the neighbours are part of
        the scatter."""
        here = self.point
        return (
            here is not None
            and here.share == point.share
            and abs(here.pressure - point.pressure) < SAME_PRESSURE
        )

    def moved(self, point: Point) -> Bias:
        """At ``point``: what carries over from where it was learnt."""
        if self.point is None:
            return replace(self, point=point)
        if self.is_at(point):
            return self
        like = self.point.like(point.share, point.pressure)
        rest = 1 - like * like
        return replace(
            self,
            point=point,
            level=like * self.level + (1 - like) * _carried(self.level),
            tilt=like * self.tilt,
            p_level=like * like * self.p_level + rest * LEVEL_SD**2,
            p_both=like * like * self.p_both,
            p_tilt=like * like * self.p_tilt + rest * TILT_SD**2,
            lag=0.0,
            p_lag=math.inf,
            sizes=(),
        )


class _Sums(NamedTuple):
    """Information of one window: weights, and weighted innovations, times powers of the batch's
    coordinate."""

    w0: float = 0.0
    w1: float = 0.0
    w2: float = 0.0
    r0: float = 0.0
    r1: float = 0.0
    plain: float = 0.0  # weights and innovations before any was held back
    missed: float = 0.0


_Seen = tuple[int, int, float, float]
"""Batch size, executions, the batch's coordinate, and the mean logarithm of measured over
predicted."""


def _usable(measured: Iterable[Measured]) -> list[_Seen]:
    # the logarithm of a mean of some is low by half its variance
    return [
        (
            m.batch,
            m.executions,
            math.log2(m.batch) - CENTRE,
            math.log(m.ratio) + SERVICE_CV**2 / (2 * m.executions),
        )
        for m in measured
        if m.executions > 0 and 0 < m.ratio < math.inf
    ]


def _summed(now: State, scatter: float, usable: Sequence[_Seen]) -> _Sums:
    if sum(seen[1] for seen in usable) < FEW:
        return _Sums()
    at, tilt, p_level, p_both, p_tilt = now
    common = scatter * len(usable)  # of all batch sizes alike: it is not averaged away over them
    w0 = w1 = w2 = r0 = r1 = plain = missed = 0.0
    for _, executions, x, ratio in usable:
        noise = SERVICE_CV**2 / executions + common
        innovation = ratio - at - tilt * x
        sd = math.sqrt(noise + p_level + 2 * x * p_both + x * x * p_tilt)
        plain += 1 / noise
        missed += innovation / noise
        weight = min(1.0, CLIP_SIGMA * sd / abs(innovation)) / noise if innovation else 1 / noise
        w0 += weight
        w1 += weight * x
        w2 += weight * x * x
        r0 += weight * innovation
        r1 += weight * innovation * x
    return _Sums(w0, w1, w2, r0, r1, plain, missed)


def _filtered(now: State, sums: _Sums) -> State:
    """The Kalman filter's measurement update in information form, both parts of the state at
    once."""
    det = now.p_level * now.p_tilt - now.p_both * now.p_both
    i_level, i_both, i_tilt = (
        now.p_tilt / det + sums.w0,
        -now.p_both / det + sums.w1,
        now.p_level / det + sums.w2,
    )
    det = i_level * i_tilt - i_both * i_both
    p_level, p_both, p_tilt = i_tilt / det, -i_both / det, i_level / det
    level, tilt = (
        now.level + p_level * sums.r0 + p_both * sums.r1,
        now.tilt + p_both * sums.r0 + p_tilt * sums.r1,
    )
    return State(level, tilt, p_level, p_both, p_tilt)


def learnt(
    bias: Bias, at_s: float, measured: Iterable[Measured], point: Point
) -> tuple[Bias, float | None]:
    """``bias`` after a window of ``measured`` executions at ``point``.

    Also the factor by which the model's service times have changed, when it has just become clear
    that they have (None otherwise); everything learnt before is then forgotten.
    """
    seconds = 0.0 if bias.at_s is None else max(0.0, at_s - bias.at_s)
    if not bias.is_at(point):
        bias, seconds = bias.aged(seconds).moved(point), 0.0
    # a Bias is made once, at the end: this runs for every model at every tick
    now, usable = bias.ahead(seconds), _usable(measured)
    sums = _summed(now, bias.scatter, usable)
    if sums.plain <= 0:
        return replace(bias, p_level=now.p_level, p_tilt=now.p_tilt, at_s=at_s), None
    missed, by_chance = sums.missed / sums.plain, max(1 / sums.plain - bias.scatter, 0.0)
    variance = by_chance + bias.scatter + now.p_level
    innovation = missed / math.sqrt(variance)
    innovation = max(-CHANGE_CLIP, min(CHANGE_CLIP, innovation))
    above, below = (
        max(0.0, bias.above + innovation - ALLOWED_SIGMA),
        max(0.0, bias.below - innovation - ALLOWED_SIGMA),
    )
    if max(above, below) > CHANGE:
        if abs(missed) > NOTABLE:
            return Bias(
                level=bias.level + missed, point=bias.point, at_s=at_s, windows=1
            ), math.exp(missed)
        now, above, below = now._replace(p_level=LEVEL_SD**2), 0.0, 0.0
    drift, scatter = _paced(bias, bias.level + missed, by_chance, innovation)
    last = (bias.level + missed, by_chance, innovation)
    lag, p_lag = _lagging(
        bias, max(-CLIP_SIGMA, min(CLIP_SIGMA, innovation)) * math.sqrt(variance), variance
    )
    now = _filtered(now, sums)
    sizes, windows = _sized(bias, now.tilt, usable), bias.windows + 1
    return Bias(
        *now, drift, scatter, last, lag, p_lag, sizes, bias.point, at_s, windows, above, below
    ), None


def _sized(
    bias: Bias, tilt: float, usable: Sequence[_Seen]
) -> tuple[tuple[int, float, float], ...]:
    """What each batch size leaves, with one more window; what a window does to all its sizes alike
    is taken off first."""
    found = {
        batch: ((1 - BATCH_MEMORY) * executions, mean)
        for batch, executions, mean in bias.sizes
        if executions > 1
    }
    if len(usable) > 1:
        left = [(batch, n, ratio - tilt * x) for batch, n, x, ratio in usable]
        common = sum(n * y for _, n, y in left) / sum(n for _, n, _ in left)
        for batch, n, y in left:
            executions, mean = found.get(batch, (0.0, 0.0))
            off = max(-LEVEL_SD, min(LEVEL_SD, y - common - mean))
            total = executions + n
            found[batch] = total, mean + off * n / total
    return tuple((batch, executions, mean) for batch, (executions, mean) in found.items())


def _lagging(bias: Bias, missed: float, variance: float) -> tuple[float, float]:
    """The mean of the last innovations with one more in it, and its variance."""
    weight = 1 / min(LAG_WINDOWS, bias.windows + 1.0)
    p_lag = 0.0 if math.isinf(bias.p_lag) else bias.p_lag
    return bias.lag + weight * (missed - bias.lag), (1 - weight) ** 2 * p_lag + weight**2 * variance


def _paced(bias: Bias, ratio: float, by_chance: float, innovation: float) -> tuple[float, float]:
    """How fast the level wanders, and how much windows scatter around it.

    Where innovations agree with the ones before them the filter is too slow, where they alternate
    it is too quick. The scatter is seen in successive differences, in which a slow wander does not
    show.
    """
    if bias.last is None:
        return bias.drift, bias.scatter
    before, its_chance, its_innovation = bias.last
    agree = max(-CLIP_SIGMA, min(CLIP_SIGMA, innovation * its_innovation))
    drift = min(FASTEST, max(SLOWEST, bias.drift * math.exp(PACE * agree)))
    chance = (by_chance + its_chance) / 2
    excess = (
        min((ratio - before) ** 2 / 2, CLIP_SIGMA**2 * (chance + bias.scatter)) / CLIPPED - chance
    )
    weight = 1 / min(SCATTER_WINDOWS, bias.windows + 10.0)
    return drift, max(LEAST_SCATTER_SD**2, bias.scatter + weight * (excess - bias.scatter))


Positive = Annotated[float, Field(gt=0)]
_KEPT = ("level", "tilt", "p_level", "p_both", "p_tilt", "scatter", "drift")


def to_plain(bias: Bias) -> dict[str, Any] | None:
    """For JSON; None before anything is learnt."""
    if bias.point is None or not bias.windows:
        return None
    return {name: getattr(bias, name) for name in _KEPT} | {
        "windows": bias.windows,
        "share": bias.point.share,
        "pressure": bias.point.pressure,
    }


class _Kept(Document):
    level: Annotated[float, Field(ge=-MOST_LEVEL, le=MOST_LEVEL)]
    tilt: float
    p_level: Positive
    p_both: float
    p_tilt: Positive
    scatter: Positive
    drift: Positive
    windows: Annotated[int, Field(gt=0)]
    share: Annotated[float, Field(gt=0, le=1)]
    pressure: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _definite(self) -> _Kept:
        if self.p_level * self.p_tilt <= self.p_both**2:
            raise ValueError("should have a positive definite covariance")
        return self


def from_plain(plain: object, age_s: float) -> Bias:
    """What :func:`to_plain` gave, ``age_s`` seconds later. Raises ``ValidationError``, a
    ``ValueError``, for anything else."""
    kept = _Kept.model_validate(plain)
    bias = Bias(
        level=kept.level,
        tilt=kept.tilt,
        p_level=kept.p_level,
        p_both=kept.p_both,
        p_tilt=kept.p_tilt,
        drift=kept.drift,
        scatter=kept.scatter,
        point=Point(kept.share, kept.pressure),
        windows=kept.windows,
    )
    return bias.aged(max(0.0, age_s))
