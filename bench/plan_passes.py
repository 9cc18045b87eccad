"""What each pass of the planner buys: GPUs with it and without it, over the same sets.

    python bench/plan_passes.py [--large]

A pass is switched off by putting a function that does nothing in its place. The sets: the 12
published workloads (seeds 0 to 5 added up), three random sets of 40 and two of 100, each with
constant and Poisson arrivals, and with --large two of 1000. Time is processor time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.plan import paper, random_set
from igniterd.planner import fill, single_type
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.strategies import Request, plan, prepare

Patch = tuple[Any, str, Any]
"""Module, name in it, what takes its place."""

VARIANTS: dict[str, list[Patch]] = {
    "as it is": [],
    "one seed": [(single_type, "TRIED", 1)],
    "without calibrate": [(single_type, "calibrate", lambda *_, **__: None)],
    "without consolidate": [(single_type, "consolidate", lambda placed, *_: placed)],
    "without local search": [(fill, "drop_gpus", lambda problem, solver, groups, seed: groups)],
}


@contextmanager
def switched_off(patches: Sequence[Patch]) -> Iterator[None]:
    """With these functions replaced."""
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def requests(gpu: GpuType, *, large: bool) -> dict[str, list[Request]]:
    """The sets, by the column they are added up in."""
    columns: dict[str, list[Request]] = {}
    for letter, arrival_scv in (("c", 0.0), ("p", 1.0)):
        for level in (0.5, 0.95):
            columns[f"12{letter} {level}"] = [
                Request(paper(), (gpu,), arrival_scv, level=level, seed=seed) for seed in range(6)
            ]
        for size, seeds in ((40, 3), (100, 2)):
            columns[f"{size}{letter}"] = [
                Request(random_set(size, seed), (gpu,), arrival_scv, seed=seed)
                for seed in range(1, seeds + 1)
            ]
        if large:
            columns[f"1000{letter}"] = [Request(random_set(1000), (gpu,), arrival_scv)]
    return columns


def measure(columns: dict[str, list[Request]]) -> tuple[list[str], float]:
    """GPUs by column, and processor time (s)."""
    start = time.process_time()
    counts = [[len(plan(request).gpus) for request in column] for column in columns.values()]
    spent = time.process_time() - start
    cells = ["".join(map(str, c)) if len(c) == 6 else str(sum(c)) for c in counts]
    return [*cells, str(sum(map(sum, counts)))], spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="also two sets of 1000")
    asked = parser.parse_args()
    gpu = parse_gpu("v100")
    columns = requests(gpu, large=asked.large)
    prepare(next(iter(columns.values()))[0], "igniterd")
    line: Callable[[Sequence[object]], str] = lambda cells: " ".join(f"{c!s:>9}" for c in cells)  # noqa: E731
    print(f"{'':36}", line([*columns, "all", "s"]))
    for name, patches in VARIANTS.items():
        with switched_off(patches):
            counts, spent = measure(columns)
        print(f"{name:36}", line([*counts, f"{spent:.1f}"]), flush=True)


if __name__ == "__main__":
    main()
