"""GPUs by set of workloads, arrival process, level and strategy: the golden table of the planner.

    python -m tests.planner.golden          # rewrites tests/golden/plans.json

A pass of the planner that buys GPUs on one of these sets cannot be lost unseen. Rewrite the table
when a change of the counts is meant, and say in the commit why each one changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.plan import paper, random_set
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.strategies import STRATEGIES, Request, Strategy, plan
from igniterd.planner.workloads import ARRIVALS

FILE = Path(__file__).parents[1] / "golden" / "plans.json"
MEAN, UPPER = 0.5, 0.95
"""Levels of the bound of service times at which igniterd plans."""


@dataclass(frozen=True, slots=True)
class Case:
    """One plan. ``seed`` is of the random set; sets of 12 are the published one."""

    size: int
    arrivals: str
    strategy: Strategy
    level: float = UPPER
    seed: int = 0

    @property
    def name(self) -> str:
        """The key of the table."""
        drawn = "" if self.size == 12 else f" (seed {self.seed})"
        level = f" at {self.level:g}" if self.strategy == "igniterd" else ""
        return f"{self.size}{drawn} {self.arrivals}: {self.strategy}{level}"


def cases() -> Iterator[Case]:
    """All plans of the table; about half a minute of one core."""
    for arrivals in ("constant", "poisson"):
        for strategy in STRATEGIES:
            if strategy != "igniterd":
                yield Case(12, arrivals, strategy)
                yield Case(100, arrivals, strategy, seed=1)
        for level in (MEAN, UPPER):
            yield Case(12, arrivals, "igniterd", level)
            yield Case(100, arrivals, "igniterd", level, seed=1)
    yield Case(40, "constant", "igniterd", MEAN, seed=1)
    yield Case(40, "poisson", "igniterd", MEAN, seed=1)
    yield Case(40, "poisson", "igniterd", UPPER, seed=1)
    yield Case(40, "poisson", "igniterd", UPPER, seed=3)
    yield Case(300, "constant", "igniterd", UPPER, seed=1)  # calibrate and consolidate count here


def count_gpus(case: Case, gpu: GpuType) -> dict[str, int]:
    """GPUs the plan takes, and workloads it leaves out."""
    workloads = paper() if case.size == 12 else random_set(case.size, case.seed)
    request = Request(workloads, (gpu,), ARRIVALS[case.arrivals], level=case.level)
    answer = plan(request, case.strategy)
    return {"gpus": len(answer.gpus), "infeasible": len(answer.infeasible)}


def main() -> None:
    gpu = parse_gpu("v100")
    table = {case.name: count_gpus(case, gpu) for case in cases()}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    FILE.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
