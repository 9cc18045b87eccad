"""One more window in a :class:`~igniterd.estimators.bias.Bias`: the Kalman filter, what it adapts,
and Page's sums. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from igniterd.estimators.bias import (
    ALLOWED_SIGMA,
    BATCH_MEMORY,
    CENTRE,
    CHANGE,
    CHANGE_CLIP,
    CLIP_SIGMA,
    CLIPPED,
    FASTEST,
    FEW,
    LAG_WINDOWS,
    LEAST_SCATTER_SD,
    LEVEL_SD,
    NOTABLE,
    PACE,
    SCATTER_WINDOWS,
    SLOWEST,
    Bias,
    Measured,
    Point,
    State,
)
from igniterd.estimators.dispersion import Dispersion, Moments


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


def _usable(measured: Iterable[Measured], variance: float) -> list[_Seen]:
    # the logarithm of a mean of some is low by half its variance
    return [
        (
            m.batch,
            m.executions,
            math.log2(m.batch) - CENTRE,
            math.log(m.ratio) + variance / (2 * m.executions),
        )
        for m in measured
        if m.executions > 0 and 0 < m.ratio < math.inf
    ]


def _sum_window(now: State, scatter: float, variance: float, usable: Sequence[_Seen]) -> _Sums:
    if sum(seen[1] for seen in usable) < FEW:
        return _Sums()
    at, tilt, p_level, p_both, p_tilt = now
    common = scatter * len(usable)  # of all batch sizes alike: it is not averaged away over them
    w0 = w1 = w2 = r0 = r1 = plain = missed = 0.0
    for _, executions, x, ratio in usable:
        noise = variance / executions + common
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
    return _Sums(w0=w0, w1=w1, w2=w2, r0=r0, r1=r1, plain=plain, missed=missed)


def _kalman_update(now: State, sums: _Sums) -> State:
    """The Kalman filter's measurement update in information form, both parts of the state at
    once."""
    det = now.p_level * now.p_tilt - now.p_both * now.p_both
    i_level = now.p_tilt / det + sums.w0
    i_both = -now.p_both / det + sums.w1
    i_tilt = now.p_level / det + sums.w2
    det = i_level * i_tilt - i_both * i_both
    p_level, p_both, p_tilt = i_tilt / det, -i_both / det, i_level / det
    return State(
        level=now.level + p_level * sums.r0 + p_both * sums.r1,
        tilt=now.tilt + p_both * sums.r0 + p_tilt * sums.r1,
        p_level=p_level,
        p_both=p_both,
        p_tilt=p_tilt,
    )


def update_bias(
    bias: Bias,
    at_s: float,
    measured: Iterable[Measured],
    point: Point,
    *,
    usual_cv: float | None = None,
    met_cv: float = 0.0,
) -> tuple[Bias, float | None]:
    """``bias`` after a window of ``measured`` executions at ``point``. ``usual_cv``: the profile's
    dispersion of one service time; ``met_cv``: what uncapped neighbours add to it here.

    Also the factor by which the model's service times have changed, when it has just become clear
    that they have (None otherwise); everything learnt before is then forgotten.
    """
    seconds = 0.0 if bias.at_s is None else max(0.0, at_s - bias.at_s)
    if not bias.is_at(point):
        bias, seconds = bias.aged(seconds).moved(point), 0.0
    # a Bias is made once, at the end: this runs for every model at every tick
    now, dispersion = bias.ahead(seconds), bias.dispersion
    if usual_cv is not None and usual_cv != dispersion.usual:
        dispersion = replace(dispersion, usual=usual_cv)
    one = dispersion.cv**2 + met_cv**2
    usable = _usable(measured, one)
    sums = _sum_window(now, bias.scatter, one, usable)
    if sums.plain <= 0:
        return replace(bias, p_level=now.p_level, p_tilt=now.p_tilt, at_s=at_s), None
    missed, by_chance = sums.missed / sums.plain, max(1 / sums.plain - bias.scatter, 0.0)
    variance = by_chance + bias.scatter + now.p_level
    ratio = bias.level + missed
    innovation = _clip(missed / math.sqrt(variance), CHANGE_CLIP)
    above = max(0.0, bias.above + innovation - ALLOWED_SIGMA)
    below = max(0.0, bias.below - innovation - ALLOWED_SIGMA)
    if max(above, below) > CHANGE:
        if abs(missed) > NOTABLE:
            fresh = Dispersion(dispersion.usual)
            again = Bias(level=ratio, point=bias.point, at_s=at_s, windows=1, dispersion=fresh)
            return again, math.exp(missed)
        now, above, below = now._replace(p_level=LEVEL_SD**2), 0.0, 0.0
    drift, scatter = _update_pace(bias, ratio, by_chance, innovation)
    believed_miss = _clip(innovation, CLIP_SIGMA) * math.sqrt(variance)
    lag, p_lag = _update_lag(bias, believed_miss, variance)
    now = _kalman_update(now, sums)
    window = {batch: Moments(executions, log) for batch, executions, _, log in usable}
    updated = Bias(
        level=now.level,
        tilt=now.tilt,
        p_level=now.p_level,
        p_both=now.p_both,
        p_tilt=now.p_tilt,
        drift=drift,
        scatter=scatter,
        last=(ratio, by_chance, innovation),
        lag=lag,
        p_lag=p_lag,
        dispersion=dispersion.after(window, scatter=bias.scatter, met_cv=met_cv),
        sizes=_update_sizes(bias, now.tilt, usable),
        point=bias.point,
        at_s=at_s,
        windows=bias.windows + 1,
        above=above,
        below=below,
    )
    return updated, None


def _clip(value: float, most: float) -> float:
    return max(-most, min(most, value))


def _update_sizes(
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
            off = _clip(y - common - mean, LEVEL_SD)
            total = executions + n
            found[batch] = total, mean + off * n / total
    return tuple((batch, executions, mean) for batch, (executions, mean) in found.items())


def _update_lag(bias: Bias, missed: float, variance: float) -> tuple[float, float]:
    """The mean of the last innovations with one more in it, and its variance."""
    weight = 1 / min(LAG_WINDOWS, bias.windows + 1.0)
    before = 0.0 if math.isinf(bias.p_lag) else bias.p_lag
    lag = bias.lag + weight * (missed - bias.lag)
    return lag, (1 - weight) ** 2 * before + weight**2 * variance


def _update_pace(
    bias: Bias, ratio: float, by_chance: float, innovation: float
) -> tuple[float, float]:
    """How fast the level wanders, and how much windows scatter around it.

    Where innovations agree with the ones before them the filter is too slow, where they alternate
    it is too quick. The scatter is seen in successive differences, in which a slow wander does not
    show.
    """
    if bias.last is None:
        return bias.drift, bias.scatter
    before, its_chance, its_innovation = bias.last
    agree = _clip(innovation * its_innovation, CLIP_SIGMA)
    drift = min(FASTEST, max(SLOWEST, bias.drift * math.exp(PACE * agree)))
    chance = (by_chance + its_chance) / 2
    most = CLIP_SIGMA**2 * (chance + bias.scatter)
    excess = min((ratio - before) ** 2 / 2, most) / CLIPPED - chance
    weight = 1 / min(SCATTER_WINDOWS, bias.windows + 10.0)
    return drift, max(LEAST_SCATTER_SD**2, bias.scatter + weight * (excess - bias.scatter))
