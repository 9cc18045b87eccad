"""How accurate the mean service times are: igniterd's model, the published one and the gpu-lets+
regression on the V100's measurements.

    python bench/accuracy.py

Prints tables and writes nothing. Every figure is of latencies that the method was not fitted to:

- *points*: every pair of models has its co-runs in the profile; tested on all its other co-runs.
  The prior of interference is of the other pairs only. The regression, which has no profile, is
  fitted to four fifths of each pair's co-runs and tested on the last.
- *batch*: no measurement at one batch size, alone or together, is used; tested on the co-runs where
  either tenant has that batch.
- *pair*: no co-run of the pair is used; tested on all of them.
- *both*: no co-run of the pair and nothing at that batch size.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from igniterd.arrays import F64

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.design import solo_design
from igniterd.data.v100 import build
from igniterd.perf import interference, load_model
from igniterd.perf.api import PerformanceModel, Tenant
from igniterd.perf.interference import FEATURES, CoRunSample, Prior
from igniterd.perf.profile import CoRun, Profile
from igniterd.perf.surface_model import SurfaceModel, observations

LEVEL = 0.95
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
BATCHES = (2, 4, 8, 16, 32)
Config = tuple[int, int, float]

EVERYTHING = build.profile(None, None)
RUNS = tuple(run for run in EVERYTHING.co_runs if len({t.model for t in run.tenants}) == 2)
MODELS = tuple(EVERYTHING.models)
PAIRS = tuple(itertools.combinations(MODELS, 2))
# where only the solo surfaces of a model are used
BLANK = Prior(np.zeros(FEATURES), np.eye(FEATURES))
CANDIDATES = sorted({(p.batch, p.share) for m in EVERYTHING.models.values() for p in m.solo})


def pair_of(run: CoRun) -> tuple[str, ...]:
    """The two models, in the order of ``MODELS``."""
    return tuple(sorted((t.model for t in run.tenants), key=MODELS.index))


def has_batch(run: CoRun, batch: int | None) -> bool:
    return any(t.batch == batch for t in run.tenants)


def config(run: CoRun) -> Config:
    """(batch of the first, of the second, share of the first in percent) of a run, as
    ``build.CO_RUNS`` has them."""
    first, second = run.tenants
    return first.batch, second.batch, round(first.share * 100)


@dataclass
class Errors:
    """Relative errors of predictions, and whether the bound held."""

    error: list[float]
    held: list[bool]
    width: list[float]

    @classmethod
    def none(cls) -> Errors:
        return cls([], [], [])

    def add(self, predicted: float, measured: float, upper: float) -> None:
        self.error.append(predicted / measured - 1)
        self.held.append(measured <= upper)
        self.width.append(upper / predicted - 1)

    def row(self, *, bound: bool) -> str:
        e = np.array(self.error)
        size = np.abs(e)
        figures = (
            f"{100 * size.mean():7.2f} {100 * np.quantile(size, 0.95):7.2f} {100 * size.max():7.2f}"
        )
        text = f"{len(e):6d} {figures} {100 * np.mean(e < -0.05):8.1f}"
        return text + (
            f" {100 * np.mean(self.held):9.1f} {100 * np.mean(self.width):7.1f}"
            if bound
            else "         -       -"
        )


HEAD = (
    f"{'':42s} {'points':>6s} {'mean %':>7s} {'p95 %':>7s} {'max %':>7s} {'under %':>8s} "
    f"{'covered %':>9s} {'bound %':>7s}"
)


def show(name: str, errors: Errors, *, bound: bool) -> None:
    print(f"{name:42s} {errors.row(bound=bound)}", flush=True)


def judge(
    model: PerformanceModel, runs: Sequence[CoRun], errors: Errors, level: float = LEVEL
) -> None:
    for run in runs:
        tenants = [Tenant(t.model, t.batch, t.share) for t in run.tenants]
        for t, p in zip(run.tenants, model.predict(tenants, level=level), strict=True):
            errors.add(p.latency_ms, t.latency_ms, p.upper_ms)


# ---------------------------------------------------------------- igniterd


def without_batch(profile: Profile, batch: int | None) -> Profile:
    """``profile`` with nothing measured at ``batch``, alone or together."""
    models = {
        name: m.model_copy(update={"solo": tuple(p for p in m.solo if p.batch != batch)})
        for name, m in profile.models.items()
    }
    return profile.model_copy(
        update={
            "models": models,
            "co_runs": tuple(r for r in profile.co_runs if not has_batch(r, batch)),
        }
    )


def seen_without(batch: int | None) -> list[CoRunSample]:
    """Every co-run of the tables but those at ``batch``, as the prior sees them."""
    whole = without_batch(EVERYTHING, batch)
    return observations(whole, SurfaceModel(whole.model_copy(update={"co_runs": ()}), BLANK))


SEEN = {batch: seen_without(batch) for batch in (None, *BATCHES)}


def prior_without(pair: Sequence[str], batch: int | None = None) -> Prior:
    """The prior of interference from the co-runs of all other pairs, none of them at ``batch``."""
    left_out = {MODELS.index(m) for m in pair}
    return interference.estimate_prior(
        [o for o in SEEN[batch] if {o.victim, o.neighbours[0].model} != left_out]
    )


def solo_points(batch: int | None = None) -> tuple[tuple[int, float], ...]:
    """The shipped solo points, or those the same design chooses among powers of two when one batch
    may not be used."""
    if batch is None:
        return build.SOLO_POINTS
    allowed = [c for c in CANDIDATES if c[0] in {1, *BATCHES} - {batch}]
    return tuple((b, round(100 * s)) for b, s in solo_design(allowed))


def co_run_points(batch: int | None = None) -> tuple[Config, ...]:
    """The shipped co-runs; 8 stands in for a batch that may not be used."""
    return tuple((8 if a == batch else a, 8 if b == batch else b, s) for a, b, s in build.CO_RUNS)


Fit = Callable[[tuple[str, ...], int | None], PerformanceModel]


def cheap(runs: Sequence[Config] | None = None, *, unseen: bool = False) -> Fit:
    """igniterd's model from a cheap profile, for each test pair with a prior of the others;
    ``unseen``: no co-run at all."""

    def fit(pair: tuple[str, ...], batch: int | None) -> PerformanceModel:
        chosen = () if unseen else (co_run_points(batch) if runs is None else runs)
        return SurfaceModel(build.profile(solo_points(batch), chosen), prior_without(pair, batch))

    return fit


def tested(
    fit: Fit, *, used: Sequence[Config] = (), by_batch: bool = False, level: float = LEVEL
) -> Errors:
    """Errors over every pair of models, and every batch held out in turn when ``by_batch``."""
    errors = Errors.none()
    for pair, batch in itertools.product(PAIRS, BATCHES if by_batch else (None,)):
        runs = [
            r
            for r in RUNS
            if pair_of(r) == pair
            and config(r) not in used
            and (batch is None or has_batch(r, batch))
        ]
        judge(fit(pair, batch), runs, errors, level)
    return errors


def whole_table(pair: tuple[str, ...], batch: int | None) -> PerformanceModel:
    return SurfaceModel(build.profile(None, co_run_points(batch)), prior_without(pair, batch))


def fifths() -> Iterator[tuple[tuple[CoRun, ...], tuple[CoRun, ...]]]:
    """(fitted, tested) co-runs, five times, drawn once with a fixed seed."""
    part = np.random.default_rng(1).permutation(np.arange(len(RUNS)) % 5)
    for k in range(5):
        yield (
            tuple(r for r, p in zip(RUNS, part, strict=True) if p != k),
            tuple(r for r, p in zip(RUNS, part, strict=True) if p == k),
        )


def whole_table_most_runs() -> Errors:
    errors = Errors.none()
    for fitted, left in fifths():
        profile = EVERYTHING.model_copy(update={"co_runs": fitted})
        prior = interference.estimate_prior(
            observations(
                profile, SurfaceModel(EVERYTHING.model_copy(update={"co_runs": ()}), BLANK)
            )
        )
        judge(SurfaceModel(profile, prior), left, errors)
    return errors


def nested() -> Errors:
    """The co-runs to measure chosen, for every pair, by what would have been best for the other
    pairs."""
    mirrored = [
        ((a, b, s), (b, a, 100 - s))
        for a in BATCHES
        for b in BATCHES
        if a < b
        for s in (20, 40, 50, 60, 80)
    ]
    found: dict[tuple[object, ...], Errors] = {}
    for chosen, pair in itertools.product(mirrored, PAIRS):
        found[chosen, pair] = Errors.none()
        runs = [r for r in RUNS if pair_of(r) == pair and config(r) not in chosen]
        judge(cheap(chosen)(pair, None), runs, found[chosen, pair])

    def cost(chosen: object, others: Sequence[object]) -> float:
        size = np.abs(np.concatenate([found[chosen, p].error for p in others]))
        return float(size.mean() + 0.3 * np.quantile(size, 0.95))

    total = Errors.none()
    for pair in PAIRS:
        best = found[min(mirrored, key=lambda c: cost(c, [p for p in PAIRS if p != pair])), pair]
        total.error += best.error
        total.held += best.held
        total.width += best.width
    return total


def stripped(profile: Profile) -> Profile:
    """``profile`` without L2 and DRAM use, power and clocks."""
    bare = {"l2_pct": None, "dram_pct": None, "power_w": None, "clock_mhz": None}
    models = {
        name: m.model_copy(
            update={
                "solo": tuple(p.model_copy(update=bare) for p in m.solo),
                "igniter": None,
                "gap_ms": None,
                "kernels": None,
            }
        )
        for name, m in profile.models.items()
    }
    plain = profile.board.model_copy(
        update={"copies": (), "max_clock_mhz": None, "power_limit_w": None, "idle_power_w": None}
    )
    return profile.model_copy(update={"models": models, "board": plain})


def nvml_only(pair: tuple[str, ...], batch: int | None) -> PerformanceModel:
    return SurfaceModel(
        stripped(build.profile(solo_points(batch), co_run_points(batch))),
        prior_without(pair, batch),
    )


def other_models_only(pair: tuple[str, ...], batch: int | None) -> PerformanceModel:
    """No co-run, and a prior mean from the one pair that has neither model; the spread is that of
    the pairs left by ``prior_without``."""
    rest = {MODELS.index(m) for m in MODELS if m not in pair}
    few = interference.estimate_prior(
        [o for o in SEEN[batch] if {o.victim, o.neighbours[0].model} == rest]
    )
    return SurfaceModel(
        build.profile(solo_points(batch), ()),
        Prior(few.mean, prior_without(pair, batch).covariance),
    )


def solo_accuracy() -> Errors:
    """Solo latencies that are not in the profile."""
    model, errors = load_model(build.profile(build.SOLO_POINTS, ())), Errors.none()
    for name, m in EVERYTHING.models.items():
        for p in m.solo:
            if (p.batch, round(100 * p.share)) not in build.SOLO_POINTS:
                (found,) = model.predict([Tenant(name, p.batch, p.share)], level=LEVEL)
                errors.add(found.latency_ms, p.latency_ms, found.upper_ms)
    return errors


# ---------------------------------------------------------------- gpu-lets+


def regression_rows(runs: Sequence[CoRun]) -> tuple[F64, F64, F64]:
    """Features (n, 5): one, own and neighbour's L2 and DRAM use; solo latency (n,) as measured;
    latency beside the neighbour (n,)."""
    solo = {(name, p.batch, p.share): p for name, m in EVERYTHING.models.items() for p in m.solo}
    features, alone, measured = [], [], []
    for run in runs:
        for me, other in itertools.permutations(run.tenants, 2):
            a, b = solo[me.model, me.batch, me.share], solo[other.model, other.batch, other.share]
            features.append(
                [1.0, *(float(x or 0) for x in (a.l2_pct, b.l2_pct, a.dram_pct, b.dram_pct))]
            )
            alone.append(a.latency_ms)
            measured.append(me.latency_ms)
    return np.array(features), np.array(alone), np.array(measured)


def regression(fitted: Sequence[CoRun], left: Sequence[CoRun], errors: Errors) -> None:
    """Linear slowdown on top of the whole measured solo table."""
    x, alone, measured = regression_rows(fitted)
    w = np.linalg.lstsq(x, measured / alone, rcond=None)[0]
    x, alone, measured = regression_rows(left)
    for predicted, m in zip(alone * (x @ w), measured, strict=True):
        errors.add(float(predicted), float(m), float(predicted))


def regression_split(*, by_pair: bool, by_batch: bool) -> Errors:
    errors = Errors.none()
    if not by_pair and not by_batch:
        for fitted, left in fifths():
            regression(fitted, left, errors)
        return errors
    for pair, batch in itertools.product(
        PAIRS if by_pair else (None,), BATCHES if by_batch else (None,)
    ):
        left = [
            r
            for r in RUNS
            if (pair is None or pair_of(r) == pair) and (batch is None or has_batch(r, batch))
        ]
        fitted = [
            r
            for r in RUNS
            if not (pair is not None and pair_of(r) == pair)
            and not (batch is not None and has_batch(r, batch))
        ]
        regression(fitted, left, errors)
    return errors


# ---------------------------------------------------------------- tables


def igniter(used: Sequence[Config], *, by_batch: bool) -> Errors:
    """The published model is fitted from batches 1, 16 and 32 alone and a copy of itself; the
    splits only choose what it is tested on."""
    fitted = load_model(build.profile(), "igniter")
    return tested(lambda _pair, _batch: fitted, used=used, by_batch=by_batch)


def main() -> None:
    print(
        f"V100, co-runs of four CNNs in pairs; bounds at {100 * LEVEL:g} %. under: predicted "
        "more than 5 % too low.\n"
    )
    used = tuple((int(a), int(b), float(s)) for a, b, s in build.CO_RUNS)
    splits = {
        "points": (False, False),
        "batch": (False, True),
        "pair": (True, False),
        "both": (True, True),
    }
    for split, (by_pair, by_batch) in splits.items():
        print(f"{split:42s}" + HEAD[42:])
        skip = used if split == "points" else ()
        show("  igniterd", tested(cheap(unseen=by_pair), used=skip, by_batch=by_batch), bound=True)
        show("  published (iGniter)", igniter(skip, by_batch=by_batch), bound=False)
        show(
            "  gpu-lets+ regression, whole solo table",
            regression_split(by_pair=by_pair, by_batch=by_batch),
            bound=False,
        )
    print(f"\n{'igniterd, variants (points)':42s}" + HEAD[42:])
    show("  no L2, DRAM, power or clock figures", tested(nvml_only, used=used), bound=True)
    show(
        "  one co-run a pair, not an ordered pair",
        tested(cheap([(4, 8, 50)]), used=[(4, 8, 50.0)]),
        bound=True,
    )
    show("  co-runs chosen on the other pairs", nested(), bound=True)
    show("  no co-runs; prior: pairs of the others", tested(cheap(unseen=True)), bound=True)
    show("  no co-runs; prior: models not in the pair", tested(other_models_only), bound=True)
    show("  whole solo table, the same co-runs", tested(whole_table, used=used), bound=True)
    show("  whole solo table, 4/5 of all co-runs", whole_table_most_runs(), bound=True)
    show("  alone: solo points not in the profile", solo_accuracy(), bound=True)
    print("\ncovered %, at a nominal" + "".join(f"{100 * level:10g}" for level in LEVELS))
    for name, (unseen, by_batch) in splits.items():
        found = [
            tested(
                cheap(unseen=unseen),
                used=used if name == "points" else (),
                by_batch=by_batch,
                level=level,
            ).held
            for level in LEVELS
        ]
        print(
            f"  {name:21s}" + "".join(f"{100 * np.mean(held):10.1f}" for held in found), flush=True
        )


if __name__ == "__main__":
    main()
