"""Speed of the compiled model: tail evaluations, mean latencies, and the joint search of one GPU
with 12 tenants.

    python bench/kernels.py

CPU time of this process, best of several short repetitions: wall time on a shared machine says more
about its neighbours.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import kernels_mean

from igniterd.decide.search import find
from igniterd.perf import builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.queueing.tail import response_time

RATES = {"alexnet": 60.0, "resnet50": 25.0, "vgg19": 12.0, "ssd": 5.0}
SLOS = {"alexnet": 40.0, "resnet50": 80.0, "vgg19": 150.0, "ssd": 200.0}


def best_s(call: Callable[[], object], times: int, repetitions: int = 5) -> float:
    """CPU seconds of one call: the best mean of ``times`` calls."""
    call()
    results = []
    for _ in range(repetitions):
        began = time.process_time()
        for _ in range(times):
            call()
        results.append((time.process_time() - began) / times)
    return min(results)


def demands(count: int) -> list[Demand]:
    names = list(RATES)
    return [
        Demand(
            f"{names[i % 4]}-{i}",
            names[i % 4],
            RATES[names[i % 4]] * (1 + 0.1 * (i // 4)),
            SLOS[names[i % 4]],
        )
        for i in range(count)
    ]


def main() -> None:
    model = load_model(builtin_profile("v100"))
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        "CPU time, best of 5"
    )
    for label, figure in kernels_mean.figures().items():
        print(f"{label:<58} {figure:8.1f} us")
    curve = model.service_curve_ms("resnet50", 0.4, (), 32)[1]
    for largest in (8, 16, 32):
        capacity = 1000 * largest / curve[largest - 1]
        for load in (0.5, 0.8):
            took = best_s(lambda n=largest, r=load * capacity: response_time(r, curve[:n]), 50)
            print(f"{f'tail, B = {largest:>2}, load {load:.0%}':<58} {took * 1e6:8.0f} us")
    took = best_s(lambda: response_time(400 / curve[7] * 8, curve[:8], max_queue_delay_ms=4.0), 3)
    print(f"{'tail with a queue delay, drawn, B =  8, load 40%':<58} {took * 1e6:8.0f} us")
    for count in (3, 12):
        took = best_s(lambda n=count: find(LatencyPredictor(model, level=0.95), demands(n)), 1, 3)
        print(
            f"{f'joint search of a GPU, {count:>2} tenants, nothing remembered':<58} "
            f"{took * 1e3:8.1f} ms"
        )


if __name__ == "__main__":
    main()
