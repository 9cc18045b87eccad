"""All strategies side by side: GPUs, cost, gap to the lower bound, P99 misses in replay, planning
time.

    python bench/plan.py [--sizes 10 100 1000] [--arrivals poisson constant] [--strategies igniterd
                         igniter] [--seconds 300] [--replay-seed 1] [--growth]
    python bench/plan.py --levels 0.5 0.8 0.95 [--seeds 1 2 3] [--arrivals poisson constant]
    [--seconds 300]

The 12 workloads of the published evaluation and random sets; a random workload is one of those 12
with its SLO times 1 to 1.5 and its rate times 0.4 to 1 (uniform), so that every strategy can plan
it. Plans are replayed in virtual time against the measured tables (``igniterd simulate`` does the
same): the replay knows nothing of the models that made the plans, and no plan was tuned on its
seeds.

``bound``: what no plan can do without, by the strategy's own least shares without any neighbour;
``gap``: GPUs above it, rounded up; ``needed``: the shares the tenants need where the plan puts
them, added up; ``packed``: GPUs above that; ``unsplit``: what no plan can do without that splits
only workloads which fit no GPU, with what neighbours cost at least. ``missed``: workloads whose P99
in the replay is above their SLO. igniterd plans at the 95 % bound of service times; ``at 0.5`` at
their mean. Planning time is wall time and, over all threads, processor time; medians of the
repetitions. The replay is long because the P99 of a slow workload is told from few requests: in 30
s, noise alone makes misses of workloads that hold over 10 minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from statistics import median

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.bound.proof import prove
from igniterd.cli.simulate import replicas_of
from igniterd.lab.replay.boards import MeasuredBoard
from igniterd.lab.replay.replay import Arrivals, Kind, Replayed, replay
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.plan import ProvisionPlan
from igniterd.planner.problem import pose
from igniterd.planner.strategies import STRATEGIES, Request, Strategy, plan, prepare
from igniterd.planner.workloads import ARRIVALS, Workload, read_workloads

SET_SEED = 2023
GROWTH = (100, 1000, 10_000, 100_000)


def paper() -> list[Workload]:
    """The 12 workloads of the published evaluation (Table 3)."""
    return list(
        read_workloads(
            Path(str(resources.files("igniterd").joinpath("data", "v100", "workloads.csv")))
        )[0]
    )


def random_set(count: int, seed: int = SET_SEED) -> list[Workload]:
    """``count`` workloads like the published ones, none harder."""
    rng, base = np.random.default_rng((seed, count)), paper()
    chosen = [base[i] for i in rng.integers(0, len(base), count)]
    slo, rate = rng.uniform(1.0, 1.5, count), rng.uniform(0.4, 1.0, count)
    return [
        replace(
            w, name=f"R{i}", slo_p99_ms=w.slo_p99_ms * slo[i], rate_per_s=w.rate_per_s * rate[i]
        )
        for i, w in enumerate(chosen)
    ]


def timed(request: Request, strategy: Strategy, repetitions: int) -> tuple[ProvisionPlan, float]:
    """The plan with its time, and the processor time (s) it took."""
    prepare(request, strategy)
    wall, processor = [], []
    for _ in range(repetitions):
        start = time.perf_counter(), time.process_time()
        answer = plan(request, strategy)
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return answer.timed(median(wall)), median(processor)


def replayed(answer: ProvisionPlan, arrivals: str, seconds: float, seed: int) -> Replayed:
    """The plan against the measured tables."""
    gpus = replicas_of(answer)
    process = Arrivals(Kind.CONSTANT if arrivals == "constant" else Kind.POISSON)
    return replay(gpus, [MeasuredBoard()] * len(gpus), process, duration_s=seconds, seed=seed)


def unsplit(request: Request) -> float:
    """GPUs no plan can do without that splits only what fits no GPU; takes seconds."""
    problem = pose(request.workloads, request.gpus, request.arrival_scv, level=request.level)
    return prove(problem.tables, problem.whole, [1.0]).total


def row(*cells: object) -> str:
    widths = (10, 9, 10, 6, 8, 8, 7, 8, 7, 11, 10, 10)
    return " ".join(
        f"{cell!s:>{w}}" if i > 2 else f"{cell!s:<{w}}"
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )


def compare(
    gpu: GpuType,
    sizes: Sequence[int],
    arrivals: Sequence[str],
    strategies: Sequence[Strategy],
    seconds: float,
    seed: int,
) -> Iterator[str]:
    yield (
        row(
            "workloads",
            "arrivals",
            "strategy",
            "GPUs",
            "cost/h",
            "bound",
            "gap",
            "needed",
            "packed",
            "missed",
            "planning",
            "processor",
        )
        + "  unsplit"
    )
    for size in sizes:
        found = paper() if size == 12 else random_set(size)
        for process in arrivals:
            for strategy, level in [
                *((name, 0.95) for name in strategies),
                *([("igniterd", 0.5)] if size == 12 else []),
            ]:
                request = Request(found, (gpu,), ARRIVALS[process], level=level)
                answer, processor_s = timed(
                    request, strategy, 1 if size > 100 and strategy == "gslice+" else 3
                )
                count, needed = len(answer.gpus), answer.needed_gpus or math.nan
                short = len(replayed(answer, process, seconds, seed).missed)
                left = f"+{len(answer.infeasible)} not planned" if answer.infeasible else ""
                cost, bound = (
                    f"{answer.cost_per_hour or 0:.2f}",
                    f"{answer.lower_bound_gpus or 0:.2f}",
                )
                shares = f"{needed:.2f}", f"{count / math.ceil(needed - 1e-9) - 1:.1%}"
                result = (
                    f"{short} of {len(found)}",
                    f"{1e3 * answer.planning_s:.1f} ms",
                    f"{1e3 * processor_s:.1f} ms",
                )
                yield (
                    row(
                        size,
                        process,
                        strategy if level > 0.5 else "  at 0.5",
                        count,
                        cost,
                        bound,
                        f"{answer.gap or 0:.1%}",
                        *shares,
                        *result,
                    )
                    + (f"{unsplit(request):>9.2f}" if strategy == "igniterd" else "")
                    + left
                )


def growth(gpu: GpuType, sizes: Sequence[int]) -> Iterator[str]:
    """Planning time over the number of workloads: near linear when the processor time a workload
    stays the same."""
    yield row(
        "workloads",
        "arrivals",
        "strategy",
        "GPUs",
        "",
        "bound",
        "gap",
        "needed",
        "packed",
        "us/workload",
        "planning",
        "processor",
    )
    for strategy in ("igniter", "igniterd"):
        for size in sizes:
            answer, processor_s = timed(Request(random_set(size), (gpu,), 1.0), strategy, 1)
            count, needed = len(answer.gpus), answer.needed_gpus or math.nan
            each = f"{1e6 * processor_s / size:.0f}"
            bound, shares = (
                f"{answer.lower_bound_gpus or 0:.2f}",
                (f"{needed:.2f}", f"{count / math.ceil(needed - 1e-9) - 1:.1%}"),
            )
            yield row(
                size,
                "poisson",
                strategy,
                count,
                "",
                bound,
                f"{answer.gap or 0:.1%}",
                *shares,
                each,
                f"{answer.planning_s:.2f} s",
                f"{processor_s:.2f} s",
            )


def levels(
    gpu: GpuType,
    chosen: Sequence[float],
    seeds: Sequence[int],
    arrivals: Sequence[str],
    seconds: float,
) -> Iterator[str]:
    """What planning at a higher bound of service times costs in GPUs, and spares in misses: each
    plan replayed on three seeds."""
    yield "workloads arrivals level  GPUs       missed        worst P99/SLO"
    for name, sets in (("12", [paper()]), ("100", [random_set(100, seed) for seed in seeds])):
        for process in arrivals:
            for level in chosen:
                gpus, short, replays, worst = [], 0, 0, 0.0
                for found in sets:
                    answer = plan(Request(found, (gpu,), ARRIVALS[process], level=level))
                    gpus.append(len(answer.gpus))
                    for replay_seed in (1, 2, 3):
                        served = replayed(answer, process, seconds, replay_seed)
                        short, replays = short + len(served.missed), replays + len(served.workloads)
                        worst = max(worst, *(w.p99_ms / w.slo_p99_ms for w in served.workloads))
                counts = " ".join(map(str, gpus))
                yield (
                    f"{name:<9} {process:<8} {level:<6g} {counts:<10} {short:>4} of "
                    f"{replays:<6} {worst:.3f}"
                )


def machine() -> str:
    names = [
        x.split(":")[1].strip()
        for x in Path("/proc/cpuinfo").read_text().splitlines()
        if x.startswith("model name")
    ]
    processors = f"{len(os.sched_getaffinity(0))} processors"
    return (
        f"{(names or ['unknown CPU'])[0]}, {processors}, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 10, 100, 1000])
    parser.add_argument(
        "--arrivals", nargs="+", choices=sorted(ARRIVALS), default=["constant", "poisson"]
    )
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seconds", type=float, default=300.0, help="of replay")
    parser.add_argument("--replay-seed", type=int, default=1)
    parser.add_argument(
        "--growth", action="store_true", help="planning time up to 100,000 workloads instead"
    )
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        help="instead: GPUs and misses by the level of the bound of service times",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3],
        help="of the sets of 100 that --levels plans",
    )
    asked = parser.parse_args()
    gpu = parse_gpu("v100")
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    if asked.growth:
        lines = growth(gpu, GROWTH)
    elif asked.levels:
        lines = levels(gpu, asked.levels, asked.seeds, asked.arrivals, asked.seconds)
    else:
        lines = compare(
            gpu, asked.sizes, asked.arrivals, asked.strategies, asked.seconds, asked.replay_seed
        )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
