"""Plans of repeated workloads against what is possible: GPUs, the linear program's bound, misses.

    python bench/patterns.py [--sets 21 22 23 24] [--types 15] [--copies 40] [--seconds 300]
                             [--arrivals poisson constant] [--paper] [--large]

A set is ``--types`` random workloads (``bench/plan.py``, one seed a set), ``--copies`` of each;
``--paper``: also 83 copies of the 12 published ones; ``--large``: instead 1000 copies of 100 types.

``bound``: no mix of patterns that the tables admit costs less, for the cuts offered; ``above``:
GPUs over it, rounded up. ``optimum``: the integer program over patterns that were evaluated and
hold, with ten times the work; ``packed``: the same workloads without
patterns; ``even``: with equal parts only. ``missed``: workloads whose P99 in the replay, in virtual
time against the measured tables, is above their SLO. Planning time is wall time, once, compiled.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.plan import machine, paper, random_set, replayed
from bench.plan_passes import Patch, switched_off
from igniterd.lab.gpu.truth import Truth
from igniterd.perf import load_model
from igniterd.planner import column_generation
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.plan import ProvisionPlan
from igniterd.planner.single_type import plan_igniterd
from igniterd.planner.strategies import Request, plan, prepare
from igniterd.planner.workloads import ARRIVALS, Workload


def repeated(base: Sequence[Workload], copies: int) -> list[Workload]:
    """So many of each, under names of their own."""
    return [replace(w, name=f"{w.name}.{n}") for w in base for n in range(copies)]


THOROUGH: list[Patch] = [(column_generation, "_WORK", 40_000)]
"""Ten times the work."""


def planned(request: Request) -> tuple[ProvisionPlan, float]:
    """The plan, and the seconds it took."""
    prepare(request, "igniterd")
    began_s = time.perf_counter()
    answer = plan(request)
    return answer, time.perf_counter() - began_s


def rows(
    gpu: GpuType, sets: dict[str, list[Workload]], arrivals: Sequence[str], seconds: float
) -> Iterator[str]:
    yield (
        f"{'set':<13}{'arrivals':<10}{'GPUs':>6}{'bound':>9}{'above':>7}{'optimum':>9}"
        f"{'packed':>8}{'even':>6}{'missed':>14}{'planning':>10}"
    )
    for name, found in sets.items():
        for process in arrivals:
            scv = ARRIVALS[process]
            answer, took_s = planned(Request(found, (gpu,), scv))
            even, _ = planned(Request(found, (gpu,), scv, even_splits=True))
            with switched_off(THOROUGH):
                best, _ = planned(Request(found, (gpu,), scv))
            packed = plan_igniterd(found, (gpu,), scv)
            late = replayed(answer, process, seconds, 1).missed
            bound = max(answer.lower_bound_gpus or 0.0, 1.0)
            above = len(answer.gpus) / math.ceil(bound - 1e-9) - 1.0
            yield (
                f"{name:<13}{process:<10}{len(answer.gpus):>6}{bound:>9.2f}{above:>7.1%}"
                f"{len(best.gpus):>9}{len(packed.gpus):>8}{len(even.gpus):>6}"
                f"{f'{len(late)} of {len(found)}':>14}{took_s:>8.2f} s"
            )
            yield from misses(answer, {each.workload for each in late}, gpu)


def misses(answer: ProvisionPlan, late: set[str], gpu: GpuType) -> Iterator[str]:
    """What the workloads that miss are: how long their largest batch takes alone, as the model has
    it and on the board of the replay."""
    model, board = load_model(gpu.profile), Truth.v100()
    seats = (seat for each in answer.gpus for seat in each.tenants if seat.workload in late)
    for (name, share, batch), times in sorted(
        Counter((seat.model, seat.share, seat.max_batch_size) for seat in seats).items()
    ):
        mean_ms = model.service_curve_ms(name, share, (), batch)[0][-1]
        yield (
            f"  of those missed, {times} x {name} on {share:.1%}: a batch of {batch} alone takes "
            f"{mean_ms:.2f} ms as predicted, {board.solo_ms(name, batch, share):.2f} on the board"
        )


def large(gpu: GpuType, arrivals: Sequence[str]) -> Iterator[str]:
    """1000 copies of 100 types."""
    found = repeated(random_set(100, 3), 1000)
    yield f"{'workloads':<12}{'arrivals':<10}{'GPUs':>7}{'bound':>10}{'planning':>10}"
    for process in arrivals:
        answer, took_s = planned(Request(found, (gpu,), ARRIVALS[process]))
        yield (
            f"{len(found):<12}{process:<10}{len(answer.gpus):>7}"
            f"{answer.lower_bound_gpus or 0.0:>10.2f}{took_s:>8.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, nargs="*", default=[21, 22, 23, 24])
    parser.add_argument("--types", type=int, default=15)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument(
        "--arrivals", nargs="+", choices=sorted(ARRIVALS), default=["constant", "poisson"]
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="of replay")
    parser.add_argument("--paper", action="store_true", help="the 12 published workloads too")
    parser.add_argument("--large", action="store_true", help="1000 copies of 100 types instead")
    asked = parser.parse_args()
    gpu = parse_gpu("v100")
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    sets = {"12 x 83": repeated(paper(), 83)} if asked.paper else {}
    for seed in asked.sets:
        name = f"{asked.types} x {asked.copies} ({seed})"
        sets[name] = repeated(random_set(asked.types, seed), asked.copies)
    lines = (
        large(gpu, asked.arrivals)
        if asked.large
        else rows(gpu, sets, asked.arrivals, asked.seconds)
    )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
