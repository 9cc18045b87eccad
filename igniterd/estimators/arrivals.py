"""The arrival rate of a model from differenced counters: quick on a step, quiet on noise, with a
short forecast. Pure.

Four parts, each a constant amount of work a count:

* A line through the recent counts by least squares, older counts weighing less (time constant
  ``MEMORY_S``). Its slope is shrunk towards none by how well it can be told from noise (as James
  and Stein's estimator), so that steady traffic has no trend and a ramp is not lagged behind.
* Page's cumulative sums (E. S. Page, Biometrika 41, 1954), on the likelihood ratio of a rate
  changed by ``STEPS`` against the line's. Where one passes ``ALARM`` the line forgets what came
  before the change; the sum itself knows when that was.
* The upper quantile that plans are made for is that of a mixture of what may have happened of late:
  nothing, a step, a ramp that began or one that ended, each as likely as the counts make it
  (:mod:`igniterd.estimators.kernels.trends`). It does not rest on the line, which an alarm has made
  forget what shows that a ramp is no step.
* The index of dispersion of the counts, from the squares of successive differences, to which
  neither a trend nor a level matters.

``arrival_scv``, the squared coefficient of variation of times between arrivals, is read off that
index. It is only ever believed to be above a Poisson process: counts of a second cannot show that
arrivals are smooth within it.

The constants were chosen on made-up traffic of the kinds in ``bench/arrivals.py`` (steady, steps,
ramps, spikes; 4/s to 1000/s), with other seeds. What each is stands beside it. Half and twice its
value, the others as they are, give the figures below; ``bench/constants.py --seeds 4`` made them (2
cores, Python 3.11; seeds 70000 to 70003) and says what a figure is. A dash: none moves by a tenth.

As they are: error 1.8 %; margin 3.0 %; covered 99.2 %; delay 1; overshoot 4.2 %; lag 0.4 %; beyond
7.4 %; spike 3.16; short 5.0 %; few 15.7 %; scv 3.5; moves 4.25; idle 62.9 %; gap 2.7 %.

    MEMORY_S                 20      half: gap 7.1 %; error 2.7 %; few 22.8 %
                                     twice: lag 0.7 %; gap 1.7 %; error 1.3 %
    STEPS                    -0.5..4 half: -
                                     twice: lag 2.4 %
    ALARM                    9       half: lag 1.6 %; error 2.8 %; overshoot 6.3 %
                                     twice: lag 1.0 %
    SHRINK                   4       half: lag 0.2 %; overshoot 4.8 %; error 2.0 %
                                     twice: lag 1.3 %
    CONFIRM                  3       half: beyond 8.5 %
                                     twice: beyond 4.6 %; margin 2.7 %
    YOUNG_S                  8       half: short 10.0 %
                                     twice: -
    FEW                      60      half: -
                                     twice: few 18.6 %
    GAP_S                    30      half, twice: -
    USUAL_PER_S              0.01    half: lag 0.5 %
                                     twice: -
    FASTEST_PER_S            0.1     half, twice: -
    DISPERSION_S             60      half: short 0.0 %
                                     twice: moves 3.75
    DISPERSION_PRIOR         10      half: short 0.0 %
                                     twice: -
    DISPERSION_CLIP          9       half: moves 3.5; scv 3.11
                                     twice: short 0.0 %
    BURST_SIGMA              2       half: moves 5.5
                                     twice: moves 2.75; scv 2.58
    PEAK_HALF_LIFE_S         900     half: idle 39.6 %
                                     twice: idle 79.7 %
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from igniterd.arrays import F64
from igniterd.estimators.kernels import trends

MEMORY_S = 20.0
STEPS = (0.1, 0.3, 1.0, 4.0, -0.1, -0.25, -0.5)  # relative changes of the rate that are watched for
ALARM = 9.0  # log likelihood ratio: about e^9 seconds between false alarms of one sum
SHRINK = 4.0  # squared standard errors of the slope below which there is no trend
# the upper quantile is the least that as many counts in a row have asked for: one odd count moves
# no plan ...
CONFIRM = 3
YOUNG_S = 8.0  # ... but no less than the line says, for so long after a change
# weighted requests in the line, below which any count is odd and too much costs little: no
# confirmation is waited for
FEW = 60.0
GAP_S = 30.0  # without counts, after which nothing is foreseen from those before
USUAL_PER_S = 0.01  # trends expected beforehand: standard deviation of the slope over the rate
# the forecast rises or falls by no more than this fraction of the rate a second
FASTEST_PER_S = 0.1

DISPERSION_S = 60.0  # time constant of the index of dispersion
DISPERSION_PRIOR = 10.0  # counts of a Poisson process believed in beforehand
DISPERSION_CLIP = 9.0  # a squared difference counts at most this many times what is expected
# arrival_scv as plans see it: in steps, so that noise moves no plan
BURSTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
BURST_SIGMA = 2.0  # standard errors by which the next step must be passed

PEAK_HALF_LIFE_S = 900.0

_deviations = lru_cache(maxsize=64)(NormalDist().inv_cdf)

NOTHING: F64 = np.empty((0, 2))

# log likelihood ratio; arrivals, seconds and arrivals x time since it left zero
CusumSums = tuple[float, float, float, float]
ZERO: tuple[CusumSums, ...] = ((0.0, 0.0, 0.0, 0.0),) * len(STEPS)


class ForecastTarget(NamedTuple):
    """What plans are made for: the ``quantile`` of the rate ``horizon_s`` ahead."""

    quantile: float = 0.9
    horizon_s: float = 8.0


AIM = ForecastTarget()


class WeightedSums(NamedTuple):
    """Sums over the counts for a weighted line; times are relative to the last count's end, weights
    ``exp(time / MEMORY_S)``.

    ``e``: weight x seconds times 1, t, t^2; ``n``: weight x arrivals times 1, t; ``v``: as ``e``
    with squared weights.
    """

    e0: float = 0.0
    e1: float = 0.0
    e2: float = 0.0
    n0: float = 0.0
    n1: float = 0.0
    v0: float = 0.0
    v1: float = 0.0
    v2: float = 0.0

    def shifted(self, by_s: float) -> WeightedSums:
        """The same counts, ``by_s`` later."""
        e0, e1, e2, n0, n1, v0, v1, v2 = self
        w = math.exp(-by_s / MEMORY_S)
        u = w * w
        return WeightedSums(
            w * e0,
            w * (e1 - by_s * e0),
            w * (e2 - 2 * by_s * e1 + by_s * by_s * e0),
            w * n0,
            w * (n1 - by_s * n0),
            u * v0,
            u * (v1 - by_s * v0),
            u * (v2 - 2 * by_s * v1 + by_s * by_s * v0),
        )

    def plus(self, at_s: float, span_s: float, arrivals: float) -> WeightedSums:
        """With ``arrivals`` in ``span_s`` seconds around the (negative) time ``at_s``."""
        e0, e1, e2, n0, n1, v0, v1, v2 = self
        w = math.exp(at_s / MEMORY_S)
        e, n = w * span_s, w * arrivals
        v = w * e
        square = at_s * at_s + span_s * span_s / 12
        return WeightedSums(
            e0 + e,
            e1 + e * at_s,
            e2 + e * square,
            n0 + n,
            n1 + n * at_s,
            v0 + v,
            v1 + v * at_s,
            v2 + v * square,
        )


class Forecast(NamedTuple):
    """The rate expected ``in_s`` seconds ahead (0: now) and its standard error, requests/s."""

    per_s: float
    error_per_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """What is believed of one model's arrivals. ``seen`` counts the arrivals since the last change
    of rate."""

    end_s: float | None = None
    line: WeightedSums = field(default_factory=WeightedSums)
    slope: float = 0.0  # shrunk, requests/s a second
    # (N, 2): seconds and arrivals of the last counts
    recent: F64 = field(default_factory=lambda: NOTHING, compare=False)
    foreseen: tuple[float, ...] = ()  # quantiles, after each of the last counts
    upper_per_s: float = 0.0  # the quantile that plans are made for, see ``ForecastTarget``
    seen: float = 0.0
    cusum: tuple[CusumSums, ...] = ZERO
    last: tuple[int, float] | None = None  # the last count and its seconds
    dispersion: float = 1.0  # variance over mean of the counts
    dispersion_weight: float = DISPERSION_PRIOR
    arrival_scv: float = 1.0  # one of BURSTS
    # of the recent past, as far as it was more than noise; slowly forgotten
    peak_per_s: float = 0.0

    @property
    def per_s(self) -> float:
        """The rate now, requests/s; 0 before the first count."""
        return _now_per_s(self.line, self.slope)

    def ahead(self, in_s: float) -> Forecast:
        """The rate ``in_s`` seconds from the last count."""
        return _ahead(self.line, self.slope, self.dispersion, in_s)


def _mean_upper(line: WeightedSums, dispersion: float, deviations: float) -> float:
    """Upper quantile of the line's mean: trends are not looked at."""
    per_count = line.v0 / (line.e0 * line.e0) * max(1.0, dispersion)
    mean = line.n0 / line.e0
    return (
        mean
        + deviations * math.sqrt((mean + per_count) * per_count)
        + float(trends.skew(deviations)) * per_count
    )


def _now_per_s(line: WeightedSums, slope: float) -> float:
    return max(0.0, (line.n0 - slope * line.e1) / line.e0) if line.e0 > 0 else 0.0


def _ahead(line: WeightedSums, slope: float, dispersion: float, in_s: float) -> Forecast:
    """:meth:`Rate.ahead` of a rate with these parts."""
    e0 = line.e0
    if e0 <= 0:
        return Forecast(0.0, 0.0)
    mean, centre = line.n0 / e0, line.e1 / e0
    now = _now_per_s(line, slope)
    most = FASTEST_PER_S * in_s * now
    per_s = max(0.0, now + min(most, max(-most, slope * in_s)))
    # a mean of counts, and a slope times the way it is carried; the slope's own error shrinks with
    # the slope
    poisson = max(mean, 1.0 / e0) * max(1.0, dispersion)
    variance = poisson * line.v0 / (e0 * e0)
    if slope:
        variance += _trend(line, poisson)[1] * (in_s - centre) ** 2
    return Forecast(per_s, math.sqrt(variance))


def _slope(line: WeightedSums, poisson: float) -> tuple[float, float]:
    """Least-squares slope and its variance for counts of variance ``poisson`` a second; (0, 0)
    where counts are too few to tell."""
    e0, e1, e2, n0, n1, v0, v1, v2 = line
    centre = e1 / e0
    spread = e2 - centre * e1
    if spread <= 1e-9 * e0:
        return 0.0, 0.0
    squares = v2 - 2 * centre * v1 + centre * centre * v0
    return (n1 - centre * n0) / spread, poisson * squares / spread**2


def _trend(line: WeightedSums, poisson: float) -> tuple[float, float]:
    """The slope as far as it can be believed, and its variance: drawn to what is usual (a normal
    prior), and to none where it is within ``SHRINK`` squared standard errors."""
    slope, variance = _slope(line, poisson)
    if variance <= 0:
        return 0.0, 0.0
    usual = (USUAL_PER_S * max(line.n0, 1.0) / line.e0) ** 2
    bayes = usual / (usual + variance)
    kept = 1 - SHRINK / max(SHRINK, slope * slope / variance)
    return slope * bayes * kept, variance * bayes * kept * kept


def _expected(rate: Rate, in_s: float, span_s: float) -> tuple[float, float]:
    """Arrivals expected in a span around ``in_s`` ahead, and their variance over that: the counts'
    own and the forecast's."""
    forecast = rate.ahead(in_s)
    per_s = max(forecast.per_s, 0.5 / rate.line.e0)
    return per_s * span_s, max(1.0, rate.dispersion) + forecast.error_per_s**2 * span_s / per_s


def _update_cusum(
    cusum: tuple[CusumSums, ...], expected: float, dispersion: float, span_s: float, arrivals: int
) -> tuple[CusumSums, ...]:
    """Every sum after one more count, of which ``expected`` were expected."""
    out = []
    for step, log, (ratio, counts, seconds, moment) in zip(STEPS, _LOGS, cusum, strict=True):
        gained = ratio + (arrivals * log - expected * step) / dispersion
        if gained > 0:
            out.append(
                (
                    gained,
                    counts + arrivals,
                    seconds + span_s,
                    moment - counts * span_s - arrivals * span_s / 2,
                )
            )
        else:
            out.append((0.0, 0.0, 0.0, 0.0))
    return tuple(out)


_LOGS = tuple(math.log1p(step) for step in STEPS)


def _update_dispersion(rate: Rate, span_s: float, arrivals: int) -> tuple[float, float]:
    """Index of dispersion and the weight behind it, with one more pair of counts."""
    if rate.last is None or rate.line.e0 <= 0:
        return rate.dispersion, rate.dispersion_weight
    counts, seconds = rate.last
    mean_per_s = (counts + arrivals) / (seconds + span_s)
    if mean_per_s * min(seconds, span_s) < 1:
        return rate.dispersion, rate.dispersion_weight
    square = (arrivals / span_s - counts / seconds) ** 2 / (mean_per_s * (1 / span_s + 1 / seconds))
    square = min(square, DISPERSION_CLIP * rate.dispersion)
    keep = math.exp(-span_s / DISPERSION_S)
    ours = keep * (rate.dispersion_weight - DISPERSION_PRIOR)
    total = ours + 1.0
    index = rate.dispersion * rate.dispersion_weight - DISPERSION_PRIOR  # the sum of squares so far
    weight = total + DISPERSION_PRIOR
    return (keep * index + square + DISPERSION_PRIOR) / weight, weight


def _since(counts: float, seconds: float, moment: float) -> WeightedSums:
    """A line through the ``counts`` of the last ``seconds`` alone."""
    e1, e2 = -seconds * seconds / 2, seconds**3 / 3
    return WeightedSums(seconds, e1, e2, counts, moment, seconds, e1, e2)


def _arrival_scv(now: float, dispersion: float, weight: float) -> float:
    """The step of BURSTS to plan with: left only when the next one is passed for certain."""
    margin = 1 + BURST_SIGMA * math.sqrt(2.0 / weight)
    at = BURSTS.index(now)
    while at + 1 < len(BURSTS) and dispersion > margin * (BURSTS[at] + BURSTS[at + 1]) / 2:
        at += 1
    while at > 0 and dispersion * margin < (BURSTS[at] + BURSTS[at - 1]) / 2:
        at -= 1
    return BURSTS[at]


def update_rate(
    rate: Rate, end_s: float, span_s: float, arrivals: int, aim: ForecastTarget = AIM
) -> Rate:
    """``rate`` with one more count of ``arrivals`` in the ``span_s`` > 0 seconds up to ``end_s``;
    plans are made for ``aim``."""
    since_s = span_s if rate.end_s is None else max(span_s, end_s - rate.end_s)
    line = rate.line.shifted(since_s).plus(-span_s / 2, span_s, arrivals)
    dispersion, weight = _update_dispersion(rate, span_s, arrivals)
    seen = rate.seen * math.exp(-since_s / MEMORY_S) + arrivals
    cusum = rate.cusum
    if rate.line.e0 > 0:
        cusum = _update_cusum(
            cusum, *_expected(rate, since_s - span_s / 2, span_s), span_s, arrivals
        )
        worst, counts, seconds, moment = max(cusum)
        if worst > ALARM:
            line, seen, cusum = _since(counts, seconds, moment), counts, ZERO
    slope, _ = _trend(line, max(line.n0, 1.0) / line.e0 * max(1.0, dispersion))
    few = line.n0 < FEW
    earlier = rate.recent if since_s - span_s < GAP_S else NOTHING
    recent = trends.remembered(earlier, span_s, float(arrivals))
    deviations = _deviations(aim.quantile)
    high, since = trends.foreseen(recent, max(1.0, dispersion), deviations, aim.horizon_s)
    foreseen = (*rate.foreseen, high)[-CONFIRM:]
    young = few or line.e0 < YOUNG_S
    least = _mean_upper(line, dispersion, deviations) if young else 0.0
    now = _ahead(line, slope, dispersion, 0.0)
    peak_before = rate.peak_per_s * 0.5 ** (since_s / PEAK_HALF_LIFE_S)
    return Rate(
        end_s=end_s,
        line=line,
        slope=slope,
        recent=recent[since:],
        foreseen=foreseen,
        upper_per_s=max(least, high if few else min(foreseen)),
        seen=seen,
        cusum=cusum,
        last=(arrivals, span_s),
        dispersion=dispersion,
        dispersion_weight=weight,
        arrival_scv=_arrival_scv(rate.arrival_scv, dispersion, weight),
        peak_per_s=max(peak_before, now.per_s - now.error_per_s),
    )
