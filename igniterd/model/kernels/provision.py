"""Compiled inner loops of the published provisioning strategy (Xu et al., IEEE TPDS 34(3), 2023, sec. 4).

Units: shares in whole share units (two SMs), times in ms, power in W, clocks in MHz. One row of ``coef`` holds what equations
(1)-(11) need of one workload at its batch size, see :data:`COLUMNS`; ``board`` holds what they need of the GPU, see :data:`BOARD`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

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
"""Most tenants one GPU may have here; a share is at least one unit, so a board of up to 128 SMs is covered."""


@njit(cache=True, nogil=True)
def latencies_ms(coef: F64, board: F64, members: I64, units: I64, count: int, out: F64) -> None:
    """Write t_inf of equation (1) for the first ``count`` of ``members`` (rows of ``coef``), with ``units`` each, into ``out``."""
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
def allocate(coef: F64, board: F64, members: I64, units: I64, count: int, capacity: int, work: F64) -> int:
    """Algorithm 2 on one GPU: raise ``units`` in place until nobody is above its limit; their sum, or -1 above ``capacity``.

    Latencies never fall when a neighbour grows, so raising all that are above their limit at once ends where raising one at a
    time does: at the least allocation that holds.
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


@njit(cache=True, nogil=True)
def provision(
    coef: F64, board: F64, lower: I64, order: I64, capacity: int, first_fit: bool, aware: bool, gpu_of: I64, units_of: I64
) -> int:
    """Algorithm 1: place every workload in ``order``; the number of GPUs.

    ``lower`` (n,): least units of each. ``aware``: neighbours are given what Algorithm 2 says they now need; else shares stay at
    ``lower`` (FFD+). ``first_fit``: take the first GPU that holds (FFD+, FFD++) instead of the one where the sum of shares grows
    least, ties to the older GPU. Writes the GPU and the units of each workload into ``gpu_of`` and ``units_of``, both (n,).

    A GPU without room for the smallest workload left is not looked at again, and one whose growth cannot beat the best found is
    given up early; neither changes the result.
    """
    n = order.shape[0]
    members = np.empty((max(n, 1), SEATS), np.int64)
    counts = np.zeros(max(n, 1), np.int64)
    used = np.zeros(max(n, 1), np.int64)
    open_gpus = np.empty(max(n, 1), np.int64)
    n_open = 0
    gpus = 0
    trial = np.empty(SEATS, np.int64)
    kept = np.empty(SEATS, np.int64)
    work = np.empty(SEATS, np.float64)
    for position in range(n):
        w = order[position]
        best = -1
        best_growth = capacity + 1
        alive = 0
        for index in range(n_open):
            g = open_gpus[index]
            if used[g] + lower[order[n - 1]] > capacity:
                continue
            open_gpus[alive] = g
            alive += 1
            done = best >= 0 and (first_fit or best_growth == lower[w])
            if done or used[g] + lower[w] > capacity or counts[g] == SEATS:
                continue
            count = counts[g]
            for k in range(count):
                trial[k] = units_of[members[g, k]]
            trial[count] = lower[w]
            members[g, count] = w
            total = used[g] + lower[w]
            if aware:
                ceiling = min(capacity, used[g] + best_growth - 1)
                total = allocate(coef, board, members[g], trial, count + 1, ceiling, work)
            if total >= 0 and total - used[g] < best_growth:
                best = g
                best_growth = total - used[g]
                kept[: count + 1] = trial[: count + 1]
        n_open = alive
        if best < 0:
            best = gpus
            gpus += 1
            open_gpus[n_open] = best
            n_open += 1
            kept[0] = lower[w]
            best_growth = lower[w]
        members[best, counts[best]] = w
        counts[best] += 1
        used[best] += best_growth
        gpu_of[w] = best
        for k in range(counts[best]):
            units_of[members[best, k]] = kept[k]
    return gpus
