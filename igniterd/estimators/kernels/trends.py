"""Compiled arithmetic of the forecast of arrivals: what may have happened of late, and how high the
rate then goes.

Counts y of the last ``KEEP_S`` seconds are explained in four ways: nothing happened; at an age a
there was a *step*; a *bend* (level until then, a line since); or an *end* (a line until then, level
since). Of each the least-squares fit is exact for counts of one variance, taken as their mean rate
times the dispersion; jumps and slopes have normal priors, so that the evidence of each is

    log P(y | change) - log P(y | none) = (x^2/v - x^2/(v + u) + log(v/(v + u))) / 2

with x the fitted jump or slope, v its variance and u its prior variance. The forecast is the
mixture of all: what follows from these priors and at most one change in that time. Units: requests,
seconds.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64

KEEP_S, KEEP = 80.0, 12  # how far back is looked, and the least counts of that
STEP, BEND, END = 0.2, 0.15, 0.1  # how likely each is beforehand in that time
JUMP = 1.0  # standard deviation of a step over the rate
SLOPE = 0.007  # of a slope over the rate, 1/s
LEAST_S = 4.0  # of a line
CERTAIN = 0.99  # of a step, when what came before is forgotten
# changes are looked for at each of the last counts, and at every third further back
NEAR, STRIDE = 6, 3


@njit(cache=True, nogil=True, error_model="numpy")
def remembered(recent: F64, span_s: float, arrivals: float) -> F64:
    """``recent`` (N, 2), seconds and arrivals of each count, with one more, less what is too
    old."""
    old, kept_s = recent.shape[0], span_s
    keep = 0
    while keep < old and (kept_s < KEEP_S or keep + 1 < KEEP):
        keep += 1
        kept_s += recent[old - keep, 0]
    out = np.empty((keep + 1, 2))
    out[:keep] = recent[old - keep :]
    out[keep, 0], out[keep, 1] = span_s, arrivals
    return out


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _evidence(fitted: float, variance: float, prior: float) -> float:
    """Of a change fitted as ``fitted``; 0 for none."""
    share = variance / (variance + prior)
    return 0.5 * (fitted * fitted / variance * (1 - share) + math.log(share))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _line(sx: float, sxx: float, sxy: float, s: float, y: float) -> tuple[float, float, float]:
    """Slope of the least-squares line, mean of its abscissa, and spread of that (0: no line)."""
    centre = sx / s
    spread = sxx - sx * centre
    if spread <= 1e-9 * s:
        return 0.0, centre, 0.0
    return (sxy - centre * y) / spread, centre, spread


@njit(cache=True, nogil=True, error_model="numpy")
def _explained(
    recent: F64,
    dispersion: float,
    horizon_s: float,
    weight: F64,
    mean: F64,
    variance: F64,
    step: I64,
) -> int:
    """Fill log ``weight``, ``mean`` and ``variance`` of every explanation of ``recent`` (N, 2), and
    the count at which its step began (0: it is none); each needs 3 N + 1 places. Returns how many
    there are."""
    n = recent.shape[0]
    # over all: seconds, arrivals, sums of t, t^2 and y t, with t <= 0 since now
    s = y = t1 = t2 = ty = 0.0
    for i in range(n - 1, -1, -1):
        span, centre = recent[i, 0], -(s + recent[i, 0] / 2)
        t1, t2, ty = (
            t1 + span * centre,
            t2 + span * (centre * centre + span * span / 12),
            ty + recent[i, 1] * centre,
        )
        s, y = s + span, y + recent[i, 1]
    rate = (y + 1) / s
    noise = rate * dispersion
    jump, slope = (JUMP * rate) ** 2, (SLOPE * rate) ** 2
    step[:] = 0
    weight[0], mean[0], variance[0] = math.log(1 - STEP - BEND - END), y / s, noise / s
    places = 1
    a = ya = a1 = a2 = ay = width = 0.0  # the same over what came since the change
    for k in range(1, n + 1):
        span, arrivals = recent[n - k, 0], recent[n - k, 1]
        centre = -(a + span / 2)
        a1, a2, ay = (
            a1 + span * centre,
            a2 + span * (centre * centre + span * span / 12),
            ay + arrivals * centre,
        )
        a, ya, width = a + span, ya + arrivals, width + span
        if k > NEAR and k % STRIDE:
            continue
        before, share = s - a, width / max(s, KEEP_S)
        width = 0.0
        if k < n:
            v = noise * (1 / a + 1 / before)
            moved = ya / a - (y - ya) / before
            known = jump / (jump + v)
            weight[places] = math.log(STEP * share) + _evidence(moved, v, jump)
            mean[places] = (y - ya) / before + known * moved
            variance[places] = (
                known * max(mean[places], 1 / a) * dispersion / a + (1 - known) * noise / s
            )
            step[places] = n - k
            places += 1
        if a >= LEAST_S:
            fitted, centre, spread = _line(a1 + a * a, a2 + 2 * a * a1 + a**3, ay + a * ya, s, y)
            if spread > 0:
                known, reach = (
                    slope / (slope + noise / spread),
                    a - centre + (horizon_s if fitted > 0 else 0.0),
                )
                weight[places] = math.log(BEND * share) + _evidence(fitted, noise / spread, slope)
                mean[places] = y / s + fitted * known * reach
                variance[places] = noise / s + noise / spread * known * reach * reach
                places += 1
        if k < n and before >= LEAST_S:
            b1, b2, by = t1 - a1, t2 - a2, ty - ay
            fitted, centre, spread = _line(
                b1 + a * before, b2 + 2 * a * b1 + a * a * before, by + a * (y - ya), s, y
            )
            if spread > 0:
                known = slope / (slope + noise / spread)
                weight[places] = math.log(END * share) + _evidence(fitted, noise / spread, slope)
                mean[places] = y / s - fitted * known * centre
                variance[places] = noise / s + noise / spread * known * centre * centre
                places += 1
    return places


@njit(cache=True, nogil=True, error_model="numpy")
def skew(deviations: float) -> float:
    """Requests by which a quantile of what few counts show is above that of a normal distribution
    (Cornish and Fisher's first term, for the mean of a Poisson count)."""
    return (deviations * deviations + 2) / 3


@njit(cache=True, nogil=True, error_model="numpy")
def foreseen(
    recent: F64, dispersion: float, deviations: float, horizon_s: float
) -> tuple[float, int]:
    """The rate ``horizon_s`` ahead (requests/s), ``deviations`` standard deviations of the mixture
    above its mean, and the index of the count from which on ``recent`` (N, 2) is worth keeping:
    later than 0 where there surely was a step.

    By its moments and not by its quantile, which would leap as soon as one explanation had weight
    enough to hold it.
    """
    n = recent.shape[0]
    weight, mean, variance, step = (
        np.empty(3 * n + 1),
        np.empty(3 * n + 1),
        np.empty(3 * n + 1),
        np.empty(3 * n + 1, np.int64),
    )
    places = _explained(recent, dispersion, horizon_s, weight, mean, variance, step)
    top = weight[:places].max()
    total = steps = first = second = 0.0
    likeliest = 0
    for i in range(places):
        w = math.exp(weight[i] - top)
        total, first, second = (
            total + w,
            first + w * mean[i],
            second + w * (mean[i] * mean[i] + variance[i]),
        )
        if step[i]:
            steps += w
            if likeliest == 0 or weight[i] > weight[likeliest]:
                likeliest = i
    centre = first / total
    high = centre + deviations * math.sqrt(max(0.0, second / total - centre * centre))
    surely = step[likeliest] if steps > CERTAIN * total else 0
    return max(0.0, high + skew(deviations) * dispersion / recent[:, 0].sum()), surely
