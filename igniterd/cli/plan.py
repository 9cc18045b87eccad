"""``igniterd plan``: how many GPUs, of which kind, who shares with whom, at what cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from igniterd.cli.common import cannot, shown
from igniterd.cli.wording import finite, given, picture_path
from igniterd.errors import ConfigError

if TYPE_CHECKING:
    from igniterd.cli.plan_sweep import Sweep
    from igniterd.planner.plan import ProvisionPlan
    from igniterd.planner.strategies import Request
    from igniterd.planner.workloads import Infeasible

StrategyName = Literal["igniterd", "igniter", "ffd+", "ffd++", "gslice+", "gpu-lets+"]
Points = list[tuple[float, "ProvisionPlan"]]


_PATIENCE_S = 2.0


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(name="plan", short_help="The fewest GPUs that hold every P99, and their cost.")(
        plan
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """What is asked, read and checked."""

    request: Request
    strategy: StrategyName
    rejected: tuple[Infeasible, ...]
    sweep: Sweep | None


def plan(
    workloads: Annotated[
        Path,
        typer.Argument(
            metavar="WORKLOADS",
            help="CSV or .toml: workload, model, slo_p99_ms, rate_per_s[, burstiness]; - is "
            "standard input.",
        ),
    ],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU",
            help="A kind of GPU, NAME_OR_PROFILE[@PRICE_PER_HOUR[xMOST]]: v100, v100@2.48, "
            "t4.json@0.5x8; repeatable.",
            show_default="v100",
        ),
    ] = None,
    strategy: Annotated[StrategyName, typer.Option(help="How to plan.")] = "igniterd",
    arrivals: Annotated[
        Literal["poisson", "constant"], typer.Option(help="Arrivals of workloads that name none.")
    ] = "poisson",
    burstiness: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            callback=finite,
            help="Instead of --arrivals: squared coefficient of variation of the gaps between "
            "requests.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PLAN.json", help="Start from this running plan and move little."
        ),
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option(min=0, help="With --from: move at most so many tenants.")
    ] = None,
    even_splits: Annotated[
        bool,
        typer.Option(
            "--even-splits",
            help="Cut workloads into equal parts only, for balancers that know no weights.",
        ),
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT=LOW..HIGH[:N]",
            help="What if: rate=0.5..3 or slo=0.8..2, factors; N points.",
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the upper bound of service times.")
    ] = 0.95,
    seed: Annotated[
        int, typer.Option(help="Of the search's random choices; the same seed gives the same plan.")
    ] = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also draw the plan, or the sweep, into this file (png, svg, pdf)."
        ),
    ] = None,
    emit: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write what every GPU host needs into this new folder."
        ),
    ] = None,
    output: Annotated[
        Literal["table", "json"], typer.Option("--format", help="How to print.")
    ] = "table",
) -> None:
    """Plan the fewest GPUs that hold every P99: exit 1 when a workload cannot be planned, each
    named with its reason."""
    if max_moves is not None and start is None:
        raise typer.BadParameter(
            "needs --from PLAN.json, the plan the moves are counted from", param_hint="--max-moves"
        )
    if sweep is not None and (start is not None or emit is not None):
        raise typer.BadParameter("cannot go with --from or --emit", param_hint="--sweep")
    with cannot(), _named_by_option():
        picture_path("--plot", plot, ".png", ".svg", ".pdf")
        if emit is not None:
            from igniterd.cli.plan_emit import new_folder

            new_folder(emit)
        task = _task(
            workloads,
            gpu or ["v100"],
            strategy,
            _process(arrivals, burstiness),
            (start, max_moves),
            sweep,
            (level, seed),
            even_splits,
        )
        feasible = (
            _run_sweep(task, output, plot) if task.sweep else _run_plan(task, output, plot, emit)
        )
    if not feasible:
        raise typer.Exit(1)


@contextmanager
def _named_by_option() -> Iterator[None]:
    """Name what the planner refuses by the option that gave it."""
    try:
        yield
    except ConfigError as error:
        for words, option in (
            ("GPU", "--gpu"),
            ("running plan", "--from"),
            ("even splits", "--even-splits"),
        ):
            if error.source == words or error.source.startswith(f"{words} "):
                source = option + error.source.removeprefix(words)
                raise ConfigError(source, error.problems) from error
        raise


def _process(arrivals: str, burstiness: float | None) -> float:
    from igniterd.planner.workloads import ARRIVALS

    return ARRIVALS[arrivals] if burstiness is None else burstiness


def _task(
    path: Path,
    gpus: list[str],
    strategy: StrategyName,
    burstiness: float,
    running: tuple[Path | None, int | None],
    sweep: str | None,
    how: tuple[float, int],
    even_splits: bool,
) -> _Task:
    from igniterd.cli.plan_sweep import parse_sweep
    from igniterd.planner.gpu_types import parse_gpu
    from igniterd.planner.plan import read_plan
    from igniterd.planner.strategies import Request
    from igniterd.planner.workloads import read_workloads

    found, rejected = read_workloads(given(path))
    start = read_plan(running[0]) if running[0] is not None else None
    kinds = tuple(parse_gpu(text) for text in gpus)
    request = Request(
        found,
        kinds,
        burstiness,
        level=how[0],
        seed=how[1],
        start=start,
        max_moves=running[1],
        even_splits=even_splits,
    )
    return _Task(request, strategy, rejected, parse_sweep(sweep) if sweep is not None else None)


def _plan_timed(task: _Task) -> ProvisionPlan:
    """The plan, with the time planning took: reading, fitting the models and loading compiled code
    are not counted."""
    from igniterd.planner import strategies
    from igniterd.planner.evaluate import assess

    strategies.prepare(task.request, task.strategy)
    start = time.perf_counter()
    answer = strategies.plan(task.request, task.strategy, task.rejected)
    answer = answer.timed(time.perf_counter() - start)
    if task.strategy == "igniterd":
        return answer
    return assess(
        answer, task.request.gpus, task.request.burstiness_by_name(), level=task.request.level
    )


def _run_plan(task: _Task, output: str, plot: Path | None, emit: Path | None) -> bool:
    from igniterd.cli.plan_table import plan_table

    with _progress():
        answer = _advised(task, _plan_timed(task))
    if output == "json":
        print(json.dumps(answer.as_json(), indent=1, allow_nan=False))
    else:
        shown(*plan_table(answer))
    if plot is not None:
        from igniterd.cli.plan_plot import plot_plan

        plot_plan(answer, plot)
    if emit is not None:
        from igniterd.cli.plan_emit import emit as write

        made = write(answer, {gpu.name: gpu.profile for gpu in task.request.gpus}, emit)
        print(
            f"igniterd plan: {len(made)} host{'' if len(made) == 1 else 's'} written to {emit}",
            file=sys.stderr,
        )
    for entry in answer.infeasible:
        print(f"igniterd plan: {entry.workload}: {entry.reason}", file=sys.stderr)
    return answer.feasible


def _advised(task: _Task, answer: ProvisionPlan) -> ProvisionPlan:
    from igniterd.planner.relief import advise

    if task.strategy != "igniterd":  # what igniterd itself would do with more of an SLO
        return answer
    return replace(answer, advice=advise(answer, task.request))


@contextmanager
def _progress(now: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Say how far planning is, on standard error: not in the first seconds, then once a second."""
    from igniterd.planner.progress import reported_to

    began_s = said_s = now()

    def tell(step: str) -> None:
        nonlocal said_s
        at_s = now()
        if at_s - began_s >= _PATIENCE_S and at_s - said_s >= 1.0:
            said_s = at_s
            print(f"igniterd plan: {at_s - began_s:.0f} s: {step}", file=sys.stderr)

    with reported_to(tell):
        yield


def _run_sweep(task: _Task, output: str, plot: Path | None) -> bool:
    from igniterd.cli.plan_sweep import scaled

    if task.sweep is None:
        raise ValueError("no sweep was asked for")
    points: Points = []
    for factor in task.sweep.factors:
        with _progress():
            request = scaled(task.request, task.sweep.what, factor)
            points.append((factor, _plan_timed(replace(task, request=request))))
        if sys.stderr.isatty():
            print(
                f"\r{len(points)} of {len(task.sweep.factors)} plans",
                end="" if len(points) < len(task.sweep.factors) else "\n",
                file=sys.stderr,
            )
    if output == "json":
        print(
            json.dumps(
                [{task.sweep.what: factor, **answer.as_json()} for factor, answer in points],
                indent=1,
                allow_nan=False,
            )
        )
    else:
        from igniterd.cli.plan_table import sweep_table

        shown(sweep_table(task.sweep.what, points))
    if plot is not None:
        from igniterd.cli.plan_plot import plot_sweep

        plot_sweep(task.sweep.what, points, plot)
    for name in sorted(
        {
            (entry.workload, f"at {factor:g} times: {entry.reason}")
            for factor, answer in points
            for entry in answer.infeasible
        }
    ):
        print(f"igniterd plan: {name[0]}: {name[1]}", file=sys.stderr)
    return all(answer.feasible for _, answer in points)
