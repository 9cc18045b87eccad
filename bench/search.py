"""The joint search against an earlier, slower one that asked the exact queue at every step: the
same GPUs, verdicts and head-room.

    python bench/search.py [--show]

``results/searches.json`` has 60 random GPUs of 2 to 12 tenants (drawn once, by ``--draw``, from a
fixed seed) and what the earlier search answered. Both plans are judged by the exact model: ``room``
is the growth of all rates up to which every SLO holds, by bisection. Time is CPU time with nothing
remembered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.decide.search import GpuPlan, find
from igniterd.perf import PerformanceModel, builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation

FILE = Path(__file__).parent / "results" / "searches.json"
CASES = 60
LEVEL = 0.95
MOST_ROOM = 6.0


def drawn(model: PerformanceModel, random: np.random.Generator) -> list[dict[str, Any]]:
    """One GPU: SLOs of 3 to 15 times the latency on a fair share, rates of about what fits."""
    count = int(random.integers(2, 13))
    load = random.uniform(0.08, 0.6)
    out: list[dict[str, Any]] = []
    for i, part in enumerate(random.dirichlet(np.full(count, 2.0))):
        name = model.models[int(random.integers(len(model.models)))]
        curve = model.service_curve_ms(name, max(0.05, min(1.0, float(part))), (), 8)[0]
        slo_ms = float(curve[0] * random.uniform(3, 15))
        out.append(
            {
                "model": f"{name}-{i}",
                "profiled_as": name,
                "rate_per_s": round(float(load * 4000 / curve[3] * random.uniform(0.5, 1.2)), 2),
                "slo_ms": round(slo_ms, 1),
                "priority": int(random.integers(1, 4)),
                "arrival_scv": float(random.choice([1.0, 1.0, 1.0, 2.0, 6.0])),
                "bias": round(float(random.uniform(0.95, 1.15)), 3),
            }
        )
    return out


def demands_of(case: Mapping[str, Any]) -> list[Demand]:
    return [Demand(**tenant) for tenant in case["tenants"]]


def room(
    predictor: LatencyPredictor,
    demands: list[Demand],
    allocations: Mapping[str, Allocation],
    kept: frozenset[str],
) -> float:
    """Growth of all rates up to which the kept models' SLOs hold, to 0.5 % (those let go run as
    they do); 0 where they do not now."""

    def holds(growth: float) -> bool:
        served = predictor.together(demands, allocations, growth=growth)
        return all(served[d.model].p99_ms <= d.slo_ms * 1.0001 for d in demands if d.model in kept)

    if not kept or not holds(1.0):
        return 0.0
    low, high = 1.0, MOST_ROOM
    while high > low * 1.005:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def answer(model: PerformanceModel, case: Mapping[str, Any]) -> dict[str, Any]:
    demands = demands_of(case)
    began = time.process_time()
    found: GpuPlan = find(LatencyPredictor(model, level=LEVEL), demands)
    took = time.process_time() - began
    return {
        "kept": sorted(found.kept),
        "headroom": found.headroom,
        "least_share": round(found.least_share, 4),
        "delays": sum(a.max_queue_delay_us > 0 for a in found.allocations.values()),
        "room": round(
            room(LatencyPredictor(model, level=LEVEL), demands, found.allocations, found.kept), 3
        ),
        "ms": round(1e3 * took, 1),
    }


def draw() -> None:
    model = load_model(builtin_profile("v100"))
    random = np.random.default_rng(20260)
    find(
        LatencyPredictor(model, level=LEVEL), demands_of({"tenants": drawn(model, random)})
    )  # compile
    cases = [{"tenants": drawn(model, random)} for _ in range(CASES)]
    lines = (json.dumps({**case, "before": answer(model, case)}) for case in cases)
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def report(cases: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    before = [case["before"] for case in cases]
    tenants = [len(case["tenants"]) for case in cases]
    kept = [np.array([len(a["kept"]) for a in answers]) for answers in (before, now)]
    print(
        f"{len(cases)} GPUs, {sum(tenants)} tenants; all tenants kept on: before "
        f"{sum(kept[0] == tenants)}, now {sum(kept[1] == tenants)}"
    )
    print(
        f"tenants kept: before {kept[0].sum()}, now {kept[1].sum()}; fewer than before on "
        f"{sum(kept[1] < kept[0])} GPUs"
    )
    whole = [
        (b, n)
        for b, n, count in zip(before, now, tenants, strict=True)
        if len(b["kept"]) == len(n["kept"]) == count
    ]
    for label, key in (
        ("head-room it says", "headroom"),
        ("head-room as judged", "room"),
        ("share needed", "least_share"),
    ):
        ratio = np.array([n[key] / b[key] for b, n in whole])
        print(
            f"{label}, now / before, all kept: mean {ratio.mean():.3f}, least {ratio.min():.3f}, "
            f"most {ratio.max():.3f}"
        )
    missing = [
        sum(a["room"] == 0 and bool(a["kept"]) for a in answers) for answers in (before, now)
    ]
    delayed = sum(a["delays"] > 0 for a in before)
    print(
        f"plans that miss as judged: before {missing[0]}, now {missing[1]}; plans with a queue "
        f"delay before: {delayed}"
    )
    ms = np.array([[a["ms"] for a in answers] for answers in (before, now)])
    print(
        f"CPU ms a search: before mean {ms[0].mean():.0f}, most {ms[0].max():.0f}; now mean "
        f"{ms[1].mean():.0f}, most {ms[1].max():.0f}"
    )


def line(answer: Mapping[str, Any]) -> str:
    return (
        f"{len(answer['kept']):>5} {answer['headroom']:>9} {answer['least_share']:>6} "
        f"{answer['room']:>6} {answer['ms']:>6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="draw the GPUs anew and take the present search for the earlier one",
    )
    parser.add_argument("--show", action="store_true", help="one line a GPU")
    arguments = parser.parse_args()
    if arguments.draw:
        draw()
    model = load_model(builtin_profile("v100"))
    cases = json.loads(FILE.read_text())
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    answer(model, cases[0])  # compile
    now = [answer(model, case) for case in cases]
    if arguments.show:
        print("tenants |" + 2 * "  kept head-room  share   room     ms |")
        for case, found in zip(cases, now, strict=True):
            print(f"{len(case['tenants']):>7} |{line(case['before'])} |{line(found)} |")
    report(cases, now)


if __name__ == "__main__":
    main()
