"""Compiled arithmetic of igniterd's planner for the tenants of one GPU: what they need together, on
the tables of ``lookup``.

These tables steer the search; what it finds is checked with the model and the queue themselves.
``kind`` counts the kinds of GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.queueing.kernels.lookup import (
    Tables,
    calm_option,
    largest_rate,
    least_units,
    pair_gain,
)

SEATS = 64
"""Most tenants of one GPU."""
_ROUNDS = 12


class Items(NamedTuple):
    """The replicas to be placed; all (n,)."""

    model: I64
    queue: I64  # arrival process
    goal_ms: F64  # what P99 may be, in these tables' terms
    rate: F64  # requests/ms


@njit(cache=True, nogil=True, error_model="numpy")
def settle(
    t: Tables,
    items: Items,
    kind: int,
    who: I64,
    count: int,
    ceiling: int,
    units: I64,
    option: I64,
    busy: F64,
    batch: F64,
    stretch: F64,
) -> int:
    """Least units the first ``count`` of ``who`` need together on one GPU; their sum.

    A tenant's need depends on how busy the others are, which depends on their shares and on how it
    slows them: units only rise from round to round until nothing changes. Gives up, with a sum
    above ``ceiling``, as soon as that is certain. Writes units, option, utilisation, mean batch and
    slowdown of each, (count,).
    """
    total = 0
    for k in range(count):
        i = who[k]
        stretch[k] = 1.0
        units[k] = least_units(
            t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], 1.0, 1
        )
        total += units[k]
        if units[k] > t.units[kind]:
            return 2 * t.units[kind]
    for _ in range(_ROUNDS):
        if total > ceiling:
            return total
        for k in range(count):
            i = who[k]
            option[k], busy[k], batch[k] = calm_option(
                t,
                kind,
                items.queue[i],
                items.model[i],
                units[k],
                items.goal_ms[i],
                items.rate[i],
                stretch[k],
            )
        changed = False
        total = 0
        for k in range(count):
            i = who[k]
            worst, others = 0.0, 0.0
            for j in range(count):
                if j != k:
                    push = busy[j] * pair_gain(
                        t, kind, items.model[i], units[k], items.model[who[j]], units[j], batch[j]
                    )
                    others += push
                    worst = max(worst, push)
            phi = 1.0 + worst + t.overlap[kind] * (others - worst)
            changed = changed or abs(phi - stretch[k]) > 5e-4
            stretch[k] = phi
            need = least_units(
                t,
                kind,
                items.queue[i],
                items.model[i],
                items.goal_ms[i],
                items.rate[i],
                phi,
                units[k],
            )
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
            t,
            kind,
            items.queue[i],
            items.model[i],
            units[k],
            items.goal_ms[i],
            items.rate[i],
            stretch[k],
        )
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def needs(t: Tables, items: Items, kind: int, out: I64) -> None:
    """Write the least units of every item alone on a GPU of ``kind`` into ``out`` (n,); units + 1
    where there is none."""
    for i in range(items.model.shape[0]):
        out[i] = least_units(
            t, kind, items.queue[i], items.model[i], items.goal_ms[i], items.rate[i], 1.0, 1
        )


@njit(cache=True, nogil=True, error_model="numpy")
def crowded_needs(t: Tables, items: Items, kind: int, alone: I64, out: I64) -> None:
    """Write the least units of every item beside average neighbours into ``out`` (n,).

    Average: for each unit of the GPU that the item leaves to others, the push all items have for
    each unit they take, of two neighbours.
    """
    n, models = items.model.shape[0], t.curve_ms.shape[1]
    pressure = np.zeros(models)
    taken = 0.0
    for j in range(n):
        if alone[j] <= t.units[kind]:
            m = items.model[j]
            _, busy, batch = calm_option(
                t, kind, items.queue[j], m, alone[j], items.goal_ms[j], items.rate[j], 1.0
            )
            taken += alone[j]
            for i in range(models):
                pressure[i] += busy * pair_gain(
                    t, kind, i, max(1, t.units[kind] // 3), m, alone[j], batch
                )
    for i in range(n):
        out[i] = alone[i]
        if alone[i] <= t.units[kind] and taken > 0:
            phi = 1.0 + pressure[items.model[i]] / taken * (t.units[kind] - alone[i]) * 0.5 * (
                1.0 + t.overlap[kind]
            )
            out[i] = least_units(
                t,
                kind,
                items.queue[i],
                items.model[i],
                items.goal_ms[i],
                items.rate[i],
                phi,
                alone[i],
            )


@njit(cache=True, nogil=True, error_model="numpy")
def try_add(
    t: Tables,
    items: Items,
    kinds: I64,
    members: I64,
    counts: I64,
    used: I64,
    item: int,
    hosts: I64,
    out: I64,
) -> None:
    """Write into ``out`` what the sum of units of each of ``hosts`` becomes with ``item``; above
    the GPU's units when it does not fit."""
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
        out[h] = settle(
            t,
            items,
            kinds[g],
            who,
            count + 1,
            t.units[kinds[g]],
            units,
            option,
            busy,
            batch,
            stretch,
        )


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
