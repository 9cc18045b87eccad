"""Compiled arithmetic of igniterd's planner: the least share that holds a P99, and what tenants of one GPU need together.

Everything is read from tables, so that a question costs about a microsecond:

Queue. The response time of Triton's batcher with service times s(b) = s(1) + (b - 1) beta depends, in units of s(1), on three numbers
only: the shape x = (s(1) - beta)/beta, the largest batch B, and the load rho = rate s(B)/B. A real curve is not quite straight:
beta is taken over the batches that form at that rate, see :func:`working`; what is still amiss is evaluated at a few points a
model and mended by ``mend``.
``p99[., x, rho, B]`` holds P99 (1 - rho) / s(1), ``busy`` the utilisation and ``mean_batch`` the mean batch; between their points
they are interpolated linearly in log x and in rho. A queue delay adds a fourth number, the delay over s(1): an *option* is a
largest batch with a delay.

Neighbours. A neighbour that executes a fraction d of the time makes every batch 1 + d gain as long. Of several the worst counts in
full and of each other ``overlap``, which is read off the model (1: they add up). Stretching all service times by phi is the same as
dividing rate and SLO by it: no further table is needed.

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

    curve_ms: F64  # (K, M, U + 1, N + 1) s(b), upper bound, for batches 1..N; index 0 unused
    caps: I64  # (O,) B
    delay: F64  # (O,) queue delay over s(1)
    log_shape: F64  # (X,) rising
    load: F64  # (R,) rising, from 0, below 1
    p99: F64  # (Q, X, R, O)
    random: NDArray[np.bool_]  # (Q,) whether arrivals are rather random than constant: the scale of ``p99``
    busy: F64  # (Q, X, R, O)
    mean_batch: F64  # (Q, X, R, O)
    mend: F64  # (K, M, E, G, O) what P99 is to be multiplied by for the real curve, at E sizes and G loads, under the first arrival process
    mend_units: F64  # (E,)
    mend_load: F64  # (G,)
    gain: F64  # (K, M, M, V, V, W) slowdown by one neighbour that always executes, less 1
    gain_units: I64  # (V,) units at which ``gain`` was taken
    gain_batch: F64  # (W,)
    overlap: F64  # (K,)
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
def working(curve: F64, cap: int, rate: float) -> tuple[float, float]:
    """(log x, service time) of the batches that form at this rate.

    A server that is always busy forms batches b with rate s(b) = b: their service time is the scale of the P99, which is made by
    batches up to about twice that. The straight curve that stands for ``curve`` goes through s(1) and the batch there.
    """
    if cap == 1:
        return 0.0, curve[1]
    b, time = 1, curve[1]
    while b < cap and rate * curve[b] > b:
        b += 1
    if b > 1:
        short, over = rate * curve[b - 1] - (b - 1), b - rate * curve[b]
        time = curve[b] if over <= 0.0 else curve[b - 1] + (curve[b] - curve[b - 1]) * short / (short + over)
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
def p99_ms(t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float) -> float:
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
def behaviour(t: Tables, kind: int, queue: int, model: int, units: int, c: int, rate: float, stretch: float) -> tuple[float, float]:
    """(utilisation, mean batch); (1, largest batch) beyond the tables."""
    curve, cap = t.curve_ms[kind, model, units], t.caps[c]
    load = rate * stretch * curve[cap] / cap
    if not load <= t.load[-1]:
        return 1.0, float(cap)
    i, fi = _place(t.log_shape, working(curve, cap, rate * stretch)[0])
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
def holds(t: Tables, kind: int, queue: int, model: int, units: int, goal: float, rate: float, stretch: float, hint: int) -> int:
    """An option that reaches ``goal``, ``hint`` if it does; -1 when none does."""
    if t.caps[hint] <= t.most_batch[kind, model] and p99_ms(t, kind, queue, model, units, hint, rate, stretch) <= goal:
        return hint
    c, value = best_option(t, kind, queue, model, units, goal, rate, stretch, True)
    return c if value <= goal else -1


@njit(cache=True, nogil=True, error_model="numpy")
def least_units(t: Tables, kind: int, queue: int, model: int, goal: float, rate: float, stretch: float, low: int) -> int:
    """Fewest units, at least ``low``, whose P99 reaches ``goal``; one more than the GPU has when none does."""
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
def largest_rate(t: Tables, kind: int, queue: int, model: int, goal: float, units: int, stretch: float, low: float) -> float:
    """Largest rate (requests/ms) whose P99 reaches ``goal`` on ``units``, to 1 % from above; 0 when none from ``low`` on does."""
    hint = holds(t, kind, queue, model, units, goal, low, stretch, 0)
    if hint < 0:
        return 0.0
    high = 0.0
    for c in range(t.caps.shape[0]):
        if t.caps[c] <= t.most_batch[kind, model]:
            high = max(high, t.load[-1] * t.caps[c] / (stretch * t.curve_ms[kind, model, units, t.caps[c]]))
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
            worst, others = 0.0, 0.0
            for j in range(count):
                if j != k:
                    push = busy[j] * pair_gain(t, kind, items.model[i], units[k], items.model[who[j]], units[j], batch[j])
                    others += push
                    worst = max(worst, push)
            phi = 1.0 + worst + t.overlap[kind] * (others - worst)
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

    Average: for each unit of the GPU that the item leaves to others, the push all items have for each unit they take, of two neighbours.
    """
    n, models = items.model.shape[0], t.curve_ms.shape[1]
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
            phi = 1.0 + pressure[items.model[i]] / taken * (t.units[kind] - alone[i]) * 0.5 * (1.0 + t.overlap[kind])
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

    Unsplit it takes ``alone``. Split, its parts serve at most what their units serve alone (``largest_rate``, from above): the
    fewest units over all ways to split is a knapsack, solved exactly.
    """
    top = t.units[kind]
    rates = np.zeros(top + 1)
    for i in range(items.model.shape[0]):
        m, goal, rate, queue = items.model[i], items.goal_ms[i], items.rate[i], items.queue[i]
        fewest = least_units(t, kind, queue, m, goal, rate * 1e-4, 1.0, 1)
        out[i] = np.inf
        if fewest > top:
            continue
        if alone[i] <= top:
            out[i] = alone[i]
            if 2 * fewest >= alone[i]:
                continue
        most = min(alone[i] - 1, top)
        below = rate * 1e-4
        for u in range(fewest, most + 1):
            rates[u] = largest_rate(t, kind, queue, m, goal, u, 1.0, below)
            if u > fewest:  # more units never serve less; the tables may say so by a hair
                rates[u] = max(rates[u], rates[u - 1])
            below = max(below, 0.95 * rates[u])
        if rates[most] > 0.0:
            out[i] = min(out[i], _fewest_in_parts(rates, fewest, most, rate))


@njit(cache=True, nogil=True, error_model="numpy")
def _fewest_in_parts(rates: F64, fewest: int, most: int, rate: float) -> float:
    """Fewest units, over all ways to add parts of ``fewest``..``most`` units up, that serve ``rate``; part u serves ``rates[u]``."""
    best = 0.0
    for u in range(fewest, most + 1):
        best = max(best, rates[u] / u)
    size = int(np.ceil(rate / best)) + 2 * most
    served = np.zeros(size + 1)
    for total in range(1, size + 1):
        served[total] = served[total - 1]
        for u in range(fewest, min(most, total) + 1):
            served[total] = max(served[total], served[total - u] + rates[u])
        if served[total] >= rate:
            return float(total)
    return np.ceil(rate / best)
