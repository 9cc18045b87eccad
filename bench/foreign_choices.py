"""What the performance model's constants were chosen by, on other people's measurements.

    python bench/foreign_choices.py DATA_FOLDER

``DATA_FOLDER`` as for ``bench/foreign.py``. Errors of the mean, in per cent of the time measured.

Pooling (``perf/pooling.py``): what it gains in log likelihood, and capped pairs of KACE (V100) from
a profile without the co-runs of their victim, or of their neighbour; the pairs of gpu-lets (A100).
Adding (``COMPANY``, ``ADDING_SD``): uncapped triples of KACE; the values that all but one victim,
neighbour or batch choose, and what these make of the one that was left out; what their pairs, as
measured, make together. The host (``BEHIND_HOST``): points alone on the A100s.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.foreign import of_model
from bench.foreign_sets import SETS, Case, Set
from igniterd.arrays import F64
from igniterd.perf import builtin_profile, interference, trend
from igniterd.perf.api import Tenant
from igniterd.perf.kernels import bound
from igniterd.perf.kernels.mean import COMPANY, company
from igniterd.perf.pooling import Pooled
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel

KACE, GPULETS, PARVAGPU = "v100-mps-kace", "a100-mps-gpulet", "a100-mig-parvagpu"
VALUES = (0.0, 0.125, 0.25, 0.375, 0.5)
APART, POOLED = np.inf, -np.inf
TRIPLES = ("uncapped triples, inf", "uncapped triples, with train")


def errors(model: SurfaceModel, cases: Sequence[Case]) -> F64:
    """Relative error of each mean."""
    predicts = of_model(model)
    return np.array([predicts(case)[0] / case.ms - 1 for case in cases])


def percent(found: F64) -> str:
    return f"{100 * np.abs(found).mean():.2f}"


# ---------------------------------------------------------------- pooling


def gain(profile: Profile) -> float:
    """What pooling gains on a profile's co-runs."""
    told: list[float] = []

    class Spy(Pooled):
        @property
        def gain(self) -> float:
            told.append(super().gain)
            return told[-1]

    with patch.object(interference, "Pooled", Spy):
        SurfaceModel(profile)
    return told[0]


def left_out(found: Set, place: int) -> dict[str, dict[str, F64]]:
    """Errors of capped pairs by group, pooled and apart, from profiles without the co-runs of their
    victim (``place`` 0) or of their neighbour (1)."""
    profile = found.profile()
    cases = [case for case in found.cases if case.group.startswith("capped pairs")]
    errs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted({case.tenants[place].model for case in cases}):
        kept = tuple(r for r in profile.co_runs if all(t.model != name for t in r.tenants))
        without = profile.model_copy(update={"co_runs": kept})
        mine = [case for case in cases if case.tenants[place].model == name]
        for how, least in (("apart", APART), ("pooled", POOLED)):
            with patch.object(interference, "DECISIVE", least):
                model = SurfaceModel(without)
            for case, error in zip(mine, errors(model, mine), strict=True):
                errs[how][case.group].append(error)
    return {how: {g: np.array(e) for g, e in each.items()} for how, each in errs.items()}


def report_pooling(kace: Set, gpulets: Set) -> None:
    profiles = {
        "KACE": kace.profile(),
        "gpu-lets": gpulets.profile(),
        "shipped V100": builtin_profile("v100"),
    }
    gains = "; ".join(f"{name} {gain(profile):.0f}" for name, profile in profiles.items())
    print(f"\nPooling gains (log likelihood): {gains}")
    for place, who in enumerate(("victim", "neighbour")):
        print(f"capped pairs without the co-runs of their {who}")
        for how, groups in left_out(kace, place).items():
            said = "; ".join(f"{g.partition(', ')[2]} {percent(groups[g])}" for g in sorted(groups))
            print(f"  {how:7s} {said}")
    print("gpu-lets")
    for how, least in (("apart", APART), ("pooled", POOLED)):
        with patch.object(interference, "DECISIVE", least):
            model = SurfaceModel(profiles["gpu-lets"])
        of = {
            group: percent(errors(model, [c for c in gpulets.cases if c.group == group]))
            for group in ("pairs", "vgg19 to batch 8")
        }
        print(f"  {how:7s} {'; '.join(f'{group} {error}' for group, error in of.items())}")


# ---------------------------------------------------------------- adding

Of = Callable[[Tenant, Tenant], float | None]
"""What one neighbour alone slows a victim by."""


def added(each: Sequence[float], value: float) -> float:
    """What neighbours cost together that cost ``each`` alone, with another ``COMPANY``."""
    total = sum(each)
    return total + value / COMPANY * float(company(total, sum(e * e for e in each)))


def as_predicted(model: SurfaceModel) -> Of:
    def of(me: Tenant, other: Tenant) -> float:
        alone = model.predict([me])[0].latency_ms
        return model.predict([me, other])[0].latency_ms / alone - 1

    return of


def as_measured(found: Set, model: SurfaceModel) -> Of:
    """``None`` where the pair was never measured at these batches."""
    seen: dict[tuple[Tenant, Tenant], list[float]] = defaultdict(list)
    for case in found.cases:
        if case.group.startswith("uncapped pairs"):
            seen[case.tenants[0], case.tenants[1]].append(case.ms)
    for run in found.together:
        if len(run) == 2:
            for (me, ms), (other, _) in (run, run[::-1]):
                if ms is not None:
                    seen[me, other].append(ms)

    def of(me: Tenant, other: Tenant) -> float | None:
        times = seen.get((me, other))
        alone = model.predict([me])[0].latency_ms
        return None if times is None else float(np.mean(times)) / alone - 1

    return of


def parts(cases: Sequence[Case], of: Of) -> list[tuple[Case, list[float]]]:
    """The cases of which every pair is known, with what each neighbour costs."""
    found = []
    for case in cases:
        each = [of(case.tenants[0], other) for other in case.tenants[1:]]
        known = [max(e, 0.0) for e in each if e is not None]
        if len(known) == len(each):
            found.append((case, known))
    return found


def off(model: SurfaceModel, told: Sequence[tuple[Case, list[float]]], value: float) -> F64:
    """Relative errors of the times."""
    alone = [model.predict(case.tenants[:1])[0].latency_ms for case, _ in told]
    return np.array(
        [ms * (1 + added(e, value)) / c.ms - 1 for ms, (c, e) in zip(alone, told, strict=True)]
    )


def report_adding(found: Set) -> None:
    model = SurfaceModel(found.profile())
    cases = [case for case in found.cases if case.group in TRIPLES]
    told = parts(cases, as_predicted(model))
    size = np.abs([off(model, told, value) for value in VALUES])
    print(f"\nUncapped triples, {len(cases)}: error by COMPANY {VALUES}")
    print("  median", *(f"{100 * e:.1f}" for e in np.median(size, axis=1)))
    print("  mean  ", *(f"{100 * e:.1f}" for e in size.mean(axis=1)))
    keys: dict[str, Callable[[Case], set[object]]] = {
        "victim": lambda case: {case.tenants[0].model},
        "neighbour": lambda case: {t.model for t in case.tenants[1:]},
        "batch": lambda case: {case.tenants[0].batch},
    }
    for what, key in keys.items():
        print(f"  without one {what}: {chosen(size, [key(case) for case in cases])}")
    measured = as_measured(found, model)
    for group in TRIPLES:
        pairs = parts([case for case in cases if case.group == group], measured)
        summed, more = (percent(off(model, pairs, value)) for value in (0.0, COMPANY))
        print(
            f"  pairs as measured, {group.partition(', ')[2]}, {len(pairs)}: summed {summed}, with "
            f"COMPANY {COMPANY} {more}"
        )
    print(f"  what all but the worst are off by: {spread(model, parts(cases, measured)):.2f}")
    print(f"  (ADDING_SD is {bound.ADDING_SD})")


def chosen(size: F64, keys: Sequence[set[object]]) -> str:
    """The values that the rest choose, by median and by mean, and the median of what is left
    out."""
    by_median, by_mean, without, with_none = set(), set(), [], []
    for key in sorted(set().union(*keys), key=str):
        out = np.array([key in each for each in keys])
        if out.all():
            continue
        best = int(np.median(size[:, ~out], axis=1).argmin())
        by_median.add(VALUES[best])
        by_mean.add(VALUES[int(size[:, ~out].mean(axis=1).argmin())])
        without.append(size[best, out])
        with_none.append(size[0, out])
    medians = [100 * float(np.median(np.concatenate(each))) for each in (without, with_none)]
    return (
        f"by median {sorted(by_median)}, by mean {sorted(by_mean)}; left out, median "
        f"{medians[0]:.1f} (with 0 {medians[1]:.1f})"
    )


def spread(model: SurfaceModel, told: Sequence[tuple[Case, list[float]]]) -> float:
    """Standard deviation, from the quartiles, of what triples miss over what all neighbours but the
    worst cost."""
    missed = []
    for case, each in told:
        rest = sum(each) - max(each)
        slow = case.ms / model.predict(case.tenants[:1])[0].latency_ms - 1
        if rest > 0:
            missed.append((slow - added(each, COMPANY)) / rest)
    low, high = np.quantile(missed, [0.25, 0.75])
    return float(high - low) / 1.349


# ---------------------------------------------------------------- the host


def report_host(sets: Sequence[Set]) -> None:
    print("\nPoints alone, where the host hides small batches: k2 starts from so much of k1")
    for found in sets:
        cases = [case for case in found.cases if case.group == "alone"]
        said = []
        for k2 in (0.2, 0.7, 1.0, 1.5):
            with patch.object(trend, "BEHIND_HOST", np.array([1.0, k2, *trend.BEHIND_HOST[2:]])):
                said.append(f"{k2} {percent(errors(SurfaceModel(found.profile()), cases))}")
        print(f"  {found.name}: {'; '.join(said)}")


def main() -> None:
    if len(sys.argv) < 2:
        print("bench/foreign_choices.py needs the folder of the sets: DATA_FOLDER")
        return
    kace, gpulets, parvagpu = (
        SETS[name](Path(sys.argv[1]) / name) for name in (KACE, GPULETS, PARVAGPU)
    )
    report_pooling(kace, gpulets)
    report_adding(kace)
    report_host([gpulets, parvagpu])


if __name__ == "__main__":
    main()
