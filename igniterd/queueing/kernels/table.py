"""Compiled guesses at the tail of the queue: read from a table of the batcher in scaled units, each
in a tenth of a microsecond.

With service times s(b) = s(1) + (b - 1) beta the response of the batcher depends, in units of s(1),
only on the shape x = (s(1) - beta)/beta, the load rho = rate s(B)/B, the largest batch B and the
``arrival_scv``. For one value of it ``log_p99[x, rho, B]`` holds log(P99 (1 - rho) /
s(1)) and ``mean_batch`` the mean batch; between their points both are interpolated linearly in log
x, rho and log B. A real curve is not quite straight: see
:func:`igniterd.queueing.kernels.lookup.working` for the straight one that stands for it. Whoever
asks multiplies by ``mend``, for each largest batch what the exact queue said nearby over what was
guessed.

Units: ms, requests/ms, whole units of share. A service curve has a leading element that is not
used: ``curve[b]`` is the time of b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.queueing.kernels.lookup import working


class QueueTable(NamedTuple):
    """The batcher under one arrival process; X shapes, R loads, C largest batches."""

    log_shape: F64  # (X,) rising
    load: F64  # (R,) rising
    log_cap: F64  # (C,) rising, from 0
    log_p99: F64  # (X, R, C)
    mean_batch: F64  # (X, R, C)


@njit(cache=True, nogil=True, error_model="numpy")
def _place(grid: F64, value: float) -> tuple[int, float]:
    """Interval of a rising grid and the fraction within it; clamped at both ends."""
    last = grid.shape[0] - 1
    if value <= grid[0]:
        return 0, 0.0
    if value >= grid[last]:
        return last - 1, 1.0
    i = 0
    while grid[i + 1] < value:
        i += 1
    return i, (value - grid[i]) / (grid[i + 1] - grid[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _read(table: F64, i: int, fi: float, j: int, fj: float, k: int, fk: float) -> float:
    total = 0.0
    for a in range(2):
        for b in range(2):
            low, high = table[i + a, j + b, k], table[i + a, j + b, k + 1]
            total += (fi if a else 1.0 - fi) * (fj if b else 1.0 - fj) * (low + (high - low) * fk)
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def evaluate(t: QueueTable, curve: F64, cap: int, rate: float) -> tuple[float, float, float]:
    """(P99, utilisation, mean batch) under largest batch ``cap``; P99 is infinite beyond the
    table."""
    load = rate * curve[cap] / cap
    if not load <= t.load[-1]:
        return np.inf, 1.0, float(cap)
    i, fi = _place(t.log_shape, working(curve, cap, rate)[0])
    j, fj = _place(t.load, load)
    k, fk = _place(t.log_cap, np.log(cap))
    p99 = np.exp(_read(t.log_p99, i, fi, j, fj, k, fk)) * curve[1] / (1.0 - load)
    batch = min(max(_read(t.mean_batch, i, fi, j, fj, k, fk), 1.0), float(cap))
    low = min(int(batch), cap - 1) if cap > 1 else 0
    time = curve[low] + (curve[low + 1] - curve[low]) * (batch - low) if cap > 1 else curve[1]
    return p99, min(1.0, rate * time / batch), batch


@njit(cache=True, nogil=True, error_model="numpy")
def best(t: QueueTable, curve: F64, sizes: I64, mend: F64, rate: float) -> tuple[int, float]:
    """Index of the largest batch with the least P99, and that P99."""
    found, least = 0, np.inf
    for i in range(sizes.shape[0]):
        value = mend[i] * evaluate(t, curve, sizes[i], rate)[0]
        if value < least:
            found, least = i, value
    return found, least


@njit(cache=True, nogil=True, error_model="numpy")
def holds(
    t: QueueTable, curve: F64, sizes: I64, mend: F64, rate: float, goal: float, hint: int
) -> int:
    """Index of a largest batch whose P99 reaches ``goal``, ``hint`` if it does; -1 when none
    does."""
    if mend[hint] * evaluate(t, curve, sizes[hint], rate)[0] <= goal:
        return hint
    for i in range(sizes.shape[0]):
        if mend[i] * evaluate(t, curve, sizes[i], rate)[0] <= goal:
            return i
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def least_units(
    t: QueueTable,
    alone: F64,
    ratio: F64,
    sizes: I64,
    mend: F64,
    rate: float,
    goal: float,
    low: int,
    high: int,
    start: int,
) -> tuple[int, int, float, float, float]:
    """Fewest units in ``low`` to ``high`` whose P99 reaches ``goal``, sought around ``start``;
    ``high + 1`` when none does.

    ``alone`` (units, B + 1) are the service curves without neighbours, ``ratio`` (B + 1,) what
    neighbours and all else multiply them by. Also the index of the best largest batch there, and
    its evaluate.
    """
    curve = np.empty(ratio.shape[0])
    hint, at, bad, step = 0, min(max(start, low), high), low - 1, 1
    while True:  # outward from the start, upwards only as far as needed
        curve[:] = alone[at - 1] * ratio
        found = holds(t, curve, sizes, mend, rate, goal, hint)
        if found >= 0:
            hint = found
            break
        bad = at
        if at == high:
            at = high + 1
            break
        at = min(high, at + step)
        step *= 2
    step = 1
    # `at` holds (or is one beyond the last), `bad` does not (or is one below the first)
    while at - bad > 1:
        middle = max(bad + 1, at - step) if bad < low else (at + bad) // 2
        curve[:] = alone[middle - 1] * ratio
        found = holds(t, curve, sizes, mend, rate, goal, hint)
        if found >= 0:
            at, hint, step = middle, found, step * 2
        else:
            bad = middle
    curve[:] = alone[min(at, high) - 1] * ratio
    size = best(t, curve, sizes, mend, rate)[0]
    p99, utilisation, batch = evaluate(t, curve, sizes[size], rate)
    return at, size, mend[size] * p99, utilisation, batch
