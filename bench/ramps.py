"""Traffic that is hard to foresee: ramps of every slope, sources that go on and off, few requests,
silence, the first seconds, a week.

    python bench/ramps.py [--seeds 20] [PART…]

As in ``bench/arrivals.py``: counts of one second drawn from known rates, the upper quantile (0.9, 8
s ahead) that plans are made for against the mean of the true rate over the coming 8 s. ``covered``:
how often it was not below that; ``excess``: by how much it was above, mean over all seconds (0
where it was below); ``short``: the same for how much it was below. Means over seeds and seconds.

The estimator's constants were chosen on other seeds, and on ramps of other rates (15, 40, 120,
400/s), slopes (0.3, 0.7, 1.5 % a second) and lengths (45, 100 s); those for few requests on steps
from 0.05, 0.2, 0.5, 1 and 2/s.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable

import numpy as np
from arrivals import ESTIMATORS, Trace, ahead, traced
from numpy.typing import NDArray

from igniterd.arrays import F64
from igniterd.estimators.daily import BIN_S, DAY_S, Daily, update_daily

RATES = (10.0, 30.0, 75.0, 200.0, 1000.0)
SLOPES = (0.002, 0.005, 0.01, 0.02)
RAMP_S, BEFORE_S, AFTER_S = 60, 120, 60
AGAINST = ("igniterd", "average 5 s", "average 15 s")
BURSTS = ((5.0, 5.0), (20.0, 20.0), (40.0, 80.0))  # seconds on, seconds off
FEW = (0.03, 0.1, 0.3, 0.7, 1.5, 4.0)
FEW_STEPS = ((0.1, 1.0), (0.3, 1.2), (0.7, 3.0), (1.5, 8.0), (3.0, 0.0), (30.0, 0.0))
FIRST_SEED = 470_000
LEARNT_WEEKS, SHOWN_WEEKS, JOB_AT_S = 4, 2, 9 * 3600.0


def drawn(name: str, true: F64, seeds: int) -> Trace:
    return traced(ESTIMATORS[name], true, seeds, first_seed=FIRST_SEED)


def met(trace: Trace, since: int, until: int) -> tuple[float, float, float]:
    """Covered, excess and short from ``since`` to ``until``."""
    wanted = ahead(trace.true)[since:until]
    over = trace.upper[:, since:until] / wanted - 1
    return (
        float((over >= -1e-9).mean()),
        float(np.clip(over, 0, None).mean()),
        float(np.clip(-over, 0, None).mean()),
    )


def ramps(seeds: int) -> None:
    print(
        f"\nRamps of {RAMP_S} s, then level. lag: of the estimate in the ramp's second half; "
        "after: excess in the 40 s after the ramp"
    )
    print(f"  {'ramp':>17}  " + "".join(f"{name:^40}" for name in AGAINST))
    print(
        f"  {'':>17}  "
        + f"{'covered':>8}{'excess':>8}{'short':>8}{'lag':>7}{'after':>8} " * len(AGAINST)
    )
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in AGAINST}
    for slope in (*SLOPES, -0.01):
        for rate in RATES:
            cells = ""
            t_s = np.arange(BEFORE_S + RAMP_S + AFTER_S) + 0.5
            true = rate * (1 + slope * np.clip(t_s - BEFORE_S, 0, RAMP_S))
            end = BEFORE_S + RAMP_S
            for name in AGAINST:
                t = drawn(name, true, seeds)
                half = slice(end - RAMP_S // 2, end)
                lag = float(np.median(1 - t.now[:, half] / true[half]))
                row = (*met(t, BEFORE_S + 10, end), lag, met(t, end, end + 40)[1])
                cells += "{:>8.1%}{:>8.1%}{:>8.1%}{:>7.1%}{:>8.1%} ".format(*row)
                if slope > 0:
                    rows[name].append(row)
            print(f"  {rate:>6g}/s {slope:>+6.1%}/s  {cells}")
    means = "".join(
        "{:>8.1%}{:>8.1%}{:>8.1%}{:>7.1%}{:>8.1%} ".format(*np.mean(rows[name], axis=0))
        for name in AGAINST
    )
    print(f"  {'mean, rising':>17}  {means}")
    print("  (from 10 s into the ramp on)")


def on_and_off(seeds: int) -> None:
    print(
        "\nOn and off, 10 minutes. rises: seconds of those that are on in which the upper "
        "quantile is below the rate that is on"
    )
    print(f"  {'':>24}" + "".join(f"{name:^28}" for name in AGAINST))
    print(f"  {'':>24}" + f"{'covered':>10}{'excess':>9}{'rises':>9}" * len(AGAINST))
    for on_s, off_s in BURSTS:
        for high, low in ((100.0, 20.0), (100.0, 0.0), (20.0, 2.0)):
            t_s = np.arange(600)
            on = t_s % (on_s + off_s) >= off_s
            true = np.where(on, high, low)
            cells = ""
            for name in AGAINST:
                t = drawn(name, true, max(4, seeds // 2))
                wanted = np.maximum(ahead(true), 1.0)[60:]
                over = t.upper[:, 60:] / wanted - 1
                below = t.upper[:, 60:][:, on[60:]] < 0.95 * high
                cells += f"{(over >= 0).mean():>10.1%}{np.clip(over, 0, None).mean():>9.0%}{below.mean():>9.1%}"  # noqa: E501
            print(f"  {high:>5g}/s {on_s:>3g} s, {low:>3g}/s {off_s:>3g} s{cells}")


def few(seeds: int) -> None:
    print("\nFew requests, steady, 10 minutes")
    print(f"  {'':>10}" + "".join(f"{name:^26}" for name in AGAINST))
    print(f"  {'':>10}" + f"{'error':>9}{'covered':>9}{'excess':>8}" * len(AGAINST))
    for rate in FEW:
        cells = ""
        for name in AGAINST:
            t = drawn(name, np.full(600, rate), seeds)
            covered, excess, _ = met(t, 60, 600)
            cells += f"{np.sqrt(((t.now[:, 60:] / rate - 1) ** 2).mean()):>9.0%}{covered:>9.1%}{excess:>8.0%}"  # noqa: E501
        print(f"  {rate:>8g}/s{cells}")
    print(
        "\nSteps of few requests: seconds until the upper quantile is above the new rate and "
        "stays so for 5 s (up), or the estimate is"
    )
    print("below half the old one (down); median and p90")
    for before, after in FEW_STEPS:
        true = np.concatenate([np.full(120, before), np.full(60, after)])
        cells = ""
        for name in AGAINST:
            t = drawn(name, true, 2 * seeds)
            done = t.upper[:, 120:] >= after if after > before else t.now[:, 120:] < before / 2
            waits = np.array([_lasting(row) for row in done])
            cells += f"   {name} {np.median(waits):.0f} s, {np.quantile(waits, 0.9):.0f} s"
        print(f"  {before:>4g} -> {after:<4g}{cells}")


def _lasting(done: NDArray[np.bool_]) -> float:
    stays = [bool(done[i : i + 5].all()) for i in range(done.size - 4)]
    return stays.index(True) + 1.0 if True in stays else float(done.size)


def returns(seeds: int) -> None:
    print(
        "\nSilence of 60 s, then back: the upper quantile over the rate that returns, after 1, "
        "2, 3, 5 and 10 s (median)"
    )
    for rate in (3.0, 15.0, 60.0, 400.0):
        true = np.concatenate([np.full(120, rate), np.zeros(60), np.full(30, rate)])
        for name in AGAINST:
            t = drawn(name, true, 2 * seeds)
            after = np.median(t.upper[:, 180:] / rate - 1, axis=0)
            print(
                f"  {rate:>5g}/s {name:<14}"
                + "".join(f"{after[s - 1]:>+8.0%}" for s in (1, 2, 3, 5, 10))
            )


def first_seconds(seeds: int) -> None:
    print(
        "\nFrom nothing known: covered, and excess of the upper quantile, after so many seconds "
        "(no decision before the 8th)"
    )
    print(f"  {'':>8} {'':<14}" + "".join(f"{f'{s} s':>14}" for s in (1, 3, 8, 15, 30, 60)))
    for rate in (0.4, 3.0, 15.0, 60.0, 400.0):
        for name in AGAINST:
            t = drawn(name, np.full(64, rate), 20 * seeds)
            cells = (
                f"{(t.upper[:, s - 1] >= rate).mean():>7.0%}{(t.upper[:, s - 1] / rate - 1).mean():>+7.0%}"  # noqa: E501
                for s in (1, 3, 8, 15, 30, 60)
            )
            print(f"  {rate:>6g}/s {name:<14}" + "".join(cells))


def week(_: int) -> None:
    """The daily memory alone, on exact rates every 15 s; days vary."""
    print(
        "\nA job of 200/s on 100/s at nine on workdays, half the traffic on weekends: "
        f"{LEARNT_WEEKS} weeks, then {SHOWN_WEEKS} more"
    )
    rng, daily, step_s = np.random.default_rng(FIRST_SEED), Daily(), 15.0
    told: list[tuple[bool, float]] = []
    for day in range(7 * (LEARNT_WEEKS + SHOWN_WEEKS)):
        works, level = day % 7 < 5, float(rng.lognormal(0, 0.05))
        for i in range(int(DAY_S / step_s)):
            at_s = (i + 1) * step_s
            job = 200.0 if works and JOB_AT_S <= at_s - step_s / 2 < JOB_AT_S + BIN_S else 0.0
            daily = update_daily(
                daily, day * DAY_S + at_s, step_s, level * ((100.0 if works else 50.0) + job)
            )
            if at_s == JOB_AT_S - step_s and day >= 7 * LEARNT_WEEKS:
                now = level * (100.0 if works else 50.0)
                told.append(
                    (works, daily.foreseen_per_s(now, day * DAY_S + JOB_AT_S - 5, 8.0) / now)
                )
    jobs, none = [f for works, f in told if works], [f for works, f in told if not works]
    came, wrong = sum(f > 2.7 for f in jobs), sum(f > 1 for f in none)
    print(
        f"  foreseen 5 s before, and high enough: on {came} of {len(jobs)} workdays; foreseen on "
        f"{wrong} of {len(none)} other days"
    )


PARTS: dict[str, Callable[[int], None]] = {
    "ramps": ramps,
    "on-off": on_and_off,
    "few": few,
    "returns": returns,
    "first": first_seconds,
    "week": week,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    unknown = set(asked.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {asked.seeds} seeds"
    )
    for name in asked.parts or PARTS:
        PARTS[name](asked.seeds)


if __name__ == "__main__":
    main()
