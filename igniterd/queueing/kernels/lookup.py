"""Compiled arithmetic of igniterd's planner for one tenant: its P99 at a share, and the least share
that holds a P99.

Everything is read from tables, so that a question costs about a microsecond:

Queue. The response time of Triton's batcher with service times s(b) = s(1) + (b - 1) beta depends,
in units of s(1), on three numbers only: the shape x = (s(1) - beta)/beta, the largest batch B, and
the load rho = rate s(B)/B. A real curve is not quite straight: beta is taken over the batches that
form at that rate, see :func:`working`; what is still amiss is evaluated at a few points a model and
mended by ``mend``. ``p99[., x, rho, B]`` holds P99 (1 - rho) / s(1), ``utilisation`` and
``mean_batch`` what they say; between their points they are interpolated linearly in log x and in
rho. An *option* is one of the largest batches considered; queue delays are not.

Neighbours. A neighbour that executes a fraction d of the time makes every batch 1 + d gain as long.
Of several the worst counts in full and of each other ``overlap``, which is read off the model (1:
they add up). Stretching all service times by phi is the same as dividing rate and SLO by it: no
further table is needed.

These tables steer the search; what it finds is checked with the model and the queue themselves.
Units: ms, requests/ms, whole share units. ``kind`` counts the kinds of GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from igniterd.arrays import F64, I64


class Tables(NamedTuple):
    """What the kernels read; shapes with K kinds of GPU, M models, U units, O options, Q arrival
    processes, X shapes, R loads."""

    curve_ms: F64  # (K, M, U + 1, N + 1) s(b), upper bound, for batches 1..N; index 0 unused
    caps: I64  # (O,) B
    log_shape: F64  # (X,) rising
    load: F64  # (R,) rising, from 0, below 1
    p99: F64  # (Q, X, R, O)
    # (Q,) whether arrivals are rather random than constant: the scale of ``p99``
    random: NDArray[np.bool_]
    utilisation: F64  # (Q, X, R, O)
    mean_batch: F64  # (Q, X, R, O)
    # (K, M, E, G, O) what P99 is to be multiplied by for the real curve, at E sizes and G loads,
    # under the first arrival process
    mend: F64
    mend_units: F64  # (E,)
    mend_load: F64  # (G,)
    gain: F64  # (K, M, M, V, V, W) slowdown by one neighbour that always executes, less 1
    gain_units: I64  # (V,) units at which ``gain`` was taken
    gain_batch: F64  # (W,)
    overlap: F64  # (K,)
    units: I64  # (K,) units of one GPU
    most_batch: I64  # (K, M) largest batch a model was profiled for


@njit(cache=True, nogil=True, error_model="numpy")
def _place(grid: F64, value: float) -> tuple[int, float]:
    """Interval of a rising grid and the fraction within it; clamped at both ends."""
    last = grid.shape[0] - 1
    if last == 0 or value <= grid[0]:
        return 0, 0.0
    if value >= grid[last]:
        return last - 1, 1.0
    i = int(np.searchsorted(grid, value)) - 1
    return i, float((value - grid[i]) / (grid[i + 1] - grid[i]))


@njit(cache=True, nogil=True, error_model="numpy")
def working(curve: F64, cap: int, rate: float) -> tuple[float, float]:
    """(log x, service time) of the batches that form at this rate.

    A server that is always busy forms batches b with rate s(b) = b: their service time is the scale
    of the P99, which is made by batches up to about twice that. The straight curve that stands for
    ``curve`` goes through s(1) and the batch there.
    """
    if cap == 1:
        return 0.0, curve[1]
    b, time = 1, curve[1]
    while b < cap and rate * curve[b] > b:
        b += 1
    if b > 1:
        short, over = rate * curve[b - 1] - (b - 1), b - rate * curve[b]
        time = (
            curve[b]
            if over <= 0.0
            else curve[b - 1] + (curve[b] - curve[b - 1]) * short / (short + over)
        )
    far = min(cap, 2 * b + 1)
    slope = max((curve[far] - curve[1]) / (far - 1), 1e-6 * curve[1])
    return float(np.log(max(curve[1] - slope, 1e-3 * curve[1]) / slope)), time


@njit(cache=True, nogil=True, error_model="numpy")
def _read(table: F64, i: int, fi: float, j: int, fj: float, c: int) -> float:
    i1, j1 = min(i + 1, table.shape[0] - 1), min(j + 1, table.shape[1] - 1)
    low = table[i, j, c] * (1.0 - fj) + table[i, j1, c] * fj
    high = table[i1, j, c] * (1.0 - fj) + table[i1, j1, c] * fj
    return low * (1.0 - fi) + high * fi


@njit(cache=True, nogil=True, error_model="numpy")
def p99_ms(
    t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float
) -> float:
    """P99 (ms) under option number ``c``; infinite where the load is beyond the tables."""
    curve, cap = t.curve_ms[kind, model, units], t.caps[c]
    load = rate * stretch * curve[cap] / cap
    if not load <= t.load[-1]:
        return np.inf
    shape, time = working(curve, cap, rate * stretch)
    i, fi = _place(t.log_shape, shape)
    j, fj = _place(t.load, load)
    u, fu = _place(t.mend_units, float(units))
    r, fr = _place(t.mend_load, load)
    mend = _read(t.mend[kind, model], u, fu, r, fr, c)
    value = stretch * mend * _read(t.p99[queue], i, fi, j, fj, c)
    return value * curve[1] / (1.0 - load) if t.random[queue] else value * time


@njit(cache=True, nogil=True, error_model="numpy")
def behaviour(
    t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float
) -> tuple[float, float]:
    """(utilisation, mean batch); (1, largest batch) beyond the tables."""
    curve, cap = t.curve_ms[kind, model, units], t.caps[c]
    load = rate * stretch * curve[cap] / cap
    if not load <= t.load[-1]:
        return 1.0, float(cap)
    i, fi = _place(t.log_shape, working(curve, cap, rate * stretch)[0])
    j, fj = _place(t.load, load)
    return _read(t.utilisation[queue], i, fi, j, fj, c), _read(t.mean_batch[queue], i, fi, j, fj, c)


@njit(cache=True, nogil=True, error_model="numpy")
def best_option(
    t: Tables,
    kind: int,
    queue: int,
    model: int,
    units: int,
    goal: float,
    rate: float,
    stretch: float,
    enough: bool,
) -> tuple[int, float]:
    """The option with the least P99, and that P99. ``enough``: the first that reaches ``goal`` will
    do."""
    best, least = 0, np.inf
    for c in range(t.caps.shape[0]):
        if t.caps[c] <= t.most_batch[kind, model]:
            value = p99_ms(t, kind, queue, model, units, c, rate, stretch)
            if value < least:
                best, least = c, value
                if enough and least <= goal:
                    break
    return best, least


@njit(cache=True, nogil=True, error_model="numpy")
def calm_option(
    t: Tables,
    kind: int,
    queue: int,
    model: int,
    units: int,
    goal: float,
    rate: float,
    stretch: float,
) -> tuple[int, float, float]:
    """(option, utilisation, mean batch) of the least utilisation that reaches ``goal``: it disturbs
    the neighbours least.

    Where none reaches it: of the option with the least P99.
    """
    best, least, batch = -1, np.inf, 1.0
    for c in range(t.caps.shape[0]):
        if (
            t.caps[c] <= t.most_batch[kind, model]
            and p99_ms(t, kind, queue, model, units, c, rate, stretch) <= goal
        ):
            utilisation, mean = behaviour(t, kind, queue, model, units, c, rate, stretch)
            if utilisation < least - 1e-3:
                best, least, batch = c, utilisation, mean
    if best < 0:
        best, _ = best_option(t, kind, queue, model, units, goal, rate, stretch, False)
        least, batch = behaviour(t, kind, queue, model, units, best, rate, stretch)
    return best, least, batch


@njit(cache=True, nogil=True, error_model="numpy")
def holds(
    t: Tables,
    kind: int,
    queue: int,
    model: int,
    units: int,
    goal: float,
    rate: float,
    stretch: float,
    hint: int,
) -> int:
    """An option that reaches ``goal``, ``hint`` if it does; -1 when none does."""
    if (
        t.caps[hint] <= t.most_batch[kind, model]
        and p99_ms(t, kind, queue, model, units, hint, rate, stretch) <= goal
    ):
        return hint
    c, value = best_option(t, kind, queue, model, units, goal, rate, stretch, True)
    return c if value <= goal else -1


@njit(cache=True, nogil=True, error_model="numpy")
def least_units(
    t: Tables, kind: int, queue: int, model: int, goal: float, rate: float, stretch: float, low: int
) -> int:
    """Fewest units, at least ``low``, whose P99 reaches ``goal``; one more than the GPU has when
    none does."""
    high = t.units[kind] + 1
    if low >= high:
        return high
    hint = holds(t, kind, queue, model, low, goal, rate, stretch, 0)
    if hint >= 0:
        return low
    hint, step = 0, 1
    while low + step < high:  # what is needed is mostly near what was needed before
        found = holds(t, kind, queue, model, low + step, goal, rate, stretch, hint)
        if found >= 0:
            high, hint = low + step, found
            break
        low += step
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        found = holds(t, kind, queue, model, middle, goal, rate, stretch, hint)
        if found >= 0:
            high, hint = middle, found
        else:
            low = middle
    return high


@njit(cache=True, nogil=True, error_model="numpy")
def largest_rate(
    t: Tables,
    kind: int,
    queue: int,
    model: int,
    goal: float,
    units: int,
    stretch: float,
    low: float,
) -> float:
    """Largest rate (requests/ms) whose P99 reaches ``goal`` on ``units``, to 1 % from above; 0 when
    none from ``low`` on does."""
    hint = holds(t, kind, queue, model, units, goal, low, stretch, 0)
    if hint < 0:
        return 0.0
    high = 0.0
    for c in range(t.caps.shape[0]):
        if t.caps[c] <= t.most_batch[kind, model]:
            high = max(
                high, t.load[-1] * t.caps[c] / (stretch * t.curve_ms[kind, model, units, t.caps[c]])
            )
    step = 1.3 * low
    while step < high:
        found = holds(t, kind, queue, model, units, goal, step, stretch, hint)
        if found < 0:
            high = step
            break
        low, hint = step, found
        step *= 1.3
    while high > low * 1.01:
        middle = 0.5 * (low + high)
        found = holds(t, kind, queue, model, units, goal, middle, stretch, hint)
        if found >= 0:
            low, hint = middle, found
        else:
            high = middle
    return high


@njit(cache=True, nogil=True, error_model="numpy")
def nearest_units(grid: I64, units: int) -> int:
    """Which value of ``grid`` is nearest."""
    best = 0
    for i in range(grid.shape[0]):
        if abs(grid[i] - units) < abs(grid[best] - units):
            best = i
    return best


@njit(cache=True, nogil=True, error_model="numpy")
def pair_gain(
    t: Tables, kind: int, own: int, own_units: int, other: int, other_units: int, other_batch: float
) -> float:
    """What a neighbour that always executes adds to the service time of ``own``, as a fraction of
    it."""
    w, fw = _place(t.gain_batch, other_batch)
    w1 = min(w + 1, t.gain_batch.shape[0] - 1)
    row = t.gain[
        kind,
        own,
        other,
        nearest_units(t.gain_units, own_units),
        nearest_units(t.gain_units, other_units),
    ]
    return row[w] * (1.0 - fw) + row[w1] * fw
