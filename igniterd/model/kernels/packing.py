"""Compiled arithmetic of igniterd's planner: the least share that holds a P99, and what tenants of one GPU need together.

Everything is read from tables, so that a question costs about a microsecond:

Queue. The response time of Triton's batcher with service times s(b) = s(1) + (b - 1)(s(B) - s(1))/(B - 1) depends, in units of s(1), on
three numbers only: the shape x = (s(1) - beta)/beta with beta the slope, the largest batch B, and the load rho = rate s(B)/B.
``p99[., x, rho, B]`` holds P99 (1 - rho) / s(1), ``busy`` the utilisation and ``mean_batch`` the mean batch; between their points
they are interpolated linearly in log x and in rho. A queue delay adds a fourth number, the delay over s(1): an *option* is a
largest batch with a delay.

Neighbours. A neighbour that executes a fraction d of the time makes every batch 1 + d gain as long; several add up. Stretching all
service times by phi is the same as dividing rate and SLO by it: no further table is needed.

These tables steer the search; what it finds is checked with the model and the queue themselves.
Units: ms, requests/ms, whole share units. ``kind`` counts the kinds of GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SEATS = 64
"""Most tenants of one GPU."""
_ROUNDS = 12


class Tables(NamedTuple):
    """What the kernels read; shapes with K kinds of GPU, M models, U units, O options, Q arrival processes, X shapes, R loads."""

    first_ms: F64  # (K, M, U + 1) s(1), upper bound; row 0 unused
    full_ms: F64  # (K, M, U + 1, O) s(B)
    caps: I64  # (O,) B
    delay: F64  # (O,) queue delay over s(1)
    log_shape: F64  # (X,) rising
    load: F64  # (R,) rising, from 0, below 1
    p99: F64  # (Q, X, R, O)
    busy: F64  # (Q, X, R, O)
    mean_batch: F64  # (Q, X, R, O)
    gain: F64  # (K, M, M, V, V, W) slowdown by one neighbour that always executes, less 1
    gain_units: I64  # (V,) units at which ``gain`` was taken
    gain_batch: F64  # (W,)
    units: I64  # (K,) units of one GPU
    most_batch: I64  # (K, M) largest batch a model was profiled for


class Items(NamedTuple):
    """The replicas to be placed; all (n,)."""

    model: I64
    queue: I64  # arrival process
    goal_ms: F64  # what P99 may be, in these tables' terms
    rate: F64  # requests/ms


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
def _shape(first: float, full: float, cap: int) -> float:
    """log of x for a curve that starts at ``first`` and is ``full`` at ``cap``."""
    if cap == 1:
        return 0.0
    slope = (full - first) / (cap - 1)
    return np.log(max(first - slope, 1e-3 * first) / max(slope, 1e-6 * first))


@njit(cache=True, nogil=True, error_model="numpy")
def _read(table: F64, i: int, fi: float, j: int, fj: float, c: int) -> float:
    i1, j1 = min(i + 1, table.shape[0] - 1), min(j + 1, table.shape[1] - 1)
    low = table[i, j, c] * (1.0 - fj) + table[i, j1, c] * fj
    high = table[i1, j, c] * (1.0 - fj) + table[i1, j1, c] * fj
    return low * (1.0 - fi) + high * fi


@njit(cache=True, nogil=True, error_model="numpy")
def p99_ms(t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float) -> float:
    """P99 (ms) under option number ``c``; infinite where the load is beyond the tables."""
    first, full, cap = t.first_ms[kind, model, units], t.full_ms[kind, model, units, c], t.caps[c]
    load = rate * stretch * full / cap
    if not load <= t.load[-1]:
        return np.inf
    i, fi = _place(t.log_shape, _shape(first, full, cap))
    j, fj = _place(t.load, load)
    return stretch * first * _read(t.p99[queue], i, fi, j, fj, c) / (1.0 - load)


@njit(cache=True, nogil=True, error_model="numpy")
def behaviour(t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float) -> tuple[float, float]:
    """(utilisation, mean batch); (1, largest batch) beyond the tables."""
    first, full, cap = t.first_ms[kind, model, units], t.full_ms[kind, model, units, c], t.caps[c]
    load = rate * stretch * full / cap
    if not load <= t.load[-1]:
        return 1.0, float(cap)
    i, fi = _place(t.log_shape, _shape(first, full, cap))
    j, fj = _place(t.load, load)
    return _read(t.busy[queue], i, fi, j, fj, c), _read(t.mean_batch[queue], i, fi, j, fj, c)


@njit(cache=True, nogil=True, error_model="numpy")
def best_option(
    t: Tables, kind: int, queue: int, model: int, units: int, goal: float, rate: float, stretch: float, enough: bool
) -> tuple[int, float]:
    """The option with the least P99, and that P99. ``enough``: the first that reaches ``goal`` will do."""
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
    t: Tables, kind: int, queue: int, model: int, units: int, goal: float, rate: float, stretch: float
) -> tuple[int, float, float]:
    """(option, utilisation, mean batch) of the least utilisation that reaches ``goal``: it disturbs the neighbours least.

    Where none reaches it: of the option with the least P99.
    """
    best, least, batch = -1, np.inf, 1.0
    for c in range(t.caps.shape[0]):
        if t.caps[c] <= t.most_batch[kind, model] and p99_ms(t, kind, queue, model, units, c, rate, stretch) <= goal:
            busy, mean = behaviour(t, kind, queue, model, units, c, rate, stretch)
            if busy < least - 1e-3:
                best, least, batch = c, busy, mean
    if best < 0:
        best, _ = best_option(t, kind, queue, model, units, goal, rate, stretch, False)
        least, batch = behaviour(t, kind, queue, model, units, best, rate, stretch)
    return best, least, batch


@njit(cache=True, nogil=True, error_model="numpy")
def least_units(t: Tables, kind: int, queue: int, model: int, goal: float, rate: float, stretch: float, low: int) -> int:
    """Fewest units, at least ``low``, whose P99 reaches ``goal``; one more than the GPU has when none does."""
    high = t.units[kind] + 1
    if low >= high:
        return high
    if best_option(t, kind, queue, model, low, goal, rate, stretch, True)[1] <= goal:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        if best_option(t, kind, queue, model, middle, goal, rate, stretch, True)[1] <= goal:
            high = middle
        else:
            low = middle
    return high


@njit(cache=True, nogil=True, error_model="numpy")
def largest_rate(t: Tables, kind: int, queue: int, model: int, goal: float, units: int, stretch: float) -> float:
    """Largest rate (requests/ms) whose P99 reaches ``goal`` on ``units``; 0 when none does."""
    high = 0.0
    for c in range(t.caps.shape[0]):
        if t.caps[c] <= t.most_batch[kind, model]:
            high = max(high, t.load[-1] * t.caps[c] / (stretch * t.full_ms[kind, model, units, c]))
    low = 0.0
    if best_option(t, kind, queue, model, units, goal, high * 1e-6, stretch, True)[1] > goal:
        return 0.0
    for _ in range(14):
        middle = 0.5 * (low + high)
        if best_option(t, kind, queue, model, units, goal, middle, stretch, True)[1] <= goal:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True, error_model="numpy")
def _nearest_units(grid: I64, units: int) -> int:
    best = 0
    for i in range(grid.shape[0]):
        if abs(grid[i] - units) < abs(grid[best] - units):
            best = i
    return best


@njit(cache=True, nogil=True, error_model="numpy")
def pair_gain(t: Tables, kind: int, own: int, own_units: int, other: int, other_units: int, other_batch: float) -> float:
    """What a neighbour that always executes adds to the service time of ``own``, as a fraction of it."""
    w, fw = _place(t.gain_batch, other_batch)
    w1 = min(w + 1, t.gain_batch.shape[0] - 1)
    row = t.gain[kind, own, other, _nearest_units(t.gain_units, own_units), _nearest_units(t.gain_units, other_units)]
    return row[w] * (1.0 - fw) + row[w1] * fw


@njit(cache=True, nogil=True, error_model="numpy")
def settle(
    t: Tables, items: Items, kind: int, who: I64, count: int, ceiling: int, units: I64, option: I64, busy: F64, batch: F64, stretch: F64
) -> int:
    """Least units the first ``count`` of ``who`` need together on one GPU; their sum.

    A tenant's need depends on how busy the others are, which depends on their shares and on how it slows them: units only rise from
    round to round until nothing changes. Gives up, with a sum above ``ceiling``, as soon as that is certain. Writes units, option,
    utilisation, mean batch and slowdown of each, (count,).
    """
    total = 0
    for k in range(count):
        i = who[k]
        stretch[k] = 1.0
        units[k] = least_units(t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], 1.0, 1)
        total += units[k]
        if units[k] > t.units[kind]:
            return 2 * t.units[kind]
    for _ in range(_ROUNDS):
        if total > ceiling:
            return total
        for k in range(count):
            i = who[k]
            option[k], busy[k], batch[k] = calm_option(
                t, kind, items.queue[i], items.model[i], units[k], items.goal_ms[i], items.rate[i], stretch[k]
            )
        changed = False
        total = 0
        for k in range(count):
            i = who[k]
            phi = 1.0
            for j in range(count):
                if j != k:
                    phi += busy[j] * pair_gain(t, kind, items.model[i], units[k], items.model[who[j]], units[j], batch[j])
            changed = changed or abs(phi - stretch[k]) > 5e-4
            stretch[k] = phi
            need = least_units(t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], phi, units[k])
            changed = changed or need != units[k]
            units[k] = need
            total += need
            if need > t.units[kind]:
                return 2 * t.units[kind]
        if not changed:
            return total
    for k in range(count):
        i = who[k]
        option[k], busy[k], batch[k] = calm_option(
            t, kind, items.queue[i], items.model[i], units[k], items.goal_ms[i], items.rate[i], stretch[k]
        )
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def needs(t: Tables, items: Items, kind: int, out: I64) -> None:
    """Write the least units of every item alone on a GPU of ``kind`` into ``out`` (n,); units + 1 where there is none."""
    for i in range(items.model.shape[0]):
        out[i] = least_units(t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], 1.0, 1)


@njit(cache=True, nogil=True, error_model="numpy")
def crowded_needs(t: Tables, items: Items, kind: int, alone: I64, out: I64) -> None:
    """Write the least units of every item beside average neighbours into ``out`` (n,).

    Average: for each unit of the GPU that the item leaves to others, the busyness all items have for each unit they take.
    """
    n, models = items.model.shape[0], t.first_ms.shape[1]
    pressure = np.zeros(models)
    taken = 0.0
    for j in range(n):
        if alone[j] <= t.units[kind]:
            m = items.model[j]
            _, busy, batch = calm_option(t, kind, items.queue[j], m, alone[j], items.goal_ms[j], items.rate[j], 1.0)
            taken += alone[j]
            for i in range(models):
                pressure[i] += busy * pair_gain(t, kind, i, max(1, t.units[kind] // 3), m, alone[j], batch)
    for i in range(n):
        out[i] = alone[i]
        if alone[i] <= t.units[kind] and taken > 0:
            phi = 1.0 + pressure[items.model[i]] / taken * (t.units[kind] - alone[i])
            out[i] = least_units(t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], phi, alone[i])


@njit(cache=True, nogil=True, error_model="numpy")
def try_add(t: Tables, items: Items, kinds: I64, members: I64, counts: I64, used: I64, item: int, hosts: I64, out: I64) -> None:
    """Write into ``out`` what the sum of units of each of ``hosts`` becomes with ``item``; above the GPU's units when it does not fit."""
    who = np.empty(SEATS, np.int64)
    units = np.empty(SEATS, np.int64)
    option = np.empty(SEATS, np.int64)
    busy = np.empty(SEATS)
    batch = np.empty(SEATS)
    stretch = np.empty(SEATS)
    for h in range(hosts.shape[0]):
        g = hosts[h]
        count = counts[g]
        if count >= SEATS:
            out[h] = 2 * t.units[kinds[g]]
            continue
        who[:count] = members[g, :count]
        who[count] = item
        out[h] = settle(t, items, kinds[g], who, count + 1, t.units[kinds[g]], units, option, busy, batch, stretch)


@njit(cache=True, nogil=True, error_model="numpy")
def bound_units(t: Tables, items: Items, kind: int, alone: I64, out: F64) -> None:
    """Write a lower bound on the units each item takes on GPUs of ``kind``, however it is split and with no neighbour at all.

    Unsplit it takes ``alone``. In r >= 2 parts it takes at least r times the fewest units at which any rate is served, and at least
    rate / (the most rate a unit serves, over all shares); the smaller of the two ways is the bound.
    """
    top = t.units[kind]
    for i in range(items.model.shape[0]):
        m, goal, rate = items.model[i], items.goal_ms[i], items.rate[i]
        fewest = least_units(t, kind, items.queue[i], m, goal, rate * 1e-6, 1.0, 1)
        if fewest > top:
            out[i] = np.inf
            continue
        best = 0.0
        for u in range(fewest, min(alone[i], top) + 1):
            best = max(best, largest_rate(t, kind, items.queue[i], m, goal, u, 1.0) / u)
        split = max(2.0 * fewest, np.ceil(rate / best - 1e-9)) if best > 0.0 else np.inf
        out[i] = split if alone[i] > top else min(float(alone[i]), split)
