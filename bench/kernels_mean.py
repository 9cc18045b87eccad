"""Time of the mean-latency kernels: a GPU with 12 tenants at once, one service curve, the curves of
every share.

    python bench/kernels_mean.py

Prints the best of many short repetitions (other programs on the machine only ever add), and the
machine. The kernel is timed inside a compiled loop, as compiled searches call it, and once more
through Python.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit

from igniterd.perf import builtin_profile
from igniterd.perf.api import Tenant
from igniterd.perf.kernels import mean as kernel
from igniterd.perf.surface_model import SurfaceModel

TENANTS = 12
REPEAT = 60


@njit
def repeated(times, fitted, rest):  # type: ignore[no-untyped-def]
    for _ in range(times):
        kernel.latencies(*fitted, *rest)


def best_us(what: Callable[[], object], times: int = 1) -> float:
    """Least wall time (us) of one call of ``what``, which does the thing ``times`` times."""
    what()  # compile
    found = []
    for _ in range(REPEAT):
        start = time.perf_counter()
        what()
        found.append(time.perf_counter() - start)
    return min(found) / times * 1e6


def cpu() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def figures() -> dict[str, float]:
    """Microseconds of each thing timed."""
    model = SurfaceModel(builtin_profile("v100"))
    random = np.random.default_rng(0)
    who, batch = (
        random.integers(0, len(model.models), TENANTS),
        random.integers(1, 9, TENANTS).astype(np.float64),
    )
    share, utilisation, out = (
        np.full(TENANTS, 1 / TENANTS),
        random.uniform(0.3, 1, TENANTS),
        np.empty((TENANTS, 2)),
    )
    fitted = (
        *(model.gpus, model.hosts, model.knots, model.share_unit, model.transfer, model.floors),
        *(model.weights, model.contention, model.rises),
    )
    given = (who, batch, share, utilisation, out)
    tenants = [
        Tenant(model.models[w], b, s, d)
        for w, b, s, d in zip(who, batch, share, utilisation, strict=True)
    ]
    shares = model.share_unit * np.arange(1, 41)

    def many(count: int, what: Callable[[], object]) -> Callable[[], object]:
        return lambda: [what() for _ in range(count)]

    return {
        f"mean latencies of {TENANTS} tenants, kernel": best_us(
            lambda: repeated(500, fitted, given), 500
        ),
        f"mean latencies of {TENANTS} tenants, from Python": best_us(
            many(2000, lambda: model.latencies_ms(*given)), 2000
        ),
        "service curve, 32 batches, 3 neighbours": best_us(
            many(20, lambda: model.service_curve_ms("ssd", 0.3, tenants[:3], 32)), 20
        ),
        "share curves, 40 x 32, 3 neighbours": best_us(
            many(3, lambda: model.share_curves_ms("ssd", shares, tenants[:3], 32)), 3
        ),
        "share curves, 40 x 32, 11 neighbours": best_us(
            many(3, lambda: model.share_curves_ms("ssd", shares, tenants[:11], 32)), 3
        ),
        "fit of a profile of four models": best_us(
            many(1, lambda: SurfaceModel(builtin_profile("v100")))
        ),
    }


def main() -> None:
    print(f"{cpu()}, one thread")
    for name, us in figures().items():
        print(f"{name:45s} {us:10.2f} us")


if __name__ == "__main__":
    main()
