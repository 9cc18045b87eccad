"""How quickly and how quietly the arrival rate is followed: igniterd's estimator against plain
moving averages.

    python bench/arrivals.py [--seeds 40] [--plot arrivals.png]

Counts of one second are drawn from known rates. ``delay``: seconds from a step until the estimate
stays within 10 % of the new rate for 5 s (a window's own second included). ``overshoot``: the
largest excess over the new rate after that, in the 40 s that follow. ``error``: root mean square of
estimate / true rate - 1. ``covered``: how often the upper quantile (0.9) was not below the mean of
the true rate over the coming 8 s; ``margin``: its mean excess over that. Medians over the seeds
unless said otherwise.
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

from igniterd.arrays import F64
from igniterd.estimators.arrivals import ForecastTarget, Rate, update_rate
from igniterd.estimators.daily import Daily, update_daily

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
        self.rate = update_rate(self.rate, at_s, 1.0, arrivals, ForecastTarget(LEVEL, HORIZON_S))
        return self.rate.per_s, self.rate.upper_per_s


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


def traced(
    make: Callable[[], Estimator],
    true: F64,
    seeds: int,
    dispersion: float = 1.0,
    first_seed: int = FIRST_SEED,
) -> Trace:
    now, upper = np.empty((seeds, true.size)), np.empty((seeds, true.size))
    for seed in range(seeds):
        rng = np.random.default_rng(first_seed + seed)
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
    """Seconds after the step until the estimate is, and for 5 s stays, within 10 % of the new rate;
    each seed."""
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
        f"  {'rate/s':>12} {'':<14}{'error':>8}{'covered':>9}{'margin':>8}{'largest':>9}   "
        "(largest: |estimate / rate - 1|, median of runs)"
    )
    for rate, dispersion in ((20.0, 1.0), (75.0, 1.0), (300.0, 1.0), (1000.0, 1.0), (300.0, 4.0)):
        true = np.full(600, rate)
        for name, make in ESTIMATORS.items():
            t = traced(make, true, max(4, seeds // 4), dispersion)
            cover, margin = covered(t, 60)
            worst = float(np.median(np.abs(t.now[:, 60:] / rate - 1).max(axis=1)))
            label = f"{rate:g}" + (f" (x{dispersion:g})" if dispersion != 1 else "")
            print(
                f"  {label:>12} "
                f"{name:<14}{error(t, 60):>8.1%}{cover:>9.1%}{margin:>8.1%}{worst:>9.1%}"
            )
    print("  (xN): counts with N times the variance of a Poisson process")


def steps(seeds: int) -> None:
    print("\nSteps at 120 s: quick?")
    print(
        f"  {'step':>14} "
        f"{'':<14}{'delay':>8}{'p90':>7}{'overshoot':>11}{'p90':>8}{'upper':>9}{'p90':>8}"
    )
    for before, after in (
        (300, 450),
        (300, 360),
        (300, 900),
        (75, 150),
        (150, 75),
        (20, 60),
        (0, 100),
    ):
        true = np.concatenate([np.full(120, float(before)), np.full(60, float(after))])
        for name, make in ESTIMATORS.items():
            t = traced(make, true, seeds)
            wait, over = delays(t, 120), overshoots(t, 120, after > before)
            highest = (t.upper[:, 121:160] / after - 1).max(axis=1)
            print(
                f"  {before:>6} -> {after:<4} {name:<14}{np.median(wait):>6.0f} "
                f"s{np.quantile(wait, 0.9):>5.0f} s"
                f"{np.median(over):>11.1%}{np.quantile(over, 0.9):>8.1%}{np.median(highest):>9.0%}{np.quantile(highest, 0.9):>8.0%}"  # noqa: E501
            )
    print(
        "  (upper: the highest excess of the upper quantile over the new rate, from the second "
        "second on)"
    )


def settling(seeds: int) -> None:
    print(
        "\nThe upper quantile over the new rate in the 30 s after a step (plans are made for it; "
        "what grows late asks for a second reload)"
    )
    print(
        f"  {'step':>14}"
        + "".join(f"{f'{s} s':>8}" for s in (1, 2, 3, 5, 10, 30))
        + f"{'short at 3 s':>14}{'late growth':>13}{'p90':>6}"
    )
    for before in (25.0, 50.0, 100.0, 200.0, 400.0):
        for factor in (1.5, 2.0, 0.5):
            after = before * factor
            t = traced(Ours, np.concatenate([np.full(120, before), np.full(60, after)]), seeds)
            upper = t.upper[:, 120:150] / after
            late = upper[:, 3:].max(axis=1) / upper[:, 3] - 1
            medians = "".join(
                f"{np.median(upper[:, s - 1]) - 1:>+8.0%}" for s in (1, 2, 3, 5, 10, 30)
            )
            short = float((upper[:, 2] < 1).mean())
            print(
                f"  {before:>6g} -> "
                f"{after:<5g}{medians}{short:>14.0%}{np.median(late):>13.0%}{np.quantile(late, 0.9):>6.0%}"  # noqa: E501
            )
    print(
        "  (medians; short at 3 s: runs whose upper quantile is below the new rate then; late "
        "growth: after the 4th second)"
    )


def ramps(seeds: int) -> None:
    print(
        "\nRamps for 60 s from 120 s on, then level: lag while it lasts, and overshoot after its "
        "end"
    )
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
    print(
        "\nSpikes of 3 s to three times 300/s at 120 s: highest estimate, and seconds after its "
        "end until it is back within 10 %"
    )
    print(f"  {'':<14}{'highest':>9}{'back':>8}{'p90':>7}")
    true = np.full(240, 300.0)
    true[120:123] = 900.0
    for name, make in ESTIMATORS.items():
        t = traced(make, true, seeds)
        wait = delays(t, 123)
        print(
            f"  {name:<14}{np.median(t.now[:, 120:130].max(axis=1)) / 300:>8.2f}x{np.median(wait):>6.0f} s{np.quantile(wait, 0.9):>5.0f} s"  # noqa: E501
        )


def a_day(job: bool = True) -> F64:
    """A day of second-by-second rates: a night, a day, an evening peak, a job at nine o'clock
    sharp."""
    t = np.arange(86_400) + 0.5
    h = t / 3600
    base = 60 + 180 * np.exp(-((h - 13) ** 2) / 12) + 160 * np.exp(-((h - 20.5) ** 2) / 2.5)
    return base + np.where((h >= 9) & (h < 9.25), 200.0, 0.0) if job else base


def day() -> None:
    print(
        "\nA day's cycle (night 60/s, peak about 250/s, a job of 200/s from 9:00 to 9:15), three "
        "seeds, nothing known of other days"
    )
    print(f"  {'':<14}{'error':>8}{'covered':>9}{'margin':>8}")
    true = a_day()
    for name, make in ESTIMATORS.items():
        t = traced(make, true, 3)
        cover, margin = covered(t, 60)
        print(f"  {name:<14}{error(t, 60):>8.1%}{cover:>9.1%}{margin:>8.1%}")


LEARNT_DAYS = 4  # with the job; then one more, and one on which the job does not come
JOB_S = 9 * 3600
DAY_SPREAD = 0.05  # of the days' rates


def days(seeds: int = 2) -> None:
    """What is known from other days, as the daemon uses it: see ``igniterd.estimate``."""
    print(
        f"\n{LEARNT_DAYS} such days (rates of a day vary by {DAY_SPREAD:.0%}), then one more and "
        f"one without the job, {seeds} seeds"
    )
    rows: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(FIRST_SEED + seed)
        true = np.concatenate(
            [
                a_day(job) * rng.lognormal(0, DAY_SPREAD)
                for job in [True] * (LEARNT_DAYS + 1) + [False]
            ]
        )
        counts = rng.poisson(true)
        ours, average, rate, daily = Ours(), MovingAverage(15), Rate(), Daily()
        # upper with and without other days, the average's; what is remembered for idle models, both
        # ways
        found = np.empty((5, true.size))
        for i, n in enumerate(counts):
            now, plain = ours.seen(i + 1.0, int(n))
            wall = i + 1.0
            rate, daily = ours.rate, update_daily(daily, wall, 1.0, now)
            usual = max(daily.usual_per_s(wall), daily.usual_per_s(wall + HORIZON_S))
            found[:, i] = (
                daily.foreseen_per_s(plain, wall, HORIZON_S),
                plain,
                average.seen(wall, int(n))[1],
                max(rate.peak_per_s, usual),
                rate.peak_per_s,
            )
        for name, upper in zip(
            ("igniterd, with other days", "igniterd, this day alone", "average 15 s"),
            found[:3],
            strict=True,
        ):
            rows.setdefault(name, []).append(_around_the_job(upper, true))
        for name, kept in zip(("of other days too", "of this day alone"), found[3:], strict=True):
            rows.setdefault(name, []).append(_remembered(kept, true))
    print(
        f"  {'':<28}{'enough from':>12}{'too little':>12}{'too much before':>17}{'when no job comes':>19}{'covered':>9}{'margin':>8}"  # noqa: E501
    )
    for name in list(rows)[:3]:
        at, less, before, wrong, cover, margin = np.mean(rows[name], axis=0)
        print(
            f"  {name:<28}{at:>+10.0f} s{less:>10.1f} s{before:>15.1f} s{wrong:>17.1f} "
            f"s{cover:>9.1%}{margin:>8.1%}"
        )
    print(
        "  (enough from: when the upper quantile first reaches the job's rate less 5 %, seconds "
        "from nine; too little, too much: its"
    )
    print(
        "   distance from the true rate, in seconds of the job's rate, the minute before and "
        "after nine; covered, margin: of the whole day)"
    )
    for name in list(rows)[3:]:
        cover, margin = np.mean(rows[name], axis=0)
        print(
            f"  what an idle model keeps ready for, {name}: enough for the next quarter of an "
            f"hour {cover:.1%}, mean excess {margin:.0%}"
        )


def _around_the_job(upper: F64, true: F64) -> list[float]:
    day, at = slice(LEARNT_DAYS * 86_400, (LEARNT_DAYS + 1) * 86_400), LEARNT_DAYS * 86_400 + JOB_S
    job = true[at]
    near = slice(at - 60, at + 60)
    first = next(i for i in range(at - 60, at + 120) if upper[i - 1] >= 0.95 * true[at]) - at
    less = float(np.clip(true[near] - upper[at - 61 : at + 59], 0, None).sum() / job)
    before = float(np.clip(upper[at - 61 : at - 1] - true[at - 60 : at], 0, None).sum() / job)
    without = slice(at + 86_400 - 60, at + 86_400 + 60)
    wrong = float(np.clip(upper[without] - true[without], 0, None).sum() / job)
    wanted = ahead(true[day])
    return [
        float(first),
        less,
        before,
        wrong,
        float((upper[day] >= wanted).mean()),
        float((upper[day] / wanted - 1).mean()),
    ]


def _remembered(kept: F64, true: F64) -> list[float]:
    """Of every quarter of an hour of the day after the learnt ones: whether its highest rate was
    kept ready for as it began."""
    begins = LEARNT_DAYS * 86_400 + np.arange(96) * 900
    highest = np.array([true[b : b + 900].max() for b in begins])
    ready = kept[begins - 1]
    return [float((ready >= 0.95 * highest).mean()), float((ready / highest - 1).mean())]


def cost() -> None:
    rng = np.random.default_rng(5)
    counts = [int(n) for n in rng.poisson(300, 20_000)]
    rate, began = Rate(), time.process_time()
    for i, n in enumerate(counts):
        rate = update_rate(rate, i + 1.0, 1.0, n)
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
                axis.fill_between(
                    t_s + 0.5,
                    t.now[0],
                    t.upper[0],
                    color=colour,
                    alpha=0.2,
                    label=f"up to its upper quantile ({LEVEL:g})",
                )
        axis.set(title=title, xlabel="s", ylabel="requests/s", xlim=(60, 200), ylim=(0, None))
    axes[0, 0].legend(loc="lower right")
    figure.savefig(path, dpi=110)
    print(f"\nplot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--plot", type=Path, help="also draw examples into this PNG")
    asked = parser.parse_args()
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {asked.seeds} seeds"
    )
    steady(asked.seeds)
    steps(asked.seeds)
    settling(asked.seeds)
    ramps(asked.seeds)
    spikes(asked.seeds)
    day()
    days()
    cost()
    if asked.plot:
        plot(asked.plot)


if __name__ == "__main__":
    main()
