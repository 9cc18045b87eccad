"""Mean service times of igniterd's own model."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@njit(cache=True, nogil=True, error_model="numpy")
def solo_ms(row: F64, batch: float, share: float) -> float:
    """GPU time (ms) of one batch alone: (k0 b + k1) / (share + k2) + k3 + k4 b, every k at least 0; ``row`` is (5,)."""
    return (row[0] * batch + row[1]) / (share + row[2]) + row[3] + row[4] * batch


@njit(cache=True, nogil=True, error_model="numpy")
def latencies(row: F64, transfer: F64, gain: F64, batch: F64, share: F64, duty: F64, out: F64) -> None:
    """Write (n, 2) into ``out``: latency and loop time (ms). ``gain[i, j]`` is what j, while executing, adds to i's GPU time (ratio)."""
    n = batch.shape[0]
    for i in range(n):
        factor = 1.0
        for j in range(n):
            if j != i:
                factor += gain[i, j] * duty[j]
        cycle = solo_ms(row[i], batch[i], share[i]) * factor + transfer[i, 1] * batch[i]
        out[i, 0], out[i, 1] = cycle + transfer[i, 0] * batch[i], cycle


@njit(cache=True, nogil=True, error_model="numpy")
def curves(row: F64, transfer: F64, factor: float, shares: F64, out: F64) -> None:
    """Write (n_shares, max_batch) into ``out``: latency (ms) of batches 1.. of one tenant."""
    for s in range(out.shape[0]):
        for b in range(out.shape[1]):
            out[s, b] = solo_ms(row, b + 1.0, shares[s]) * factor + (transfer[0] + transfer[1]) * (b + 1.0)
