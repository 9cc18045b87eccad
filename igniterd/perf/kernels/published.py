"""The published performance model, equations (1) to (11) of F. Xu et al., "iGniter:
Interference-Aware GPU Resource Provisioning for Predictable DNN Inference in the Cloud", IEEE TPDS
34(3), 2023.

``coef`` is (n, 12) float64, one row a tenant, columns::

    0..4 k1..k5 (share in percent)   5 gap_ms = k_sch n_k   6 n_k   7 a_power   8 b_power   9 a_l2   10 b_l2   11 alpha_cache

``transfer`` is (n, 2): load and feedback time (ms) of one item. ``board`` is (6,)::

    0 F (MHz)   1 P (W)   2 p_idle (W)   3 alpha_f (MHz/W)   4 alpha_sch   5 beta_sch (ms/kernel)

A neighbour with ``utilisation`` below 1 counts for that part of the time: the result is the
expectation over which neighbours are executing for (6) and (8), and (9) is taken at the expected
power. At utilisation 1 these are the published equations.
"""  # noqa: E501

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64


@njit(cache=True, nogil=True, error_model="numpy")
def active_ms(coef: F64, batch: float, share: float) -> float:
    """k_act of equation (11) (ms, at the top clock): active time of one batch alone; ``coef`` is
    one row, ``share`` a fraction."""
    return (coef[0] * batch * batch + coef[1] * batch + coef[2]) / (100.0 * share + coef[3]) + coef[
        4
    ]


@njit(cache=True, nogil=True, error_model="numpy")
def pressure(coef: F64, batch: F64, share: F64, out: F64) -> None:
    """Write (n, 3) into ``out``: active time alone (ms), power above idle (W), L2 use (% of peak)
    of each tenant."""
    for i in range(batch.shape[0]):
        act = active_ms(coef[i], batch[i], share[i])
        ability = batch[i] / act
        out[i, 0] = act
        out[i, 1] = coef[i, 7] * ability + coef[i, 8]
        out[i, 2] = coef[i, 9] * ability + coef[i, 10]


@njit(cache=True, nogil=True, error_model="numpy")
def service_of(
    row: F64,
    transfer: F64,
    board: F64,
    batch: float,
    share: float,
    power_w: float,
    l2_pct: float,
    busy: float,
    idle_chance: float,
) -> tuple[float, float]:
    """(latency, time a batch occupies the loop) in ms of one tenant beside neighbours.

    ``power_w`` and ``l2_pct`` are the neighbours' expected sums, ``busy`` the expected number of
    them executing and ``idle_chance`` the probability that none is.
    """
    act = active_ms(row, batch, share)
    own_w = row[7] * (batch / act) + row[8]
    gap = row[5] + row[6] * (board[4] * (busy + 1.0 - idle_chance) + board[5] * (1.0 - idle_chance))
    excess = board[2] + power_w + own_w - board[1]
    clock = board[0] + board[3] * excess if excess > 0.0 else board[0]
    if not clock > 0.0:
        return np.nan, np.nan
    gpu = (gap + act * (1.0 + row[11] * l2_pct)) / (clock / board[0])
    cycle = gpu + transfer[1] * batch
    return cycle + transfer[0] * batch, cycle


@njit(cache=True, nogil=True, error_model="numpy")
def latencies(
    coef: F64, transfer: F64, board: F64, batch: F64, share: F64, utilisation: F64, out: F64
) -> None:
    """Write (n, 2) into ``out``: latency and loop time (ms) of each of n tenants on one GPU;
    ``batch``, ``share``, ``utilisation`` are (n,)."""
    n = batch.shape[0]
    state = np.empty((n, 3))
    pressure(coef, batch, share, state)
    for i in range(n):
        power, l2, busy, idle = 0.0, 0.0, 0.0, 1.0
        for j in range(n):
            if j != i:
                power += utilisation[j] * state[j, 1]
                l2 += utilisation[j] * state[j, 2]
                busy += utilisation[j]
                idle *= 1.0 - utilisation[j]
        out[i, 0], out[i, 1] = service_of(
            coef[i], transfer[i], board, batch[i], share[i], power, l2, busy, idle
        )


@njit(cache=True, nogil=True, error_model="numpy")
def curves(row: F64, transfer: F64, board: F64, shares: F64, around: F64, out: F64) -> None:
    """Write (n_shares, max_batch) into ``out``: latency (ms) of batches 1.. of one tenant.

    ``around`` is (4,): the neighbours' expected power (W), L2 use (%), number executing,
    probability that none is.
    """
    for s in range(out.shape[0]):
        for b in range(out.shape[1]):
            out[s, b] = service_of(
                row, transfer, board, b + 1.0, shares[s], around[0], around[1], around[2], around[3]
            )[0]
