"""The table of the batcher behind :mod:`igniterd.queueing.kernels.table`: shipped, and computed
from the exact queue by

    python -m igniterd.queueing.table

It depends on nothing but the queue: profiles, SLOs and rates come in by scaling.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from igniterd.arrays import F32
from igniterd.queueing.kernels.table import QueueTable
from igniterd.queueing.tail import SERVICE_CV, response_times

BURSTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
SHAPES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LOADS = (0.004, 0.06, 0.16, 0.32, 0.48, 0.62, 0.74, 0.82, 0.88, 0.93, 0.96, 0.98, 0.99, 0.996)
CAPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


def build() -> F32:
    """log(P99 (1 - rho) / s(1)) and the mean batch of s(b) = (x + b) / (x + 1): (2, bursts, shapes,
    loads, caps). Takes some seconds."""
    loads, caps = np.array(LOADS), np.array(CAPS)
    load, cap = (grid.ravel() for grid in np.meshgrid(loads, caps, indexing="ij"))
    out = np.empty((2, len(BURSTS), len(SHAPES), loads.size, caps.size))
    for q, arrival_scv in enumerate(BURSTS):
        for i, x in enumerate(SHAPES):
            curve = (x + np.arange(1, caps[-1] + 1)) / (x + 1.0)
            found = response_times(
                1e3 * load * cap / curve[cap - 1],
                curve,
                batches=cap,
                service_cv=SERVICE_CV,
                arrival_scv=arrival_scv,
            )
            out[0, q, i] = np.log(found.p99_ms * (1.0 - load)).reshape(loads.size, caps.size)
            out[1, q, i] = found.mean_batch.reshape(loads.size, caps.size)
    return out.astype(np.float32)


@lru_cache(maxsize=1)
def shipped() -> F32:
    """What :func:`build` computed once."""
    with resources.as_file(resources.files("igniterd").joinpath("data", "queue.npy")) as path:
        table: F32 = np.load(path, allow_pickle=False)
    return table


@lru_cache(maxsize=32)
def queue_table(arrival_scv: float) -> QueueTable:
    """The batcher under arrivals of this variability (as for
    :func:`igniterd.queueing.tail.response_time`), interpolated in its log(1 + ·)."""
    place = float(np.interp(np.log1p(arrival_scv), np.log1p(BURSTS), np.arange(len(BURSTS))))
    low = min(int(place), len(BURSTS) - 2)
    table = shipped()[:, low] + (shipped()[:, low + 1] - shipped()[:, low]) * np.float32(
        place - low
    )
    log_p99, mean_batch = np.ascontiguousarray(table, dtype=np.float64)
    return QueueTable(np.log(SHAPES), np.array(LOADS), np.log(CAPS), log_p99, mean_batch)


def main() -> None:
    path = Path(__file__).parent.parent / "data" / "queue.npy"
    np.save(path, build())


if __name__ == "__main__":
    main()
