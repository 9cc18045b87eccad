"""How quickly and how quietly the arrival rate is followed: igniterd's estimator against plain moving averages.

    python bench/arrivals.py [--seeds 40] [--plot arrivals.png]

Counts of one second are drawn from known rates. ``delay``: seconds from a step until the estimate stays within 10 % of the new rate
for 5 s (a window's own second included). ``overshoot``: the largest excess over the new rate after that, in the 40 s that follow.
``error``: root mean square of estimate / true rate - 1. ``covered``: how often the upper quantile (0.9) was not below the mean of the
true rate over the coming 8 s; ``margin``: its mean excess over that. Medians over the seeds unless said otherwise.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from igniterd.model.arrivals import Rate, updated

F64 = NDArray[np.float64]
LEVEL = 0.9
HORIZON_S = 8.0
WITHIN = 0.1
FIRST_SEED = 70_000  # not the ones constants were tried on; the kinds of traffic are the same


class Estimator(Protocol):
    def seen(self, at_s: float, arrivals: int) -> tuple[float, float]:
        """Rate now and its upper quantile, after the count of one more second."""


class Ours:
    def __init__(self) -> None:
        self.rate = Rate()

    def seen(self, at_s: float, arrivals: int) -> tuple[float, float]:
        self.rate = updated(self.rate, at_s, 1.0, arrivals)
        return self.rate.per_s, self.rate.upper_per_s(LEVEL, HORIZON_S)


@dataclass
class MovingAverage:
    seconds: int
    counts: deque[int] = field(default_factory=deque)

    def seen(self, at_s: float, arrivals: int) -> tuple[float, float]:
        self.counts.append(arrivals)
        if len(self.counts) > self.seconds:
            self.counts.popleft()
        total, span = sum(self.counts), len(self.counts)
        return total / span, (total + NormalDist().inv_cdf(LEVEL) * math.sqrt(max(total, 1))) / span


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "igniterd": Ours,
    "average 5 s": lambda: MovingAverage(5),
    "average 15 s": lambda: MovingAverage(15),
    "average 60 s": lambda: MovingAverage(60),
}


@dataclass(frozen=True)
class Trace:
    """Estimates of many seeds, each (seeds, seconds)."""

    true: F64  # (seconds,) mean rate of each second
    now: F64
    upper: F64


def traced(make: Callable[[], Estimator], true: F64, seeds: int, dispersion: float = 1.0) -> Trace:
    now, upper = np.empty((seeds, true.size)), np.empty((seeds, true.size))
    for seed in range(seeds):
        rng = np.random.default_rng(FIRST_SEED + seed)
        counts = rng.poisson(true) if dispersion == 1 else drawn(rng, true, dispersion)
        estimator = make()
        for i, n in enumerate(counts):
            now[seed, i], upper[seed, i] = estimator.seen(i + 1.0, int(n))
    return Trace(true, now, upper)


def drawn(rng: np.random.Generator, true: F64, dispersion: float) -> NDArray[np.int64]:
    """Counts of clumps of geometric size: variance ``dispersion`` times the mean."""
    p = 2 / (dispersion + 1)
    clumps = rng.poisson(true * p)
    return np.array([int(rng.geometric(p, c).sum()) if c else 0 for c in clumps], dtype=np.int64)


def ahead(true: F64) -> F64:
    """Mean of the true rate over the coming horizon, for each second's end."""
    n = int(HORIZON_S)
    padded = np.concatenate([true[1:], np.full(n, true[-1])])
    return np.array([padded[i : i + n].mean() for i in range(true.size)])


def error(trace: Trace, since: int, until: int | None = None) -> float:
    ratio = trace.now[:, since:until] / trace.true[since:until] - 1
    return float(np.sqrt((ratio**2).mean()))


def covered(trace: Trace, since: int, until: int | None = None) -> tuple[float, float]:
    wanted = ahead(trace.true)[since:until]
    upper = trace.upper[:, since:until]
    return float((upper >= wanted * (1 - 1e-9)).mean()), float((upper / wanted - 1).mean())


def delays(trace: Trace, step_at: int) -> F64:
    """Seconds after the step until the estimate is, and for 5 s stays, within 10 % of the new rate; each seed."""
    new = trace.true[step_at]
    near = np.abs(trace.now[:, step_at:] / new - 1) <= WITHIN
    out = np.full(near.shape[0], np.nan)
    for seed, row in enumerate(near):
        stays = np.array([row[i : i + 5].all() for i in range(row.size - 4)])
        out[seed] = np.argmax(stays) + 1 if stays.any() else np.inf
    return out


def overshoots(trace: Trace, step_at: int, up: bool) -> F64:
    new = trace.true[step_at]
    wait = delays(trace, step_at)
    out = []
    for seed, row in enumerate(trace.now):
        begin = step_at + int(min(wait[seed], 40)) - 1
        part = row[begin : begin + 40] / new - 1
        out.append(part.max() if up else -part.min())
    return np.array(out)


def steady(seeds: int) -> None:
    print("\nSteady traffic, 600 s: quiet?")
    print(
        f"  {'rate/s':>12} {'':<14}{'error':>8}{'covered':>9}{'margin':>8}{'largest':>9}   (largest: |estimate / rate - 1|, median of runs)"
    )
    for rate, dispersion in ((20.0, 1.0), (75.0, 1.0), (300.0, 1.0), (1000.0, 1.0), (300.0, 4.0)):
        true = np.full(600, rate)
        for name, make in ESTIMATORS.items():
            t = traced(make, true, max(4, seeds // 4), dispersion)
            cover, margin = covered(t, 60)
            worst = float(np.median(np.abs(t.now[:, 60:] / rate - 1).max(axis=1)))
            label = f"{rate:g}" + (f" (x{dispersion:g})" if dispersion != 1 else "")
            print(f"  {label:>12} {name:<14}{error(t, 60):>8.1%}{cover:>9.1%}{margin:>8.1%}{worst:>9.1%}")
    print("  (xN): counts with N times the variance of a Poisson process")


def steps(seeds: int) -> None:
    print("\nSteps at 120 s: quick?")
    print(f"  {'step':>14} {'':<14}{'delay':>8}{'p90':>7}{'overshoot':>11}{'p90':>8}{'upper':>9}{'p90':>8}")
    for before, after in ((300, 450), (300, 360), (300, 900), (75, 150), (150, 75), (20, 60), (0, 100)):
        true = np.concatenate([np.full(120, float(before)), np.full(60, float(after))])
        for name, make in ESTIMATORS.items():
            t = traced(make, true, seeds)
            wait, over = delays(t, 120), overshoots(t, 120, after > before)
            highest = (t.upper[:, 121:160] / after - 1).max(axis=1)
            print(
                f"  {before:>6} -> {after:<4} {name:<14}{np.median(wait):>6.0f} s{np.quantile(wait, 0.9):>5.0f} s"
                f"{np.median(over):>11.1%}{np.quantile(over, 0.9):>8.1%}{np.median(highest):>9.0%}{np.quantile(highest, 0.9):>8.0%}"
            )
    print("  (upper: the highest excess of the upper quantile over the new rate, from the second second on)")


def ramps(seeds: int) -> None:
    print("\nRamps for 60 s from 120 s on, then level: lag while it lasts, and overshoot after its end")
    print(f"  {'ramp':>20} {'':<14}{'lag':>8}{'covered':>9}{'overshoot':>11}{'p90':>8}")
    for rate, slope in ((300.0, 0.002), (300.0, 0.01), (300.0, 0.03), (75.0, 0.01), (300.0, -0.01)):
        t_s = np.arange(240) + 0.5
        true = rate * (1 + slope * np.clip(t_s - 120, 0, 60))
        for name, make in ESTIMATORS.items():
            t = traced(make, true, seeds)
            lag = float(np.median(1 - t.now[:, 150:180] / true[150:180]))
            part = t.now[:, 180:220] / true[-1] - 1
            over = part.max(axis=1) if slope > 0 else -part.min(axis=1)
            cover, _ = covered(t, 130, 180)
            print(
                f"  {rate:>6g}/s {slope:>+7.1%} per s {name:<14}{lag:>8.1%}{cover:>9.1%}"
                f"{np.median(over):>11.1%}{np.quantile(over, 0.9):>8.1%}"
            )


def spikes(seeds: int) -> None:
    print("\nSpikes of 3 s to three times 300/s at 120 s: highest estimate, and seconds after its end until it is back within 10 %")
    print(f"  {'':<14}{'highest':>9}{'back':>8}{'p90':>7}")
    true = np.full(240, 300.0)
    true[120:123] = 900.0
    for name, make in ESTIMATORS.items():
        t = traced(make, true, seeds)
        wait = delays(t, 123)
        print(
            f"  {name:<14}{np.median(t.now[:, 120:130].max(axis=1)) / 300:>8.2f}x{np.median(wait):>6.0f} s{np.quantile(wait, 0.9):>5.0f} s"
        )


def a_day() -> F64:
    """A day of second-by-second rates: a night, a day, an evening peak, a job at nine o'clock sharp."""
    t = np.arange(86_400) + 0.5
    h = t / 3600
    base = 60 + 180 * np.exp(-((h - 13) ** 2) / 12) + 160 * np.exp(-((h - 20.5) ** 2) / 2.5)
    return base + np.where((h >= 9) & (h < 9.25), 200.0, 0.0)


def day() -> None:
    print("\nA day's cycle (night 60/s, peak about 250/s, a job of 200/s from 9:00 to 9:15), three seeds")
    print(f"  {'':<14}{'error':>8}{'covered':>9}{'margin':>8}")
    true = a_day()
    for name, make in ESTIMATORS.items():
        t = traced(make, true, 3)
        cover, margin = covered(t, 60)
        print(f"  {name:<14}{error(t, 60):>8.1%}{cover:>9.1%}{margin:>8.1%}")


def cost() -> None:
    rng = np.random.default_rng(5)
    counts = [int(n) for n in rng.poisson(300, 20_000)]
    rate, began = Rate(), time.process_time()
    for i, n in enumerate(counts):
        rate = updated(rate, i + 1.0, 1.0, n)
        rate.upper_per_s(LEVEL, HORIZON_S)
    print(f"\nCost: {(time.process_time() - began) / len(counts) * 1e6:.1f} us a model and tick")


def plot(path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    t_s = np.arange(200) + 0.5
    cases = {
        "step 300 to 450/s": np.where(t_s < 100, 300.0, 450.0),
        "ramp, 1 % a second": 300 * (1 + 0.01 * np.clip(t_s - 80, 0, 60)),
        "spike of 3 s": np.where((t_s > 100) & (t_s < 103), 900.0, 300.0),
        "steady 75/s": np.full(200, 75.0),
    }
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), constrained_layout=True)
    for axis, (title, true) in zip(axes.flat, cases.items(), strict=True):
        axis.plot(t_s, true, color="black", lw=1, label="true rate")
        for name, colour in (("average 15 s", "tab:orange"), ("igniterd", "tab:blue")):
            t = traced(ESTIMATORS[name], true, 1)
            axis.plot(t_s + 0.5, t.now[0], color=colour, lw=1.2, label=name)
            if name == "igniterd":
                axis.fill_between(t_s + 0.5, t.now[0], t.upper[0], color=colour, alpha=0.2, label=f"up to its upper quantile ({LEVEL:g})")
        axis.set(title=title, xlabel="s", ylabel="requests/s", xlim=(60, 200), ylim=(0, None))
    axes[0, 0].legend(loc="lower right")
    figure.savefig(path, dpi=110)
    print(f"\nplot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--plot", type=Path, help="also draw examples into this PNG")
    asked = parser.parse_args()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {asked.seeds} seeds")
    steady(asked.seeds)
    steps(asked.seeds)
    ramps(asked.seeds)
    spikes(asked.seeds)
    day()
    cost()
    if asked.plot:
        plot(asked.plot)


if __name__ == "__main__":
    main()
