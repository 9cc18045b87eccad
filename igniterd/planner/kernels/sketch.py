"""Compiled sketch of what items need beside one another: tables of an item each, so that a set of
them costs a fraction of a microsecond.

It has what an item needs alone, the slowdown it bears with so many units more, and the interference
it causes as busy as it is there. Searches read it and check what they find:
:func:`igniterd.planner.kernels.shares.least_shares` solves utilisation and shares together.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from igniterd.arrays import F64, I64
from igniterd.planner.kernels.shares import Items
from igniterd.queueing.kernels.lookup import Tables, calm_option, holds, least_units, pair_gain

EXTRA_UNITS = 12
"""Units an item may need above what it needs alone before it counts as not fitting beside
others."""
_MAX_SLOWDOWN = 1.6


class Sketch(NamedTuple):
    """Items as the search sees them, on one kind of GPU; n items, M models, V sizes of
    ``Tables.gain_units``."""

    alone: I64  # (n,) units alone; above the GPU's where there is none
    slowdown_limit: F64  # (n, EXTRA_UNITS) largest slowdown at which alone + k units hold
    size: I64  # (n,) which of the V sizes
    interference: F64  # (n, M, V) slowdown it adds to a tenant of that model and size


@njit(cache=True, nogil=True, error_model="numpy")
def sketch(t: Tables, items: Items, kind: int, out: Sketch) -> None:
    """Fill ``out`` for all items; ``out.alone`` is computed too."""
    n, models = items.model.shape[0], t.curve_ms.shape[1]
    top = t.units[kind]
    for i in range(n):
        queue, m, goal, rate = items.queue[i], items.model[i], items.goal_ms[i], items.rate[i]
        alone = least_units(t, kind, queue, m, goal, rate, 1.0, 1)
        out.alone[i] = alone
        if alone > top:
            continue
        low, hint = 1.0, 0
        for k in range(EXTRA_UNITS):
            if alone + k > top or low >= _MAX_SLOWDOWN:
                out.slowdown_limit[i, k] = low if alone + k > top else _MAX_SLOWDOWN
                continue
            high, step = _MAX_SLOWDOWN, 1.04
            while low * step < high:
                found = holds(t, kind, queue, m, alone + k, goal, rate, low * step, hint)
                if found < 0:
                    high = low * step
                    break
                low, hint = low * step, found
            while high - low > 0.003:
                middle = 0.5 * (low + high)
                found = holds(t, kind, queue, m, alone + k, goal, rate, middle, hint)
                if found >= 0:
                    low, hint = middle, found
                else:
                    high = middle
            out.slowdown_limit[i, k] = low
        _, utilisation, mean_batch = calm_option(t, kind, queue, m, alone, goal, rate, 1.0)
        best = 0
        for v in range(t.gain_units.shape[0]):
            if abs(t.gain_units[v] - alone) < abs(t.gain_units[best] - alone):
                best = v
            for other in range(models):
                out.interference[i, other, v] = utilisation * pair_gain(
                    t, kind, other, t.gain_units[v], m, alone, mean_batch
                )
        out.size[i] = best


@njit(cache=True, nogil=True, error_model="numpy")
def need_of(s: Sketch, item: int, slowdown: float, top: int) -> int:
    for k in range(EXTRA_UNITS):
        if slowdown <= s.slowdown_limit[item, k]:
            return s.alone[item] + k
    return 2 * top


@njit(cache=True, nogil=True, error_model="numpy")
def slowdown_of(
    s: Sketch, model: I64, overlap: float, chosen: I64, count: int, place: int
) -> float:
    """What the one at a place among the first ``count`` of ``chosen`` bears from the others."""
    i = chosen[place]
    worst, others = 0.0, 0.0
    for b in range(count):
        if b != place:
            interference = s.interference[chosen[b], model[i], s.size[i]]
            others += interference
            worst = max(worst, interference)
    return 1.0 + worst + overlap * (others - worst)


@njit(cache=True, nogil=True, error_model="numpy")
def sum_needs(s: Sketch, model: I64, overlap: float, chosen: I64, count: int, top: int) -> int:
    """Units the first ``count`` of ``chosen`` need together, by the sketch."""
    total = 0
    for a in range(count):
        slowdown = slowdown_of(s, model, overlap, chosen, count, a)
        total += need_of(s, chosen[a], slowdown, top)
        if total > top:
            return total
    return total
