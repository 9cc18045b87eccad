"""Compiled inner loops of the published provisioning strategy (Xu et al., IEEE TPDS 34(3), 2023,
sec. 4).

Units: shares in whole share units (two SMs), times in ms, power in W, clocks in MHz. One row of
``coef`` holds what equations (1)-(11) need of one workload at its batch size, see :data:`COLUMNS`;
``board`` holds what they need of the GPU, see :data:`BOARD`.

Algorithm 1 asks of every workload and every GPU by how much the GPU's units grow. Workloads come
largest least share first; those with the same least share are a *window*, those of a window that
are alike but for their limit a *group*. For a large group the answers are kept: how low a member's
latency can be on each GPU when its units grow by so much, in a tree over the GPUs that finds the
oldest one where it is low enough. Only GPUs that have changed are asked again. There are only so
many groups, so the time grows with the number of workloads and not with its square; whom the tree
finds is asked as before, so the plan is that of the plain loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F32, F64, I64

COLUMNS = (
    "sched_ms",  # k_sch n_k
    "kernels",  # n_k
    "alpha_cache",
    "gamma",  # k1 b^2 + k2 b + k3
    "k4",
    "k5_ms",
    "batch",
    "transfer_ms",  # (d_load + d_feedback) b / B_pcie
    "a_power",
    "b_power",
    "a_cache",
    "b_cache",
    "limit_ms",  # what t_inf may be: half the SLO
)
BOARD = ("idle_w", "limit_w", "clock_mhz", "alpha_f", "alpha_sch", "beta_sch", "unit")
SEATS = 64
"""Most tenants one GPU may have here; a share is at least one unit, so a board of up to 128 SMs is
covered."""
MANY = 24
"""A group of so many workloads has its answers kept; of fewer, asking every GPU for each is
quicker."""
LEVELS = 6
"""Growths told apart in the trees: 0 to 4 units above the workload's own, and any."""
_BELOW = 1.0 - 1e-6
"""Latencies in the trees are put this much lower, so that rounding them to single precision loses
no GPU."""


@njit(cache=True, nogil=True)
def latencies_ms(coef: F64, board: F64, members: I64, units: I64, count: int, out: F64) -> None:
    """Write t_inf of equation (1) for the first ``count`` of ``members`` (rows of ``coef``), with
    ``units`` each, into ``out``."""
    power = board[0]
    cache = 0.0
    for k in range(count):
        row = coef[members[k]]
        act = row[3] / (units[k] * board[6] + row[4]) + row[5]
        pace = row[6] / act
        power += row[8] * pace + row[9]
        cache += row[10] * pace + row[11]
        out[k] = act
    ratio = 1.0 if power <= board[1] else (board[2] + board[3] * (power - board[1])) / board[2]
    delay = 0.0 if count <= 1 else board[4] * count + board[5]
    for k in range(count):
        row = coef[members[k]]
        act = out[k]
        others = cache - (row[10] * row[6] / act + row[11])
        out[k] = (row[0] + delay * row[1] + act * (1.0 + row[2] * others)) / ratio + row[7]


@njit(cache=True, nogil=True)
def allocate(
    coef: F64, board: F64, members: I64, units: I64, count: int, capacity: int, work: F64
) -> int:
    """Algorithm 2 on one GPU: raise ``units`` in place until nobody is above its limit; their sum,
    or -1 above ``capacity``.

    Latencies never fall when a neighbour grows, so raising all that are above their limit at once
    ends where raising one at a time does: at the least allocation that holds.
    """
    total = 0
    for k in range(count):
        total += units[k]
    while total <= capacity:
        latencies_ms(coef, board, members, units, count, work)
        raised = 0
        for k in range(count):
            if not work[k] <= coef[members[k], 12]:
                units[k] += 1
                raised += 1
        if raised == 0:
            return total
        total += raised
    return -1


class Hosts(NamedTuple):
    """The GPUs so far; at most as many as workloads, n."""

    members: I64  # (n, SEATS)
    counts: I64  # (n,) tenants
    used: I64  # (n,) units


@njit(cache=True, nogil=True)
def _grown(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    g: int,
    w: int,
    ceiling: int,
    trial: I64,
    work: F64,
) -> int:
    """Units of GPU ``g`` once it holds ``w`` too, by Algorithm 2; -1 above ``ceiling``. ``trial``
    gets the units of each."""
    count = hosts.counts[g]
    for k in range(count):
        trial[k] = units_of[hosts.members[g, k]]
    trial[count] = lower[w]
    hosts.members[g, count] = w
    return allocate(coef, board, hosts.members[g], trial, count + 1, ceiling, work)


@njit(cache=True, nogil=True)
def _scan(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    capacity: int,
    first_fit: bool,
    aware: bool,
    among: I64,
    w: int,
) -> int:
    """The GPU of ``among`` (oldest first) that grows least with ``w``, the oldest of equals, or the
    first that holds; -1: none does."""
    trial, work = np.empty(SEATS, np.int64), np.empty(SEATS)
    best, least = -1, capacity + 1
    for g in among:
        if hosts.used[g] + lower[w] > capacity or hosts.counts[g] == SEATS:
            continue
        total = hosts.used[g] + lower[w]
        if aware:
            total = _grown(
                coef,
                board,
                hosts,
                units_of,
                lower,
                g,
                w,
                min(capacity, hosts.used[g] + least - 1),
                trial,
                work,
            )
        if total >= 0 and total - hosts.used[g] < least:
            best, least = g, total - hosts.used[g]
            if first_fit or least == lower[w]:
                break
    return best


@njit(cache=True, nogil=True)
def _offers(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    capacity: int,
    g: int,
    w: int,
    out: F64,
) -> None:
    """Write the least latency (ms) of ``w`` on GPU ``g`` when its units grow by at most ``lower[w]
    + e`` into ``out[e]``; last: at all.

    The limit of ``w`` itself is not looked at: this holds for all of its group.
    """
    trial, work = np.empty(SEATS, np.int64), np.empty(SEATS)
    out[:] = np.inf
    count, last = hosts.counts[g], out.shape[0] - 1
    if count == SEATS:
        return
    total = hosts.used[g] + lower[w]
    for k in range(count):
        trial[k] = units_of[hosts.members[g, k]]
    trial[count] = lower[w]
    hosts.members[g, count] = w
    while total <= capacity:
        latencies_ms(coef, board, hosts.members[g], trial, count + 1, work)
        raised = 0
        for k in range(count):
            if not work[k] <= coef[hosts.members[g, k], 12]:
                trial[k] += 1
                raised += 1
        if raised == 0:
            for e in range(min(total - hosts.used[g] - lower[w], last), last + 1):
                out[e] = min(out[e], work[count] * _BELOW)
            trial[count] += 1
            raised = 1
        total += raised


@njit(cache=True, nogil=True)
def _first(tree: F32, limit: float, start: int) -> int:
    """The first leaf from ``start`` on whose value is at most ``limit``; -1 when there is none.
    ``tree`` (2 P,) holds minima, P leaves."""
    leaves = tree.shape[0] // 2
    i = start + leaves
    if start >= leaves:
        return -1
    while True:
        if tree[i] <= limit:
            while i < leaves:
                i = 2 * i if tree[2 * i] <= limit else 2 * i + 1
            return i - leaves
        while i % 2 == 1:
            i //= 2
        if i == 0:
            return -1
        i += 1


@njit(cache=True, nogil=True)
def _set(trees: F32, leaf: int, values: F64) -> None:
    """Set a leaf of every one of ``trees`` (E, 2 P)."""
    leaves = trees.shape[1] // 2
    for e in range(trees.shape[0]):
        i = leaf + leaves
        trees[e, i] = values[e]
        while i > 1:
            i //= 2
            least = min(trees[e, 2 * i], trees[e, 2 * i + 1])
            if trees[e, i] == least:
                break
            trees[e, i] = least


@njit(cache=True, nogil=True)
def _by_tree(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    capacity: int,
    trees: F32,
    among: I64,
    w: int,
) -> int:
    """What :func:`_scan` finds, by the trees of the group of ``w`` over the GPUs ``among``."""
    trial, work = np.empty(SEATS, np.int64), np.empty(SEATS)
    limit, last = coef[w, 12], trees.shape[0] - 1
    for e in range(last):
        at = _first(trees[e], limit, 0)
        while at >= 0:
            g = among[at]
            if (
                _grown(
                    coef,
                    board,
                    hosts,
                    units_of,
                    lower,
                    g,
                    w,
                    min(capacity, hosts.used[g] + lower[w] + e),
                    trial,
                    work,
                )
                >= 0
            ):
                return g
            at = _first(trees[e], limit, at + 1)
    best, least = -1, capacity + 1
    at = _first(trees[last], limit, 0)
    while at >= 0:
        g = among[at]
        total = _grown(
            coef,
            board,
            hosts,
            units_of,
            lower,
            g,
            w,
            min(capacity, hosts.used[g] + least - 1),
            trial,
            work,
        )
        if total >= 0:
            best, least = g, total - hosts.used[g]
        at = _first(trees[last], limit, at + 1)
    return best


@njit(cache=True, nogil=True)
def _seat(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    capacity: int,
    aware: bool,
    g: int,
    w: int,
) -> None:
    """Put ``w`` on GPU ``g``."""
    trial, work = np.empty(SEATS, np.int64), np.empty(SEATS)
    count = hosts.counts[g]
    hosts.members[g, count] = w
    units_of[w] = lower[w]
    total = hosts.used[g] + lower[w]
    if aware and count > 0:
        total = _grown(coef, board, hosts, units_of, lower, g, w, capacity, trial, work)
        for k in range(count + 1):
            units_of[hosts.members[g, k]] = trial[k]
    hosts.used[g] = total
    hosts.counts[g] = count + 1


@njit(cache=True, nogil=True)
def provision(
    coef: F64,
    board: F64,
    lower: I64,
    order: I64,
    group: I64,
    capacity: int,
    first_fit: bool,
    aware: bool,
    many: int,
    gpu_of: I64,
    units_of: I64,
) -> int:
    """Algorithm 1: place every workload in ``order`` (largest ``lower`` first); the number of GPUs.

    ``lower`` (n,): least units of each. ``aware``: neighbours are given what Algorithm 2 says they
    now need; else shares stay at ``lower`` (FFD+). ``first_fit``: take the first GPU that holds
    (FFD+, FFD++) instead of the one where the sum of shares grows least, ties to the older GPU.
    ``group`` (n,): equal for workloads that differ in their limit only; groups of at least ``many``
    have their answers kept. Writes the GPU and the units of each workload into ``gpu_of`` and
    ``units_of``, both (n,).
    """
    n = order.shape[0]
    size = max(n, 1)
    hosts = Hosts(
        np.empty((size, SEATS), np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    )
    gpus, begin = 0, 0
    members = np.zeros(group.max() + 1 if n else 1, np.int64)
    for i in group:
        members[i] += 1
    while begin < n:
        least = lower[order[begin]]
        end = begin
        while end < n and lower[order[end]] == least:
            end += 1
        among = np.empty(size, np.int64)
        room = 0
        for g in range(gpus):
            if hosts.used[g] + least <= capacity:
                among[room] = g
                room += 1
        gpus = _window(
            coef,
            board,
            hosts,
            units_of,
            lower,
            order[begin:end],
            group,
            members,
            capacity,
            first_fit,
            aware,
            many,
            gpus,
            among,
            room,
            gpu_of,
        )
        begin = end
    return gpus


@njit(cache=True, nogil=True)
def _window(
    coef: F64,
    board: F64,
    hosts: Hosts,
    units_of: I64,
    lower: I64,
    order: I64,
    group: I64,
    members: I64,
    capacity: int,
    first_fit: bool,
    aware: bool,
    many: int,
    gpus: int,
    among: I64,
    room: int,
    gpu_of: I64,
) -> int:
    """Place the workloads of a window; the number of GPUs. ``among[:room]`` are the GPUs with room
    for one, oldest first."""
    leaves = 1
    while leaves < room + order.shape[0]:
        leaves *= 2
    slot = np.full(gpus + order.shape[0], -1, np.int64)  # place of a GPU in ``among``
    for at in range(room):
        slot[among[at]] = at
    changes, latest, changed = np.empty(order.shape[0], np.int64), np.full(leaves, -1, np.int64), 0
    known, seen = np.full(members.shape[0], -1, np.int64), np.zeros(order.shape[0], np.int64)
    forest = [np.empty((0, 0), np.float32) for _ in range(0)]
    offer = np.empty(LEVELS)
    for w in order:
        if not aware or first_fit or members[group[w]] < many:
            best = _scan(
                coef, board, hosts, units_of, lower, capacity, first_fit, aware, among[:room], w
            )
        else:
            if known[group[w]] < 0:
                known[group[w]] = len(forest)
                forest.append(np.full((LEVELS, 2 * leaves), np.inf, np.float32))
                for at in range(room):
                    _offers(coef, board, hosts, units_of, lower, capacity, among[at], w, offer)
                    _set(forest[-1], at, offer)
                seen[known[group[w]]] = changed
            mine = known[group[w]]
            for c in range(seen[mine], changed):
                if latest[changes[c]] == c:
                    _offers(
                        coef, board, hosts, units_of, lower, capacity, among[changes[c]], w, offer
                    )
                    _set(forest[mine], changes[c], offer)
            seen[mine] = changed
            best = _by_tree(coef, board, hosts, units_of, lower, capacity, forest[mine], among, w)
        if best < 0:
            best = gpus
            gpus += 1
            if 2 * lower[w] <= capacity:
                slot[best] = room
                among[room] = best
                room += 1
        _seat(coef, board, hosts, units_of, lower, capacity, aware, best, w)
        gpu_of[w] = best
        if slot[best] >= 0:
            changes[changed] = slot[best]
            latest[slot[best]] = changed
            changed += 1
    return gpus
