"""``igniterd plan``: how many GPUs, of which kind, who shares with whom, at what cost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from igniterd.cli.common import cannot

if TYPE_CHECKING:
    from igniterd.planner.records import ProvisionPlan

StrategyName = Literal["igniterd", "igniter", "ffd+", "ffd++", "gslice+", "gpu-lets+"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(name="plan")(plan)


def plan(
    workloads: Annotated[Path, typer.Argument(metavar="WORKLOADS", help="CSV or TOML: workload, model, slo_p99_ms, rate_per_s.")],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of GPU, NAME_OR_PROFILE[@PRICE_PER_HOUR[xMOST]]: v100, v100@2.48, t4.json@0.5x8. Repeat to mix.",
            show_default="v100",
        ),
    ] = None,
    strategy: Annotated[StrategyName, typer.Option(help="How to plan.")] = "igniterd",
    arrivals: Annotated[Literal["poisson", "constant"], typer.Option(help="Arrivals of workloads that name none.")] = "poisson",
    output: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print.")] = "table",
) -> None:
    """Plan the fewest GPUs that hold every P99: exit 1 when a workload cannot be planned, each named with its reason."""
    with cannot():
        answer = _answer(workloads, gpu or ["v100"], strategy, arrivals)
    _print(answer, output)
    for entry in answer.infeasible:
        print(f"igniterd plan: {entry.workload}: {entry.reason}", file=sys.stderr)
    if not answer.feasible:
        raise typer.Exit(1)


def _answer(path: Path, gpus: list[str], strategy: StrategyName, arrivals: str) -> ProvisionPlan:
    from igniterd.planner import strategies
    from igniterd.planner.exact import assess
    from igniterd.planner.gpus import parse_gpu
    from igniterd.planner.workloads import ARRIVALS, read_workloads

    found, rejected = read_workloads(path)
    request = strategies.Request(found, tuple(parse_gpu(text) for text in gpus), ARRIVALS[arrivals])
    strategies.prepare(request, strategy)
    start = time.perf_counter()
    answer = strategies.plan(request, strategy, rejected)
    answer = answer.timed(time.perf_counter() - start)
    return answer if strategy == "igniterd" else assess(answer, request.gpus, request.burstiness_by_name(), level=request.level)


def _print(answer: ProvisionPlan, output: str) -> None:
    if output == "json":
        print(json.dumps(answer.as_json(), indent=1, allow_nan=False))
        return
    from rich.console import Console

    from igniterd.planner.render import plan_table

    console = Console()
    console.width = max(console.width, 116)
    console.print(plan_table(answer))
