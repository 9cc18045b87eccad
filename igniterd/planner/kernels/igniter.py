"""Compiled loops of the published provisioning strategy (F. Xu et al., IEEE TPDS 34(3), 2023,
sec. 4).

Theory. Every workload comes with the batch and the least share that Theorem 1 gives it. Algorithm 1
takes the workloads largest least share first. It asks of every GPU by how much the shares of its
tenants would grow with the workload, and takes the GPU that grows least. Algorithm 2 says how much:
it raises the share of whoever is above its latency limit by a unit, until nobody is. Latencies are
equations (1)-(11): the tenants' power lowers the clock, their L2 use slows the active time, and
their number delays every kernel.

Left out. The printed Algorithm 2 raises one tenant at a time; here all that are above their limit
are raised at once. Latencies never fall when a neighbour grows, so both end at the least allocation
that holds. GPUs without room for the least share are not asked.

Units: shares in whole share units (two SMs), times in ms, power in W, clocks in MHz.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64

MAX_TENANTS = 64
"""Most tenants of one GPU; a share is at least one unit, so boards of up to 128 SMs are covered."""

# Columns of ``Case.coef``: what equations (1)-(11) need of one workload at its batch b.
SCHED_MS = 0  # k_sch n_k
KERNELS = 1  # n_k
ALPHA_CACHE = 2
GAMMA = 3  # k1 b^2 + k2 b + k3
K4 = 4
K5_MS = 5
BATCH = 6
TRANSFER_MS = 7  # (d_load + d_feedback) b / B_pcie
A_POWER = 8
B_POWER = 9
A_CACHE = 10
B_CACHE = 11
LIMIT_MS = 12  # what t_inf may be: half the SLO


class Board(NamedTuple):
    """What equations (1)-(11) need of the GPU."""

    idle_w: float
    power_limit_w: float
    clock_mhz: float
    alpha_f: float
    alpha_sch: float
    beta_sch: float
    unit_pct: float  # percent of the GPU that a share unit is


class Case(NamedTuple):
    """What there is to place; n workloads."""

    coef: F64  # (n, 13) see the columns above
    board: Board
    lower: I64  # (n,) least units of each
    capacity: int  # units of a GPU
    first_fit: bool  # take the first GPU that holds (FFD+, FFD++), not the one that grows least
    aware: bool  # neighbours get what Algorithm 2 says; else shares stay at ``lower`` (FFD+)


class Hosts(NamedTuple):
    """The GPUs so far; at most as many as workloads, n."""

    members: I64  # (n, MAX_TENANTS)
    counts: I64  # (n,) tenants
    used: I64  # (n,) units
    units_of: I64  # (n,) units of each workload


@njit(cache=True, nogil=True)
def latencies_ms(coef: F64, board: Board, members: I64, units: I64, count: int, out: F64) -> None:
    """Write t_inf of equation (1) into ``out`` (count,).

    ``members`` are rows of ``coef``; the first ``count`` of them have ``units`` each.
    """
    power = board.idle_w
    cache = 0.0
    for k in range(count):
        row = coef[members[k]]
        active_ms = row[GAMMA] / (units[k] * board.unit_pct + row[K4]) + row[K5_MS]
        pace = row[BATCH] / active_ms
        power += row[A_POWER] * pace + row[B_POWER]
        cache += row[A_CACHE] * pace + row[B_CACHE]
        out[k] = active_ms
    clock = 1.0  # as a fraction of the top clock
    if power > board.power_limit_w:
        lowered_mhz = board.alpha_f * (power - board.power_limit_w)
        clock = (board.clock_mhz + lowered_mhz) / board.clock_mhz
    delay_ms = 0.0 if count <= 1 else board.alpha_sch * count + board.beta_sch
    for k in range(count):
        row = coef[members[k]]
        active_ms = out[k]
        others = cache - (row[A_CACHE] * row[BATCH] / active_ms + row[B_CACHE])
        slowed_ms = active_ms * (1.0 + row[ALPHA_CACHE] * others)
        out[k] = (row[SCHED_MS] + delay_ms * row[KERNELS] + slowed_ms) / clock + row[TRANSFER_MS]


@njit(cache=True, nogil=True)
def allocate(
    coef: F64, board: Board, members: I64, units: I64, count: int, ceiling: int, work: F64
) -> int:
    """Algorithm 2 on one GPU: raise ``units`` in place until nobody is above its limit.

    Returns their sum, or -1 where it would be above ``ceiling``. ``work`` (count,) is overwritten.
    """
    total = 0
    for k in range(count):
        total += units[k]
    while total <= ceiling:
        latencies_ms(coef, board, members, units, count, work)
        raised = 0
        for k in range(count):
            if not work[k] <= coef[members[k], LIMIT_MS]:
                units[k] += 1
                raised += 1
        if raised == 0:
            return total
        total += raised
    return -1


@njit(cache=True, nogil=True)
def _allocate_with(
    case: Case, hosts: Hosts, g: int, w: int, ceiling: int, units: I64, work: F64
) -> int:
    """Units of GPU ``g`` once it holds ``w`` too, by Algorithm 2; -1 above ``ceiling``.

    ``units`` gets those of each tenant, ``w`` last.
    """
    count = hosts.counts[g]
    for k in range(count):
        units[k] = hosts.units_of[hosts.members[g, k]]
    units[count] = case.lower[w]
    hosts.members[g, count] = w
    return allocate(case.coef, case.board, hosts.members[g], units, count + 1, ceiling, work)


@njit(cache=True, nogil=True)
def _find_host(case: Case, hosts: Hosts, roomy: I64, w: int) -> int:
    """The GPU of ``roomy`` (oldest first) that grows least with ``w``, the oldest of equals.

    With ``first_fit`` the first that holds. -1 where none does.
    """
    units, work = np.empty(MAX_TENANTS, np.int64), np.empty(MAX_TENANTS)
    best, least = -1, case.capacity + 1
    for g in roomy:
        total = hosts.used[g] + case.lower[w]
        if total > case.capacity or hosts.counts[g] == MAX_TENANTS:
            continue
        if case.aware:
            ceiling = min(case.capacity, hosts.used[g] + least - 1)
            total = _allocate_with(case, hosts, g, w, ceiling, units, work)
        if total >= 0 and total - hosts.used[g] < least:
            best, least = g, total - hosts.used[g]
            if case.first_fit or least == case.lower[w]:
                break
    return best


@njit(cache=True, nogil=True)
def _add(case: Case, hosts: Hosts, g: int, w: int) -> None:
    """Put ``w`` on GPU ``g``."""
    units, work = np.empty(MAX_TENANTS, np.int64), np.empty(MAX_TENANTS)
    count = hosts.counts[g]
    hosts.members[g, count] = w
    hosts.units_of[w] = case.lower[w]
    total = hosts.used[g] + case.lower[w]
    if case.aware and count > 0:
        total = _allocate_with(case, hosts, g, w, case.capacity, units, work)
        for k in range(count + 1):
            hosts.units_of[hosts.members[g, k]] = units[k]
    hosts.used[g] = total
    hosts.counts[g] = count + 1


@njit(cache=True, nogil=True)
def provision(case: Case, order: I64, gpu_of: I64, units_of: I64) -> int:
    """Algorithm 1: place the workloads in ``order`` (largest ``lower`` first); the number of GPUs.

    Writes the GPU and the units of each workload into ``gpu_of`` and ``units_of``, both (n,).
    """
    n = order.shape[0]
    hosts = Hosts(
        np.empty((n, MAX_TENANTS), np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), units_of
    )
    roomy, room, gpus, least = np.empty(n, np.int64), 0, 0, -1
    for w in order:
        if case.lower[w] != least:  # a smaller share than before: more GPUs may have room for it
            least, room = case.lower[w], 0
            for g in range(gpus):
                if hosts.used[g] + least <= case.capacity:
                    roomy[room] = g
                    room += 1
        host = _find_host(case, hosts, roomy[:room], w)
        if host < 0:
            host = gpus
            roomy[room] = host
            gpus, room = gpus + 1, room + 1
        _add(case, hosts, host, w)
        gpu_of[w] = host
    return gpus
