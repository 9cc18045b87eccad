"""What the constants of the estimators do: each at half and at twice its value, the others as they
are.

    python bench/constants.py [--seeds 6] [--only arrivals]

The tables in the docstrings of ``igniterd/estimators/arrivals.py`` and ``bias.py`` are from here.
A figure is named where it moves by more than a tenth (of what is covered: what is not), the three
that move most; ``-`` where none does. The modules are read anew with one line changed, so what
follows from a constant follows.

Arrivals, medians or means over the seeds: ``error``, ``margin``, ``covered`` of steady 75/s as in
``arrivals.py``; ``delay`` and ``overshoot`` of a step from 300/s to 450/s; ``lag`` of a ramp of 1 %
a second and ``beyond``, its upper quantile over the rate when a ramp of 3 % a second ends;
``spike``: highest upper quantile over the rate after one second of three times as much; ``scv`` and
``moves``: arrivals' variability of counts of four times a Poisson process's variance, and how often
it changes in 600 s; ``idle``: the peak over the former rate, ten minutes after the last request;
``gap``: margin of the upper quantile at the same rate, after 40 s without counts; ``short``: how
often it is below the new rate in the ten seconds after a step from 75/s to 150/s; ``few``: its
margin at steady 4/s.

Bias: ``error``, ``covered``, ``margin`` (of the mean's bound), ``by batch`` and ``sd`` of the
scenarios of ``calibrate.py`` named; ``noticed``: seconds until 30 % slower is noticed; ``false``:
changes noticed a run where there are none; ``share`` and ``beside``: mean error at another share
and beside other neighbours of what was learnt, measured V100 tables of alexnet and resnet50.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from igniterd.estimators import arrivals as shipped_arrivals
from igniterd.estimators import bias as shipped_bias

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench import arrivals, calibrate

ARRIVALS = "igniterd.estimators.arrivals"
BIAS = ("igniterd.estimators.bias", "igniterd.estimators.bias_filter")
OF_ARRIVALS = """
    MEMORY_S STEPS ALARM SHRINK CONFIRM YOUNG_S FEW GAP_S USUAL_PER_S FASTEST_PER_S DISPERSION_S
    DISPERSION_PRIOR DISPERSION_CLIP BURST_SIGMA PEAK_HALF_LIFE_S
"""
OF_BIAS = """
    LEVEL_SD BATCH_SD BATCH_SIZES BATCH_MEMORY TILT_SD DRIFT_SD_PER_SQRT_S SLOWEST FASTEST PACE
    TILT_DRIFT_SD_PER_SQRT_S SCATTER_SD SCATTER_WINDOWS LEAST_SCATTER_SD LOCAL OCTAVES PRESSURE
    CLIP_SIGMA LAG_WINDOWS LAG_DOUBT ALLOWED_SIGMA CHANGE CHANGE_CLIP NOTABLE FEW
"""
CARRIED = "LEVEL_SD TILT_SD LOCAL OCTAVES PRESSURE"  # at work where a model moves: slow to measure
NOTABLE = 0.1  # relative change of a figure that is named
STILL = "-"  # no figure moves
NAMED = 3  # figures of a constant, at most
LEAST_STEP = -0.9  # of a rate: twice the largest fall would leave none

Figures = dict[str, float]


@contextmanager
def altered(names: tuple[str, ...], constant: str, value: object) -> Iterator[list[ModuleType]]:
    """The modules ``names``, with ``constant`` of one of them at ``value``. Raises ``ValueError``
    where none assigns it on a line of its own."""
    kept, made, places = {name: sys.modules[name] for name in names}, [], 0
    try:
        for name in names:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            source = Path(spec.origin).read_text(encoding="utf-8")
            source, found = re.subn(
                rf"^{constant} = .*$", f"{constant} = {value!r}", source, flags=re.MULTILINE
            )
            places += found
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            exec(compile(source, spec.origin, "exec"), module.__dict__)  # noqa: S102
            made.append(module)
        if places != 1:
            raise ValueError(f"{constant}: {places} lines of {', '.join(names)} assign it, not 1")
        yield made
    finally:
        sys.modules.update(kept)


def of_arrivals(module: ModuleType, seeds: int) -> Figures:
    """The figures of the estimator in ``module``."""

    class Made:
        def __init__(self) -> None:
            self.rate = module.Rate()

        def seen(self, at_s: float, arrivals: int) -> tuple[float, float]:
            self.rate = module.update_rate(self.rate, at_s, 1.0, arrivals)
            return self.rate.per_s, self.rate.upper_per_s

    steady = arrivals.traced(Made, np.full(400, 75.0), seeds)
    covered, margin = arrivals.covered(steady, 60)
    step = np.concatenate([np.full(120, 300.0), np.full(60, 450.0)])
    stepped = arrivals.traced(Made, step, seeds)
    t_s = np.arange(200) + 0.5
    slow = 300 * (1 + 0.01 * np.clip(t_s - 120, 0, 60))
    ramp = arrivals.traced(Made, slow, seeds)
    quick = 300 * (1 + 0.03 * np.clip(t_s - 120, 0, 60))
    end = arrivals.traced(Made, quick, seeds).upper[:, 179] / quick[-1]
    odd = np.full(140, 300.0)
    odd[120] = 900.0
    spike = arrivals.traced(Made, odd, seeds).upper[:, 120:].max(axis=1) / 300
    doubled = np.concatenate([np.full(120, 75.0), np.full(20, 150.0)])
    short = (arrivals.traced(Made, doubled, seeds).upper[:, 120:130] < 150).mean()
    _, few = arrivals.covered(arrivals.traced(Made, np.full(200, 4.0), seeds), 60)
    lag = np.median(1 - ramp.now[:, 150:180] / slow[150:180])
    return {
        "error": arrivals.error(steady, 60),
        "margin": margin,
        "covered": covered,
        "delay": float(np.mean(arrivals.delays(stepped, 120))),
        "overshoot": float(np.median(arrivals.overshoots(stepped, 120, True))),
        "lag": float(lag),
        "beyond": float(np.median(end)) - 1,
        "spike": float(np.median(spike)),
        "short": float(short),
        "few": few,
    } | _of_one_rate(module, seeds)


def _of_one_rate(module: ModuleType, seeds: int) -> Figures:
    """Figures of the believed rate itself."""
    scv, moves, idle, gap = [], 0, [], []
    for seed in range(seeds):
        rng = np.random.default_rng(arrivals.FIRST_SEED + seed)
        rate = module.Rate()
        for i, n in enumerate(arrivals.drawn(rng, np.full(600, 300.0), 4.0)):
            before, rate = rate, module.update_rate(rate, i + 1.0, 1.0, int(n))
            moves += rate.arrival_scv != before.arrival_scv
            scv.append(rate.arrival_scv)
        rate = module.Rate()
        for i, n in enumerate(rng.poisson(300, 120)):
            rate = module.update_rate(rate, i + 1.0, 1.0, int(n))
        gap.append(module.update_rate(rate, 161.0, 1.0, 300).upper_per_s / 300 - 1)
        for i in range(600):
            rate = module.update_rate(rate, 121.0 + i, 1.0, 0)
        idle.append(rate.peak_per_s / 300)
    return {
        "scv": float(np.mean(scv)),
        "moves": moves / seeds,
        "idle": float(np.mean(idle)),
        "gap": float(np.mean(gap)),
    }


def of_bias(code: calibrate.Code, seeds: int, *, tables: bool) -> Figures:
    """The figures of ``code``; with ``tables``, those of the measured tables too."""
    found = {s.name: calibrate.run(s, seeds, code) for s in calibrate.SCENARIOS}
    slower = found["30 % slower from 120 s on"].noticed
    out = {
        "sd": found["right as predicted"].sd,
        "margin": found["right as predicted"].margin,
        "covered": found["right as predicted"].covered,
        "error tilt": found["12 % slower, 5 %/octave tilt"].error,
        "by batch": found["single batch sizes off by 3 %"].by_batch,
        "error drift": found["drifts +10 % in 3 minutes"].error,
        "covered drift": found["drifts +10 % in 3 minutes"].covered,
        "error wander": found["wanders by 5 % (60 s)"].error,
        "error odd": found["one window in 20 is 3 x as slow"].error,
        "error few": found["6 executions a window"].error,
        "noticed": float(np.median(slower)) - 120 if slower else np.inf,
        "false": float(sum(len(f.noticed) for n, f in found.items() if "from 120" not in n))
        / seeds,
    }
    if tables:
        rows = calibrate.carried(("alexnet", "resnet50"), code)
        at = {"share": "same neighbours, other share", "beside": "other neighbours"}
        out |= {k: float(np.abs(np.array(rows[kind])[:, 5]).mean()) for k, kind in at.items()}
    return out


PLAIN = ("delay", "spike", "scv", "moves", "noticed", "false", "sd")


def told(name: str, value: float) -> str:
    """A figure as printed: per cent, but for seconds, factors and counts."""
    return f"{value:.3g}" if name in PLAIN else f"{value:.1%}".replace("%", " %")


def moved(usual: Mapping[str, float], now: Mapping[str, float]) -> str:
    """What of ``usual`` is another figure in ``now``, in words. What is covered is judged by what
    is not."""
    changes: dict[str, float] = {}
    for name, value in now.items():
        was = usual[name]
        if name.startswith(("covered", "by batch")):
            changes[name] = abs(value - was) / max(1 - was, 0.05)
        else:
            changes[name] = abs(value - was) / max(abs(was), 1e-3) if value != was else 0.0
    most = sorted(changes, key=lambda name: -changes[name])[:NAMED]
    words = [f"{n} {told(n, now[n])}" for n in most if changes[n] > NOTABLE]
    return "; ".join(words) or STILL


def scaled(value: object, factor: float) -> object:
    """``value`` times ``factor``; a whole number stays one, of at least 1."""
    if isinstance(value, tuple):
        return tuple(max(LEAST_STEP, v * factor) for v in value)
    if isinstance(value, int):
        return max(1, round(value * factor))
    assert isinstance(value, float)
    return value * factor


def shown(value: object) -> str:
    """A constant as the tables have it."""
    if isinstance(value, tuple):
        return f"{min(value):g}..{max(value):g}"
    assert isinstance(value, int | float)
    return f"{value:.3g}"


def row(constant: str, value: object, half: str, twice: str) -> str:
    """Of the tables: two lines, or one where no figure moves."""
    head = f"    {constant:<24} {shown(value):<7} "
    if half == twice == STILL:
        return f"{head}half, twice: {STILL}"
    return f"{head}half: {half}\n{'':<{len(head)}}twice: {twice}"


def show(usual: Figures) -> None:
    print("As they are: " + "; ".join(f"{name} {told(name, v)}" for name, v in usual.items()))


def study_arrivals(seeds: int) -> None:
    print("\nestimators/arrivals.py")
    usual = of_arrivals(shipped_arrivals, seeds)
    show(usual)
    for constant in OF_ARRIVALS.split():
        value = getattr(shipped_arrivals, constant)
        words = []
        for factor in (0.5, 2.0):
            with altered((ARRIVALS,), constant, scaled(value, factor)) as (module,):
                words.append(moved(usual, of_arrivals(module, seeds)))
        print(row(constant, value, *words), flush=True)


def study_bias(seeds: int) -> None:
    print("\nestimators/bias.py")
    usual = of_bias(calibrate.SHIPPED, seeds, tables=True)
    show(usual)
    for constant in OF_BIAS.split():
        value = getattr(shipped_bias, constant)
        words = []
        for factor in (0.5, 2.0):
            with altered(BIAS, constant, scaled(value, factor)) as (bias, update):
                code = calibrate.Code(bias, update.update_bias)
                words.append(moved(usual, of_bias(code, seeds, tables=constant in CARRIED.split())))
        print(row(constant, value, *words), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", choices=("arrivals", "bias"))
    asked = parser.parse_args()
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {asked.seeds} seeds from {arrivals.FIRST_SEED}"
    )
    if asked.only != "bias":
        study_arrivals(asked.seeds)
    if asked.only != "arrivals":
        study_bias(asked.seeds)


if __name__ == "__main__":
    main()
