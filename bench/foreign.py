"""How right the performance model is on other people's measurements.

    python bench/foreign.py DATA_FOLDER [SET ...]

``DATA_FOLDER`` has a folder for each set (``bench/foreign_sets.py`` names them, their sources and
what is left out). A profile is made of the rows that ``igniterd profile`` would have measured, all
others are predicted. Beside igniterd's model: the time alone (what a planner blind to neighbours
takes), the time alone times one constant (the mean slowdown of the profile's co-runs), and alone
the published form, equation (11) of iGniter (Xu et al., TPDS 2023) fitted to the same points: some
of its fits have a pole, so that its median says more than its mean.

``…, never co-run``: each pair is predicted from a profile without its co-runs.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.foreign_sets import SETS, Case, Set, static_tails
from igniterd.arrays import F64
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel, observations
from igniterd.queueing.tail import SERVICE_CV

LEVEL = 0.95
HEAD = (
    f"{'':36s} {'n':>6s} {'mean %':>7s} {'median':>7s} {'p95 %':>7s} {'max %':>7s} "
    f"{'under %':>8s} {'covered %':>9s} {'bound %':>7s}"
)
PAIRS = ("pairs", "uncapped pairs, inf", "uncapped pairs, with train")
Predicts = Callable[[Case], tuple[float, float]]
"""Mean and upper bound (ms) of a case."""


def judged(name: str, cases: Iterable[Case], predicts: Predicts, *, bound: bool = True) -> None:
    """Print one line of errors: ``under`` are cases predicted more than 5 % too low."""
    found = np.array([(*predicts(case), case.ms) for case in cases]).reshape(-1, 3)
    if not len(found):
        return
    mean, upper, ms = found.T
    error = mean / ms - 1
    size = 100 * np.abs(error)
    held = f"{100 * np.mean(ms <= upper):9.1f} {100 * np.mean(upper / mean - 1):7.1f}"
    print(
        f"{name:36s} {len(size):6d} {size.mean():7.2f} {np.median(size):7.2f} "
        f"{np.quantile(size, 0.95):7.2f} {size.max():7.2f} {100 * np.mean(error < -0.05):8.1f} "
        f"{held if bound else '        -       -'}",
        flush=True,
    )


def of_model(model: SurfaceModel) -> Predicts:
    """igniterd's."""

    def predicts(case: Case) -> tuple[float, float]:
        found = model.predict(case.tenants, level=LEVEL)[0]
        return found.latency_ms, found.upper_ms

    return predicts


def blind(model: SurfaceModel, factor: float) -> Predicts:
    """Time alone times ``factor``, whoever is beside."""

    def predicts(case: Case) -> tuple[float, float]:
        ms = factor * model.predict(case.tenants[:1])[0].latency_ms
        return ms, ms

    return predicts


def published(found: Set) -> tuple[Predicts, int]:
    """Equation (11), unweighted least squares from ones; and for how many models it cannot be
    fitted."""

    def form(x: F64, *k: float) -> F64:
        return np.asarray((k[0] * x[0] ** 2 + k[1] * x[0] + k[2]) / (100 * x[1] + k[3]) + k[4])

    fits: dict[str, tuple[float, ...]] = {}
    for name, points in found.solo.items():
        at = np.array(list(points), dtype=np.float64).T
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizeWarning)
                k, _ = curve_fit(form, at, list(points.values()), p0=np.ones(5), maxfev=100_000)
        except (RuntimeError, TypeError):
            continue
        fits[name] = tuple(float(v) for v in k)

    def predicts(case: Case) -> tuple[float, float]:
        me = case.tenants[0]
        k = fits.get(me.model)
        ms = float("nan") if k is None else float(form(np.array([me.batch, me.share]), *k))
        return ms, ms

    return predicts, len(found.solo) - len(fits)


def never_co_run(profile: Profile, cases: Sequence[Case]) -> Predicts:
    """igniterd's, each pair from a profile without its co-runs."""
    models: dict[frozenset[str], SurfaceModel] = {}
    for pair in {frozenset(t.model for t in case.tenants) for case in cases}:
        kept = tuple(r for r in profile.co_runs if {t.model for t in r.tenants} != pair)
        models[pair] = SurfaceModel(profile.model_copy(update={"co_runs": kept}))
    return lambda case: of_model(models[frozenset(t.model for t in case.tenants)])(case)


def report(found: Set) -> None:
    """All tables of one set."""
    profile = found.profile()
    model, groups = SurfaceModel(profile), defaultdict[str, list[Case]](list)
    for case in found.cases:
        groups[case.group].append(case)
    runs = observations(profile, model)
    factor = 1 + float(np.mean([o.slowdown for o in runs])) if runs else 1.0
    form, unfitted = published(found)
    floored = [name for name in model.models if model.parts(name, 1, 1.0)[1] > 0]
    points = sum(len(p) for p in found.solo.values())
    print(f"\n{found.name}")
    print(
        f"{len(found.solo)} models, {points} solo points, {len(found.together)} co-runs in the "
        f"profile; a host floor is seen in {len(floored)}\n{HEAD}"
    )
    for group in sorted(groups):
        cases = groups[group]
        judged(group, cases, of_model(model))
        if len(cases[0].tenants) > 1:
            judged("  time alone", cases, blind(model, 1.0), bound=False)
            judged(f"  time alone x {factor:.3f}", cases, blind(model, factor), bound=False)
        else:
            fitted = [case for case in cases if form(case)[0] == form(case)[0]]
            left = f", {unfitted} models do not fit" if unfitted else ""
            judged(f"  published{left}", fitted, form, bound=False)
        if group in PAIRS:
            judged(f"{group}, never co-run", cases, never_co_run(profile, cases))


def main() -> None:
    if len(sys.argv) < 2:
        print("bench/foreign.py needs the folder of the sets: DATA_FOLDER (they are not shipped)")
        return
    folder, chosen = Path(sys.argv[1]), sys.argv[2:] or list(SETS)
    print(f"Errors of the mean, of the time measured; bounds at {100 * LEVEL:g} %.")
    for name in chosen:
        report(SETS[name](folder / name))
    tails = np.array(static_tails(folder / "triton-nvidia-examples"))
    if len(tails) and not sys.argv[2:]:
        cv = (np.median(tails) - 1) / NormalDist().inv_cdf(0.99)
        print(
            "\nStatic batches of one client, Triton alone on its GPU (NVIDIA's examples): P99 over"
            f"\nmean {np.median(tails):.3f} in the median of {len(tails)}, 90 % below "
            f"{np.quantile(tails, 0.9):.3f}: a dispersion of {cv:.3f}\n(taken where a profile "
            f"tells none: {SERVICE_CV:g})"
        )


if __name__ == "__main__":
    main()
