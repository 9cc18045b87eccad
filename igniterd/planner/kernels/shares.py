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
