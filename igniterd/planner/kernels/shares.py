"""Compiled arithmetic of igniterd's planner for the tenants of one GPU: what they need together.

Theory. A tenant's slowdown is 1, plus the interference of its worst neighbour, plus ``overlap``
times that of the others. A neighbour's interference is its utilisation times a gain read from the
tables of ``lookup``. What a tenant needs at a slowdown is the fewest units whose P99 is within its
goal. Needs and utilisations depend on each other, so they are solved by turns from the needs alone.
Units only rise from round to round, which ends at the least shares that hold.

Left out. The tables interpolate: they steer the search, and what it finds is checked with the
performance model and the queue themselves. ``kind`` counts the kinds of GPU.
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

MAX_TENANTS = 64
"""Most tenants of one GPU."""
_ROUNDS = 12


class Items(NamedTuple):
    """The replicas to be placed; all (n,)."""

    model: I64
    queue: I64  # arrival process
    goal_ms: F64  # what P99 may be, in these tables' terms
    rate: F64  # requests/ms


class Shares(NamedTuple):
    """What each tenant of a GPU needs there and how it behaves; all (MAX_TENANTS,)."""

    units: I64
    option: I64  # which of the largest batches, an index of ``Tables.caps``
    utilisation: F64
    mean_batch: F64
    slowdown: F64


@njit(cache=True, nogil=True)
def empty_shares() -> Shares:
    """Room for the tenants of one GPU."""
    return Shares(
        np.empty(MAX_TENANTS, np.int64),
        np.empty(MAX_TENANTS, np.int64),
        np.empty(MAX_TENANTS),
        np.empty(MAX_TENANTS),
        np.empty(MAX_TENANTS),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def least_shares(
    t: Tables, items: Items, kind: int, who: I64, count: int, ceiling: int, out: Shares
) -> int:
    """Least units the first ``count`` of ``who`` need together on one GPU; their sum.

    Gives up, with a sum above ``ceiling``, as soon as that is certain. Writes what each needs into
    ``out``.
    """
    units, option, utilisation, mean_batch, slowdown = out
    total = 0
    for k in range(count):
        i = who[k]
        slowdown[k] = 1.0
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
            option[k], utilisation[k], mean_batch[k] = calm_option(
                t,
                kind,
                items.queue[i],
                items.model[i],
                units[k],
                items.goal_ms[i],
                items.rate[i],
                slowdown[k],
            )
        changed = False
        total = 0
        for k in range(count):
            i = who[k]
            worst, others = 0.0, 0.0
            for j in range(count):
                if j != k:
                    interference = utilisation[j] * pair_gain(
                        t,
                        kind,
                        items.model[i],
                        units[k],
                        items.model[who[j]],
                        units[j],
                        mean_batch[j],
                    )
                    others += interference
                    worst = max(worst, interference)
            phi = 1.0 + worst + t.overlap[kind] * (others - worst)
            changed = changed or abs(phi - slowdown[k]) > 5e-4
            slowdown[k] = phi
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
        option[k], utilisation[k], mean_batch[k] = calm_option(
            t,
            kind,
            items.queue[i],
            items.model[i],
            units[k],
            items.goal_ms[i],
            items.rate[i],
            slowdown[k],
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

    Average: for each unit of the GPU that the item leaves to others, the interference all items
    have for each unit they take, of two neighbours.
    """
    n, models = items.model.shape[0], t.curve_ms.shape[1]
    pressure = np.zeros(models)
    taken = 0.0
    for j in range(n):
        if alone[j] <= t.units[kind]:
            m = items.model[j]
            _, utilisation, mean_batch = calm_option(
                t, kind, items.queue[j], m, alone[j], items.goal_ms[j], items.rate[j], 1.0
            )
            taken += alone[j]
            for i in range(models):
                pressure[i] += utilisation * pair_gain(
                    t, kind, i, max(1, t.units[kind] // 3), m, alone[j], mean_batch
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
