"""Compiled search that fills GPUs one after the other, for as many workloads as there are.

Theory. Each GPU starts with the largest item left. It is completed by the set of other items that
packs most into it: a bin completion with a bounded search tree (see Fleszar and Hindi, Computers &
OR 29(7), 2002, for the idea without interference). What is packed is counted in units an item needs
alone, so sets that disturb each other little win. The tree reads a
:class:`igniterd.planner.kernels.sketch.Sketch`. The best few sets are then checked by
:func:`igniterd.planner.kernels.shares.least_shares`.

Left out. The tree ends after ``_NODES`` sets, and looks at two items of each list of (units alone,
model). So the work for a GPU does not depend on how many items there are: the cost grows linearly.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import I64
from igniterd.planner.kernels.shares import MAX_TENANTS, Items, empty_shares, least_shares
from igniterd.planner.kernels.sketch import Sketch, sum_needs
from igniterd.queueing.kernels.lookup import Tables

_NODES = 1500
_SHORTLIST = 6


@njit(cache=True, nogil=True, error_model="numpy")
def _next_free(after: I64, item: int, chosen: I64, depth: int) -> int:
    """The first item from ``item`` on along its list that is not among the ``chosen``; -1 when
    there is none."""
    while item != -1:
        taken = False
        for a in range(depth):
            taken = taken or chosen[a] == item
        if not taken:
            return item
        item = after[item]
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def _search(
    s: Sketch,
    model: I64,
    overlap: float,
    memory: I64,
    room: int,
    top: int,
    first: I64,
    after: I64,
    seed: int,
    shortlist: I64,
    sizes: I64,
    packed: I64,
) -> int:
    """Depth-first completion of a GPU that starts with ``seed``; the best sets found, best first,
    into ``shortlist``; their number.

    ``first[units, model]`` is the first item of each list and ``after[item]`` the next one, -1 at
    the end. Lists are gone through from the largest units down, two items of each. What is
    still free can add no more than itself to the units packed.
    """
    models = first.shape[1]
    chosen = np.empty(MAX_TENANTS, np.int64)
    # columns: list being tried, item of it (-1: none yet), items tried, units, bytes
    slot, within, tried, used, taken = 0, 1, 2, 3, 4
    at = np.empty((MAX_TENANTS, 5), np.int64)
    value = np.empty(MAX_TENANTS, np.int64)
    chosen[0] = shortlist[0, 0] = seed
    sizes[0] = 1
    value[1] = packed[0] = s.alone[seed]
    at[1] = ((top - s.alone[seed] + 1) * models - 1, -1, 0, s.alone[seed], memory[seed])
    found, depth, nodes = 1, 1, 0
    while depth >= 1 and nodes < _NODES:
        now = at[depth]
        hopeless = found == _SHORTLIST and value[depth] + top - now[used] <= packed[found - 1]
        if now[slot] < models or hopeless:
            depth -= 1
            continue
        head = (
            first[now[slot] // models, now[slot] % models]
            if now[within] == -1
            else after[now[within]]
        )
        item = _next_free(after, head, chosen, depth)
        if item == -1 or now[tried] >= 2:
            now[slot] -= 1
            now[within] = -1
            now[tried] = 0
            continue
        now[within] = item
        now[tried] += 1
        nodes += 1
        chosen[depth] = item
        total = sum_needs(s, model, overlap, chosen, depth + 1, top)
        if total > top or now[taken] + memory[item] > room:
            continue
        found = _remember(
            shortlist, sizes, packed, found, chosen, depth + 1, value[depth] + s.alone[item]
        )
        if depth + 2 < MAX_TENANTS and total < top:
            depth += 1
            value[depth] = value[depth - 1] + s.alone[item]
            at[depth] = (
                min(now[slot], (top - total + 1) * models - 1),
                -1,
                0,
                total,
                now[taken] + memory[item],
            )
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _remember(
    shortlist: I64, sizes: I64, packed: I64, found: int, chosen: I64, count: int, value: int
) -> int:
    """Insert a set into the list of the best: most units first, of equal ones the one with fewer
    tenants."""
    place = found
    while place > 0 and (
        value > packed[place - 1] or (value == packed[place - 1] and count < sizes[place - 1])
    ):
        place -= 1
    if place >= _SHORTLIST:
        return found
    last = min(found, _SHORTLIST - 1)
    for p in range(last, place, -1):
        shortlist[p] = shortlist[p - 1]
        sizes[p] = sizes[p - 1]
        packed[p] = packed[p - 1]
    shortlist[place, :count] = chosen[:count]
    sizes[place] = count
    packed[place] = value
    return last + 1


@njit(cache=True, nogil=True, error_model="numpy")
def fill(
    t: Tables,
    items: Items,
    kind: int,
    s: Sketch,
    order: I64,
    memory: I64,
    room: int,
    gpu_of: I64,
) -> int:
    """Pack the items of ``order`` (most units alone first) on GPUs of ``kind``; writes their GPU
    numbers; the number of GPUs.

    ``memory`` (n,) and ``room`` in bytes. Every item must fit a GPU alone.
    """
    n_models, top = t.curve_ms.shape[1], t.units[kind]
    n = items.model.shape[0]
    first = np.full((top + 1, n_models), -1, np.int64)
    after = np.full(n, -1, np.int64)
    before = np.full(n, -1, np.int64)
    for p in range(order.shape[0] - 1, -1, -1):
        i = order[p]
        head = first[s.alone[i], items.model[i]]
        after[i] = head
        if head != -1:
            before[head] = i
        first[s.alone[i], items.model[i]] = i
        gpu_of[i] = -1
    shortlist = np.empty((_SHORTLIST, MAX_TENANTS), np.int64)
    sizes = np.empty(_SHORTLIST, np.int64)
    packed = np.empty(_SHORTLIST, np.int64)
    needed = empty_shares()
    gpus = 0
    for p in range(order.shape[0]):
        seed = order[p]
        if gpu_of[seed] != -1:
            continue
        found = _search(
            s,
            items.model,
            t.overlap[kind],
            memory,
            room,
            top,
            first,
            after,
            seed,
            shortlist,
            sizes,
            packed,
        )
        pick = found - 1
        for f in range(found):
            if sizes[f] == 1 or (
                least_shares(t, items, kind, shortlist[f], sizes[f], top, needed) <= top
            ):
                pick = f
                break
        count = sizes[pick]
        while count > 1 and least_shares(t, items, kind, shortlist[pick], count, top, needed) > top:
            count -= 1
        for a in range(count):
            i = shortlist[pick, a]
            gpu_of[i] = gpus
            if before[i] == -1:
                first[s.alone[i], items.model[i]] = after[i]
            else:
                after[before[i]] = after[i]
            if after[i] != -1:
                before[after[i]] = before[i]
        gpus += 1
    return gpus
