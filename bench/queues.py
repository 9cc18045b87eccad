"""The stationary batcher against the same queue request by request, on random queues.

    python bench/queues.py [--cases 200] [--seed 5]

A case is a model of the V100 profile at a random share, with a largest batch of 1 to 32 and a load
of 10 to 97 % of what full batches serve; a service has a coefficient of variation of 0.1. 400,000
requests are simulated, so that P99 is good to a few parts in a thousand below 90 % load, to several
per cent near saturation and for bursts.

Of P99 over the simulated one, less 1: the mean, the mean and the 95 % quantile of its size, the
extremes. ``evaluation``: processor time of one.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator

import numpy as np

from igniterd.arrays import F64
from igniterd.perf import builtin_profile, load_model
from igniterd.queueing.kernels.monte_carlo import draw_factors, draw_times, respond
from igniterd.queueing.tail import SERVICE_CV, response_time

PROCESSES = {"constant": 0.0, "poisson": 1.0, "bursty (4)": 4.0}
BATCHES = (1, 2, 3, 4, 8, 16, 32)
REQUESTS = 400_000
LEFT_OUT = REQUESTS // 20
"""At the beginning, while the queue fills."""


def queues(count: int, seed: int) -> Iterator[tuple[F64, float]]:
    """(service times (ms) of batches 1 to the largest, requests/ms)."""
    rng, model = np.random.default_rng(seed), load_model(builtin_profile("v100"))
    for _ in range(count):
        name, largest = str(rng.choice(model.models)), int(rng.choice(BATCHES))
        share, load = float(rng.integers(2, 40)) / 40, rng.uniform(0.1, 0.97)
        curve, _ = model.service_curve_ms(name, share, (), largest, level=0.95)
        yield curve, load * largest / float(curve[-1])


def errors(arrival_scv: float, count: int, seed: int) -> tuple[F64, float]:
    """(P99 over the simulated one, less 1, of each case; seconds an evaluation)."""
    times, factors = draw_times(REQUESTS, arrival_scv), draw_factors(REQUESTS, SERVICE_CV)
    response, took_s = np.empty(REQUESTS), 0.0
    out = np.empty(count)
    response_time(1.0, [10.0, 15.0], arrival_scv=arrival_scv)  # compiles
    for case, (curve, rate) in enumerate(queues(count, seed)):
        began_s = time.process_time()
        told = response_time(1e3 * rate, curve, arrival_scv=arrival_scv)
        took_s += time.process_time() - began_s
        respond(times / rate, curve, factors, 0.0, 1, response)
        out[case] = told.p99_ms / np.quantile(response[LEFT_OUT:], 0.99) - 1.0
    return out, took_s / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print("arrivals      bias  mean error     p95   lowest  highest  evaluation")
    for name, scv in PROCESSES.items():
        found, took_s = errors(scv, asked.cases, asked.seed)
        size = np.abs(found)
        print(
            f"{name:10s} {found.mean():+7.2%} {size.mean():10.2%} {np.quantile(size, 0.95):8.2%} "
            f"{found.min():+8.1%} {found.max():+8.1%} {1e6 * took_s:8.0f} us"
        )


if __name__ == "__main__":
    main()
