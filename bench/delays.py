"""When a queue delay helps, under the rule that Triton follows: the P99 of the model itself, how
busy it is, and its neighbour's P99.

    python bench/delays.py

Models of the built-in V100 profile, one instance, Poisson arrivals, dispersion 0.1. A situation is
a model, a share and a rate (as part of what full batches of 8 can serve). In it, every largest
batch is simulated with and without a delay, with the same arrivals and services, so that
differences are the rule's. Delays are multiples of the service time of one request.

(a) P99 with a delay against the one without, at the same largest batch; and the lowest of all
    largest batches with a delay against the lowest without.
(b) For SLOs that are multiples of the service time of one request: the least busy choice whose P99
is within, with delays allowed and not. (c) Two models in halves of the GPU, replayed on the
measured tables: the P99 of either when one of them has a delay, against the same
    arrivals without.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from igniterd.lab.replay.boards import MeasuredBoard, Replica
from igniterd.lab.replay.replay import replay
from igniterd.perf import builtin_profile, load_model
from igniterd.queueing.kernels.monte_carlo import draw_factors, draw_times, requests_for, tail_drawn
from igniterd.queueing.kernels.stationary import quantile
from igniterd.queueing.tail import SERVICE_CV as CV

SHARES = (0.2, 0.4, 0.8)
LOADS = (0.1, 0.3, 0.5, 0.7, 0.85)
BATCHES = (1, 2, 4, 8, 16, 32)
DELAYS = (0.25, 0.5, 1.0, 2.0, 4.0)
SLOS = (3.0, 4.0, 6.0, 10.0)
CLEAR = 0.02  # smaller differences count for nothing

_times, _factors = lru_cache(draw_times), lru_cache(draw_factors)


@dataclass(frozen=True)
class Choice:
    """A largest batch and a delay (services of one) in one situation, and what comes of it."""

    largest: int
    delay: float
    p99: float  # services of one
    busy: float


def evaluated(curve: np.ndarray, rate: float, largest: int, delay: float) -> Choice:
    """``rate`` per ms, ``delay`` in services of one."""
    service = np.ascontiguousarray(curve[:largest])
    n = requests_for(rate * service[-1] / largest)
    cdf, step, _, busy, _ = tail_drawn(
        rate, service, delay * curve[0], 1, _times(n, 1.0), _factors(n, CV)
    )
    return Choice(largest, delay, quantile(cdf, step, np.inf, 0.99) / curve[0], busy)


def situation(curve: np.ndarray, load: float) -> list[Choice]:
    rate = load * 8 / curve[7]
    stable = [b for b in BATCHES if rate * curve[b - 1] / b < 0.95]
    return [evaluated(curve, rate, b, d) for b in stable for d in (0.0, *(DELAYS if b > 1 else ()))]


def own_tail(situations: list[list[Choice]]) -> None:
    """Part (a)."""
    changes: dict[float, list[tuple[float, float]]] = {d: [] for d in DELAYS}
    best = []
    for choices in situations:
        without = {c.largest: c for c in choices if c.delay == 0.0}
        for c in (c for c in choices if c.delay > 0.0):
            changes[c.delay].append(
                (c.p99 / without[c.largest].p99 - 1, c.busy / without[c.largest].busy - 1)
            )
        best.append(
            min(c.p99 for c in choices if c.delay > 0.0) / min(c.p99 for c in without.values()) - 1
        )
    print(
        f"(a) at the same largest batch: change of P99, of busy\n{'delay':>7} {'points':>7} "
        f"{'P99 median':>11} {'least':>7} ",
        end="",
    )
    print(f"{'lower':>12} {'busy median':>12} {'least':>7}")
    for d, found in changes.items():
        tail, busy = np.array(found).T
        print(f"{d:7g} {tail.size:7} {np.median(tail):+11.1%} {tail.min():+7.1%} ", end="")
        print(
            f"{np.count_nonzero(tail < -CLEAR):5} of {tail.size:3} {np.median(busy):+12.1%} "
            f"{busy.min():+7.1%}"
        )
    low = np.array(best)
    print(
        "    any largest batch: lowest P99 with a delay against without: median "
        f"{np.median(low):+.1%}, least {low.min():+.1%}; ",
        end="",
    )
    print(
        f"lower by more than {CLEAR:.0%} in {np.count_nonzero(low < -CLEAR)} of {low.size} "
        "situations"
    )


def least_busy(
    choices: list[Choice], slo: float, allowed: Callable[[Choice], bool]
) -> Choice | None:
    return min(
        (c for c in choices if c.p99 <= slo and allowed(c)), key=lambda c: c.busy, default=None
    )


def own_busy(situations: list[list[Choice]]) -> None:
    """Part (b)."""
    print(
        f"(b) least busy within the SLO, delays allowed against not\n{'SLO':>7} {'feasible':>9} "
        f"{'only with':>10} {'less busy':>10} ",
        end="",
    )
    print(f"{'by, median':>11} {'most':>7} {'delay then, median':>19}")
    for slo in SLOS:
        pairs = [
            (least_busy(s, slo, lambda c: c.delay == 0.0), least_busy(s, slo, lambda c: True))
            for s in situations
        ]
        feasible = [
            (plain, any_) for plain, any_ in pairs if plain is not None and any_ is not None
        ]
        only = sum(plain is None and any_ is not None for plain, any_ in pairs)
        gains = [
            (1 - any_.busy / plain.busy, any_.delay)
            for plain, any_ in feasible
            if any_.busy < plain.busy * (1 - CLEAR)
        ]
        print(f"{slo:7g} {len(feasible):9} {only:10} {len(gains):10} ", end="")
        by, delay = np.array(gains).T if gains else (np.zeros(1), np.zeros(1))
        print(f"{np.median(by):11.1%} {by.max():7.1%} {np.median(delay):19g}")


def neighbours(curves: dict[str, np.ndarray]) -> None:
    """Part (c)."""
    print(
        "(c) in halves, both at a load: changes of P99 when the first has a delay, median "
        "(least, most) over the ordered pairs"
    )
    for load, delay in product((0.3, 0.6), (0.5, 1.0, 2.0)):
        own, beside = [], []
        for a, b in permutations(curves, 2):
            rates = {m: 1e3 * load * 8 / curves[m][7] for m in (a, b)}
            found = []
            for d in (0.0, delay):
                seats = [
                    Replica(m, m, rates[m], 0.5, 16, round(1e3 * d * curves[m][0]) if m == a else 0)
                    for m in (a, b)
                ]
                found.append(
                    replay([seats], [MeasuredBoard()], duration_s=300.0, workers=1).workloads
                )
            own.append(found[1][0].p99_ms / found[0][0].p99_ms - 1)
            beside.append(found[1][1].p99_ms / found[0][1].p99_ms - 1)
        texts = [f"{np.median(x):+6.1%} ({min(x):+6.1%}, {max(x):+6.1%})" for x in (own, beside)]
        print(
            f"    load {load:.0%}, delay {delay:3g}   its own {texts[0]}   the other's {texts[1]}"
        )


def main() -> None:
    began = time.perf_counter()
    model = load_model(builtin_profile("v100"))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    situations = [
        situation(model.service_curve_ms(name, share, (), max(BATCHES))[0], load)
        for name, share, load in product(sorted(model.models), SHARES, LOADS)
    ]
    own_tail(situations)
    own_busy(situations)
    neighbours(
        {name: model.service_curve_ms(name, 0.5, (), 16)[0] for name in sorted(model.models)}
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
