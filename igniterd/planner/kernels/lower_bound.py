"""Compiled parts of the planner's lower bound: the fewest units a workload takes, however split.

A part of u units serves at most the rate that u units serve alone, and no less than a smaller one.
The fewest units (or the least weight) of the parts that serve a rate together is then an unbounded
knapsack over units, solved exactly. Neighbours are left out: they only make parts need more. Units:
whole share units, ms, requests/ms.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.planner.kernels.shares import Items
from igniterd.queueing.kernels.lookup import Tables, largest_rate, least_units


@njit(cache=True, nogil=True, error_model="numpy")
def bound_units(t: Tables, items: Items, kind: int, alone: I64, out: F64) -> None:
    """Write a lower bound on the units each item takes on GPUs of ``kind``, however it is split and
    with no neighbour at all.

    Unsplit it takes ``alone``. Split, its parts serve at most what their units serve alone
    (``largest_rate``, from above): the fewest units over all ways to split is a knapsack, solved
    exactly.
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
    """Fewest units, over all ways to add parts of ``fewest``..``most`` units up, that serve
    ``rate``; part u serves ``rates[u]``."""
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


@njit(cache=True, nogil=True, error_model="numpy")
def rates_by_units(
    t: Tables, kind: int, queue: int, model: int, goal: float, rate: float, out: F64
) -> None:
    """Write the largest rate (from above) that each number of units serves alone into ``out`` (U +
    1,); ``rate``: one to start at."""
    top = t.units[kind]
    out[:] = 0.0
    below = rate * 1e-4
    for u in range(least_units(t, kind, queue, model, goal, below, 1.0, 1), top + 1):
        out[u] = max(largest_rate(t, kind, queue, model, goal, u, 1.0, below), out[u - 1])
        below = max(below, 0.95 * out[u])


@njit(cache=True, nogil=True, error_model="numpy")
def split_weight(rates: F64, rate: float, off: int) -> float:
    """Least weight of two or more parts that serve ``rate`` together, where a part of u units
    serves ``rates[u]`` and weighs 2 u - ``off``.

    Infinite where no parts do; ``off`` must be below twice the fewest units that serve anything.
    """
    top = rates.shape[0] - 1
    fewest = 1
    while fewest <= top and rates[fewest] <= 0.0:
        fewest += 1
    if fewest > top:
        return np.inf
    most, best = fewest - 1, 0.0
    while most < top and rates[most + 1] < rate:
        most += 1
        best = max(best, rates[most] / (2 * most - off))
    # one part that would do alone, and another
    whole = np.inf if most == top else float(2 * (most + 1 + fewest) - 2 * off)
    if most < fewest:
        return whole
    least = rate / best
    if least >= whole:
        return whole
    if least > 8 * top:
        return float(np.ceil(least))
    size = int(np.ceil(least)) + 2 * (2 * most - off)
    served = np.zeros(size + 1)
    for total in range(1, size + 1):
        served[total] = served[total - 1]
        for u in range(fewest, min(most, (total + off) // 2) + 1):
            served[total] = max(served[total], served[total - 2 * u + off] + rates[u])
        if served[total] >= rate:
            return min(whole, float(total))
    return whole
