"""Event-by-event replay of one GPU in virtual time, compiled.

Each tenant is Triton's dynamic batcher (:mod:`igniterd.queueing.kernels.batcher`) with one
instance. A batch of b of tenant i needs ``solo[i, b]`` ms alone, times a random factor; while
tenants j execute too, it progresses at 1 / (1 + sum of excess[i, j, b, b_j]). A tenant's batcher
knows of the others only by when its batches end: it is looked at then.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.queueing.kernels.batcher import await_batch, batchers, take


@njit(cache=True, nogil=True, error_model="numpy")
def _factor(cv: float, straggler_chance: float, straggler_factor: float) -> float:
    """Random factor of one execution, mean 1 but for the stragglers: gamma distributed, and now and
    then much longer."""
    factor = np.random.gamma(1.0 / (cv * cv), cv * cv) if cv > 0.0 else 1.0
    if straggler_chance > 0.0 and np.random.random() < straggler_chance:
        factor *= straggler_factor
    return factor


@njit(cache=True, nogil=True, error_model="numpy")
def replay_gpu(
    times: F64,
    offsets: I64,
    largest: I64,
    delays: F64,
    solo: F64,
    excess: F64,
    dispersion: F64,
    seed: int,
    horizon: float,
    latency: F64,
    busy: F64,
    batches: I64,
) -> None:
    """Replay until every request is answered.

    ``times`` (N,) ms: arrivals of tenant i at ``offsets[i]:offsets[i + 1]``, ascending; ``largest``
    (n,), ``delays`` (n,) ms, ``solo`` (n, b + 1) ms, ``excess`` (n, n, b + 1, b + 1) a fraction,
    ``dispersion`` (n, 3): coefficient of variation, chance of a straggler, its factor. Writes
    ``latency`` (N,) ms, ``busy`` (n,) ms spent executing up to ``horizon`` ms, ``batches`` (n,).
    """
    np.random.seed(seed)
    n = largest.shape[0]
    q = batchers(times, offsets, largest, delays, 1)
    running = np.zeros(n, np.int64)  # size of the batch being executed, 0 when none is
    left = np.zeros(n)  # ms alone that it still needs
    slow = np.ones(n)
    due = np.empty(n)  # next start of a free instance
    for i in range(n):
        due[i] = await_batch(q, i, 0.0)
    now = 0.0
    while True:
        who, at = _next(now, running, left, slow, due)
        if who < 0:
            return
        span, seen = at - now, max(0.0, min(at, horizon) - now)
        for i in range(n):
            if running[i] > 0:
                left[i] = max(0.0, left[i] - span / slow[i])
                busy[i] += seen
        now = at
        size = running[who]
        if size > 0:
            for j in range(q.taken[who] - size, q.taken[who]):
                latency[j] = now - times[j]
            sign = -1.0
            running[who] = 0
            due[who] = await_batch(q, who, now)
        else:
            size = take(q, who, now)
            running[who] = size
            left[who] = solo[who, size] * _factor(
                dispersion[who, 0], dispersion[who, 1], dispersion[who, 2]
            )
            batches[who] += 1
            slow[who] = 1.0
            sign = 1.0
        _disturb(who, size, sign, running, excess, slow)


@njit(cache=True, nogil=True, error_model="numpy")
def _next(now: float, running: I64, left: F64, slow: F64, due: F64) -> tuple[int, float]:
    """Whose batch ends or starts next, and when; nobody's: -1."""
    who, at = -1, np.inf
    for i in range(running.shape[0]):
        t = now + left[i] * slow[i] if running[i] > 0 else due[i]
        if t < at:
            who, at = i, t
    return who, at


@njit(cache=True, nogil=True, error_model="numpy")
def _disturb(who: int, size: int, sign: float, running: I64, excess: F64, slow: F64) -> None:
    """Change ``slow`` for a batch of ``size`` of ``who`` that starts (``sign`` 1) or has ended
    (-1)."""
    for j in range(running.shape[0]):
        if j != who and running[j] > 0:
            slow[j] += sign * excess[j, who, running[j], size]
            if sign > 0.0:
                slow[who] += excess[who, j, size, running[j]]
