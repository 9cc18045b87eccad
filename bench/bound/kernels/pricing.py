"""Compiled parts of the planner's lower bound: what a GPU's tenants are worth at most, at given
prices of the workloads.

The bound (:mod:`bench.bound.proof`) needs an upper limit of the worth of any GPU's tenants,
over all sets of them. Here the sets are sorted by *composition*: how many tenants of each *class*
there are, a class being a model and a range of how much harm a tenant does. The composition fixes
the least slowdown of each class; with it, a tenant takes at least so many units, and the worth is a
knapsack that is solved exactly. Units: whole share units, ms, requests/ms.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.planner.kernels.shares import Items
from igniterd.queueing.kernels.lookup import (
    Tables,
    behaviour,
    least_units,
    nearest_units,
)

_NONE = -1e18
"""Worth of what cannot be."""


@njit(cache=True, nogil=True, error_model="numpy")
def needs_slowed(t: Tables, items: Items, kind: int, stretches: F64, out: I64) -> None:
    """Write the least units of every item at each of the rising ``stretches`` into ``out`` (n, L);
    one above the GPU's where none do."""
    for i in range(items.model.shape[0]):
        low = 1
        for level in range(stretches.shape[0]):
            if low <= t.units[kind]:
                low = least_units(
                    t,
                    kind,
                    items.queue[i],
                    items.model[i],
                    items.goal_ms[i],
                    items.rate[i],
                    stretches[level],
                    low,
                )
            out[i, level] = low


@njit(cache=True, nogil=True, error_model="numpy")
def _least_beyond(gain: F64) -> F64:
    """``gain`` (M, M, V, V, W), each the least over all batches from there on."""
    out = gain.copy()
    for w in range(gain.shape[4] - 2, -1, -1):
        out[..., w] = np.minimum(out[..., w], out[..., w + 1])
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def harms(t: Tables, items: Items, kind: int, alone: I64, out: F64) -> None:
    """Write into ``out`` (n, U + 1, M, V) the least slowdown each item, on so many units, adds to a
    neighbour of each model and size.

    Least over its largest batches (whether they hold the SLO or not) and its own slowdown (which
    makes it busier, and its batches larger). Zero below ``alone``. Sizes are looked at ever farther
    apart; what lies between has the harm of the next, on which the item is least busy, at the least
    gain of any between.
    """
    top, sizes, widths = t.units[kind], t.gain.shape[3], t.gain.shape[5]
    near = t.gain[kind]
    far = _least_beyond(near)
    out[:] = 0.0
    for i in range(items.model.shape[0]):
        j = items.model[i]
        first = alone[i]
        while first <= top:
            units = min(top, first + (first - alone[i]) // 2)
            v0, v1 = nearest_units(t.gain_units, first), nearest_units(t.gain_units, units)
            out[i, first : units + 1] = np.inf
            for c in range(t.caps.shape[0]):
                if t.caps[c] > t.most_batch[kind, j]:
                    continue
                busy, batch = behaviour(t, kind, items.queue[i], j, units, c, items.rate[i], 1.0)
                w = 0
                while w < widths - 2 and t.gain_batch[w + 1] <= batch:
                    w += 1
                part = min(
                    1.0,
                    max(0.0, (batch - t.gain_batch[w]) / (t.gain_batch[w + 1] - t.gain_batch[w])),
                )
                for m in range(near.shape[0]):
                    for own in range(sizes):
                        for v in range(min(v0, v1), max(v0, v1) + 1):
                            gain = (
                                near[m, j, own, v, w] * (1.0 - part)
                                + near[m, j, own, v, w + 1] * part
                            )
                            push = busy * min(gain, far[m, j, own, v, w + 1])
                            out[i, units, m, own] = min(out[i, units, m, own], push)
            for between in range(first, units):
                out[i, between] = out[i, units]
            first = units + 1


@njit(cache=True, nogil=True, error_model="numpy")
def _slowed(
    harm: F64, victim: int, overlap: float, step: float, last: int, counts: I64, own: int
) -> int:
    """Level of slowdown (rounded down) of a tenant of kind ``victim`` beside ``counts`` (C,), one
    of class ``own`` being itself."""
    worst, total = 0.0, 0.0
    for other in range(counts.shape[0]):
        count = counts[other] - (1 if other == own else 0)
        if count > 0:
            push = harm[other, victim]
            total += count * push
            worst = max(worst, push)
    return min(last, int((worst + overlap * (total - worst)) / step))


@njit(cache=True, nogil=True, error_model="numpy")
def beside(
    harm: F64, models: int, overlap: float, step: float, last: int, counts: I64, most: int, out: I64
) -> None:
    """Write the level of slowdown of one more tenant, of each model, beside compositions of
    ``most`` into ``out`` (T, M); else -1."""
    sizes = harm.shape[1] // models
    for k in range(counts.shape[0]):
        out[k] = -1
        if counts[k].sum() == most:
            for m in range(models):
                out[k, m] = last
                for v in range(sizes):
                    out[k, m] = min(
                        out[k, m], _slowed(harm, m * sizes + v, overlap, step, last, counts[k], -1)
                    )


@njit(cache=True, nogil=True, error_model="numpy")
def _levels(
    harm: F64, victim: I64, overlap: float, step: float, last: int, counts: I64, out: I64
) -> None:
    """Write the level of slowdown of each class present into ``out`` (C,)."""
    for c in range(counts.shape[0]):
        if counts[c] > 0:
            out[c] = _slowed(harm, victim[c], overlap, step, last, counts, c)


@njit(cache=True, nogil=True, error_model="numpy")
def compositions(
    harm: F64,
    victim: I64,
    least: I64,
    stock: I64,
    overlap: float,
    step: float,
    top: int,
    most: int,
    counts_out: I64,
    levels_out: I64,
) -> int:
    """Write every composition of up to ``most`` tenants that may fit into ``counts_out`` and
    ``levels_out`` (T, C); how many, -1: above T.

    ``harm`` (C, X) least slowdown a class adds to each kind of victim (a model and a size),
    ``victim`` (C,) which of these each class is, ``least`` (C, L) fewest units a tenant of the
    class takes at each level of slowdown, ``stock`` (C,) tenants there are of its model. More
    neighbours never slow less: what adds to a composition that does not fit does not fit.
    """
    classes = victim.shape[0]
    counts, levels = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    chosen = np.empty(most + 1, np.int64)
    found, depth, c = 0, 0, 0
    while True:
        if c == classes:
            if depth == 0:
                return found
            depth -= 1
            c = chosen[depth]
            counts[c] -= 1
            c += 1
            continue
        counts[c] += 1
        total = 0
        if counts[c] > stock[c]:
            total = top + 1
        else:
            _levels(harm, victim, overlap, step, least.shape[1] - 1, counts, levels)
            for k in range(classes):
                if counts[k] > 0:
                    total += counts[k] * least[k, levels[k]]
        if total <= top:
            if found == counts_out.shape[0]:
                return -1
            counts_out[found] = counts
            levels_out[found] = levels
            found += 1
            if depth + 1 < most:
                chosen[depth] = c
                depth += 1
                continue
        counts[c] -= 1
        c += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _buckets(
    need: I64,
    reach: I64,
    who: I64,
    copies: I64,
    level: int,
    order: I64,
    c: int,
    model: int,
    most_units: int,
    lists: I64,
    sizes: I64,
) -> None:
    """The best items of a class by the units they take: ``lists`` (U + 1, N) and their ``sizes`` (U
    + 1,). ``order``: best first."""
    top, most = lists.shape[0] - 1, lists.shape[1]
    sizes[:] = 0
    for i in order:
        if who[i] != model:
            continue
        units = max(need[i, level], reach[i, c])
        if units > most_units:
            continue
        for _ in range(min(copies[i], min(most, top // units) - sizes[units])):
            lists[units, sizes[units]] = i
            sizes[units] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(price: F64, lists: I64, sizes: I64, most: int, worth: F64, steps: I64) -> None:
    """Worth (N + 1, U + 1) of exactly n items in exactly u units; ``steps`` (U + 1, N + 1, U + 1),
    unless empty, what each bucket gave."""
    top = lists.shape[0] - 1
    worth[:] = _NONE
    worth[0, 0] = 0.0
    for units in range(1, top + 1):
        if sizes[units] == 0:
            continue
        for n in range(most, 0, -1):
            for u in range(top, units - 1, -1):
                total, best, taken = 0.0, worth[n, u], 0
                for q in range(1, min(n, sizes[units], u // units) + 1):
                    total += price[lists[units, q - 1]]
                    if worth[n - q, u - q * units] + total > best:
                        best, taken = worth[n - q, u - q * units] + total, q
                worth[n, u] = best
                if steps.shape[0] > 0:
                    steps[units, n, u] = taken


@njit(cache=True, nogil=True, error_model="numpy")
def tabulate(
    need: I64,
    reach: I64,
    who: I64,
    copies: I64,
    price: F64,
    order: I64,
    model: I64,
    ceiling: I64,
    wanted: I64,
    worth: F64,
) -> None:
    """Write into ``worth`` (C, L, N + 1, U + 1) the most that n items of a class are worth in
    exactly u units, at each level.

    ``need`` (n, L), ``reach`` (n, C) units an item takes at least to be in the class, ``ceiling``
    (C,) at most, ``wanted`` (C, L): up to how many items.
    """
    top = worth.shape[3] - 1
    lists, sizes = np.empty((top + 1, worth.shape[2]), np.int64), np.empty(top + 1, np.int64)
    nothing = np.empty((0, 0, 0), np.int64)
    for c in range(wanted.shape[0]):
        for level in range(wanted.shape[1]):
            if wanted[c, level] > 0:
                _buckets(
                    need, reach, who, copies, level, order, c, model[c], ceiling[c], lists, sizes
                )
                _fill(price, lists, sizes, wanted[c, level], worth[c, level], nothing)


@njit(cache=True, nogil=True, error_model="numpy")
def _add(before: F64, table: F64, after: F64) -> None:
    """Worth by exact units (U + 1,) with those of ``table`` (U + 1,) added."""
    after[:] = _NONE
    for mine in range(table.shape[0]):
        if table[mine] > _NONE / 2:
            for u in range(table.shape[0] - mine):
                after[u + mine] = max(after[u + mine], before[u] + table[mine])


@njit(cache=True, nogil=True, error_model="numpy")
def _join(worth: F64, further: F64, counts: I64, levels: I64, beyond: I64, stages: F64) -> int:
    """Worth of a composition by exact units: ``stages`` (C + M + 1, U + 1), a row a class present,
    then a model beyond; the last row."""
    stages[0] = _NONE
    stages[0, 0] = 0.0
    row = 0
    for c in range(counts.shape[0]):
        if counts[c] > 0:
            row += 1
            _add(stages[row - 1], worth[c, levels[c], counts[c]], stages[row])
    for m in range(beyond.shape[0]):
        if beyond[m] >= 0:
            row += 1
            _add(stages[row - 1], further[m, beyond[m]], stages[row])
    return row


@njit(cache=True, nogil=True, error_model="numpy")
def appraise(worth: F64, further: F64, counts: I64, levels: I64, beyond: I64, out: F64) -> None:
    """Write the most that a GPU of each composition is worth into ``out`` (T,).

    ``worth`` (C, L, N + 1, U + 1), ``further`` (M, L, U + 1): any number of tenants of a model,
    ``beyond`` (T, M): their levels, -1: none.
    """
    stages = np.empty((counts.shape[1] + beyond.shape[1] + 1, worth.shape[3]))
    for k in range(counts.shape[0]):
        out[k] = stages[_join(worth, further, counts[k], levels[k], beyond[k], stages)].max()


@njit(cache=True, nogil=True, error_model="numpy")
def _mine(before: F64, table: F64, target: float, units: int) -> int:
    """The units that ``table`` gave to reach ``target`` in ``units``."""
    mine = 0
    while mine < units and not before[units - mine] + table[mine] >= target - 1e-9:
        mine += 1
    return mine


@njit(cache=True, nogil=True, error_model="numpy")
def recover(
    need: I64,
    reach: I64,
    who: I64,
    copies: I64,
    price: F64,
    order: I64,
    model: I64,
    ceiling: I64,
    worth: F64,
    further: F64,
    counts: I64,
    levels: I64,
    beyond: I64,
    chosen: I64,
) -> int:
    """The items of the best GPU of one composition into ``chosen``; their number. ``worth`` has the
    models, any harm, after the classes."""
    top, classes = worth.shape[3] - 1, counts.shape[0]
    stages = np.empty((classes + beyond.shape[0] + 1, top + 1))
    lists, sizes = np.empty((top + 1, worth.shape[2]), np.int64), np.empty(top + 1, np.int64)
    steps, table = (
        np.empty((top + 1, worth.shape[2], top + 1), np.int64),
        np.empty((worth.shape[2], top + 1)),
    )
    row = _join(worth, further, counts, levels, beyond, stages)
    units, number = int(np.argmax(stages[row])), 0
    for c in range(classes + beyond.shape[0] - 1, -1, -1):
        level = levels[c] if c < classes else beyond[c - classes]
        if level < 0 or (c < classes and counts[c] == 0):
            continue
        source = worth[c, level, counts[c]] if c < classes else further[c - classes, level]
        mine = _mine(stages[row - 1], source, stages[row, units], units)
        n = counts[c] if c < classes else int(np.argmax(worth[c, level, :, mine]))
        row -= 1
        units -= mine
        _buckets(need, reach, who, copies, level, order, c, model[c], ceiling[c], lists, sizes)
        steps[:] = 0
        _fill(price, lists, sizes, worth.shape[2] - 1 if c >= classes else n, table, steps)
        for bucket in range(top, 0, -1):
            taken = steps[bucket, n, mine] if n > 0 else 0
            for q in range(taken):
                chosen[number] = lists[bucket, q]
                number += 1
            n -= taken
            mine -= taken * bucket
    return number
