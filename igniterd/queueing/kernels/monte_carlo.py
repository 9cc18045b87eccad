"""Response time of a dynamic batcher by simulation, compiled: where
:mod:`igniterd.queueing.kernels.stationary` has no chain.

With several instances the ends of their services depend on each other, and with a queue delay what
a batch takes depends on when the one before was made up (:mod:`igniterd.queueing.kernels.batcher`):
no chain of one variable is right. So requests are drawn one by one, from one seed, which makes
nearby rates comparable: more of them the nearer the load is to one. What is drawn does not depend
on the rate nor on the services, so it can be kept from one evaluation to the next.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64
from igniterd.queueing.kernels.batcher import await_batch, batchers, take

POINTS = 1024  # points of the distribution function
_SEED = 20241
_CONSTANT = 1e-9  # what varies by less does not
_FEWEST, _MOST = 60_000, 600_000


@njit(cache=True, nogil=True, error_model="numpy")
def draw_times(n: int, scv: float) -> F64:
    """``n`` arrivals at the rate 1, whose gaps have the squared coefficient of variation ``scv``,
    ascending."""
    np.random.seed(_SEED)
    p = 0.5 * (1.0 + np.sqrt(max(0.0, scv - 1.0) / (scv + 1.0)))
    times = np.empty(n)
    at = 0.0
    for i in range(n):
        if scv < _CONSTANT:
            at += 1.0
        elif scv < 1.0:
            at += np.random.gamma(1.0 / scv, scv)
        elif scv == 1.0:
            at += np.random.exponential(1.0)
        else:
            at += np.random.exponential(0.5 / (p if np.random.random() < p else 1.0 - p))
        times[i] = at
    return times


@njit(cache=True, nogil=True, error_model="numpy")
def draw_factors(n: int, cv: float) -> F64:
    """``n`` services over their mean, gamma distributed with the coefficient of variation
    ``cv``."""
    np.random.seed(_SEED + 1)
    factors = np.ones(n)
    if cv > _CONSTANT:
        for i in range(n):
            factors[i] = np.random.gamma(1.0 / (cv * cv), cv * cv)
    return factors


@njit(cache=True, nogil=True, error_model="numpy")
def requests_for(load: float) -> int:
    """How many requests to draw: the nearer the load is to one, the longer its memory. One of a few
    numbers."""
    wanted = min(_MOST, max(_FEWEST, 0.25 * _FEWEST / max(1e-3, 1.0 - load) ** 1.5))
    return int(_FEWEST * 2.0 ** (0.5 * np.ceil(2.0 * np.log2(wanted / _FEWEST) - 1e-9)))


@njit(cache=True, nogil=True, error_model="numpy")
def respond(
    times: F64, service: F64, factors: F64, delay: float, instances: int, response: F64
) -> tuple[float, float]:
    """Write the response times (ms) of requests that arrive at ``times`` (ms); returns utilisation
    of an instance and mean batch."""
    n = times.shape[0]
    q = batchers(
        times, np.array([0, n]), np.array([service.shape[0]]), np.array([delay]), instances
    )
    free = np.zeros(instances)
    head, batches, busy, now = 0, 0, 0.0, 0.0
    while head < n:
        who = np.argmin(free)
        now = await_batch(q, 0, max(now, free[who]))
        size = take(q, 0, now)
        took = service[size - 1] * factors[batches]
        for i in range(head, head + size):
            response[i] = now + took - times[i]
        free[who] = now + took
        busy += took
        batches += 1
        head += size
    return min(1.0, busy / (times[n - 1] * instances)), n / batches


@njit(cache=True, nogil=True, error_model="numpy")
def tail_drawn(
    rate: float, service: F64, delay: float, instances: int, unit_times: F64, factors: F64
) -> tuple[F64, float, float, float, float]:
    """Distribution function on ``POINTS`` nodes, its step (ms), mean (ms), utilisation of an
    instance, mean batch.

    ``rate`` (1/ms), ``service`` (ms, shape (B,)), ``delay`` (ms); ``unit_times`` and ``factors``
    are drawn, a number for each request. It starts with all idle; the first requests are left out.
    """
    response = np.empty(unit_times.shape[0])
    utilisation, batch = respond(unit_times / rate, service, factors, delay, instances, response)
    kept = response[response.shape[0] // 20 :]
    step = kept.max() / (POINTS - 2)
    cells = np.zeros(POINTS)
    mean = 0.0
    for r in kept:
        # the distribution function at node i counts what is at most i steps
        cells[min(POINTS - 1, int(np.ceil(r / step)))] += 1.0
        mean += r
    cdf = np.cumsum(cells) / kept.shape[0]
    return cdf, step, mean / kept.shape[0], utilisation, batch
