"""``igniterd simulate``: a plan replayed in virtual time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from igniterd.cli.common import cannot, shown
from igniterd.cli.wording import given, share_text

if TYPE_CHECKING:
    from igniterd.lab.replay.boards import Board, Replica
    from igniterd.lab.replay.replay import Arrivals, Replayed, Served
    from igniterd.planner.plan import ProvisionPlan

_MOST_REQUESTS = 100_000_000


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        name="simulate", short_help="Replay a plan in virtual time against measured tables."
    )(simulate)


def simulate(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.json",
            help="A plan, as `igniterd plan --format json` prints it; - is standard input.",
        ),
    ],
    arrivals: Annotated[
        str,
        typer.Option(
            metavar="PROCESS",
            help="poisson, constant, bursty, or a trace: a CSV with the columns workload and "
            "time_s.",
        ),
    ] = "poisson",
    burstiness: Annotated[
        float, typer.Option(help="Squared coefficient of variation of the gaps of bursty arrivals.")
    ] = 4.0,
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same replay.")] = 1,
    against: Annotated[
        Literal["auto", "measured", "model"],
        typer.Option(
            help="Service times: measured tables, the model, or tables where there are any."
        ),
    ] = "auto",
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU",
            help="Profile of a kind of GPU that the plan names and igniterd does not ship.",
        ),
    ] = None,
    require_slo: Annotated[
        bool, typer.Option("--require-slo", help="Exit 1 when a workload's P99 is above its SLO.")
    ] = False,
    output: Annotated[
        Literal["table", "json"], typer.Option("--format", help="How to print.")
    ] = "table",
) -> None:
    """Replay a plan in virtual time: P50, P99, attainment and utilisation of every workload and
    replica.

    A tenant of the plan without "share" is uncapped: it may use the whole GPU. Beside others such
    a tenant was not measured: its GPU is replayed against the model, and refused with --against
    measured. The shares below 1 on a GPU add up to at most 1.
    """
    with cannot():
        from igniterd.lab.replay.replay import replay
        from igniterd.planner.plan import read_plan

        read = read_plan(given(plan))
        process = _arrivals(arrivals, burstiness)
        boards = _boards(read, against, gpu or [])
        _bearable(read, process, duration)
        result = replay(replicas_of(read), boards, process, duration_s=duration, seed=seed)
    if output == "json":
        print(json.dumps(_document(read, result, boards, process, seed), indent=1, allow_nan=False))
    else:
        _print_table(read, result, boards, process, seed)
    if require_slo and result.missed:
        for w in result.missed:
            print(
                f"igniterd simulate: {w.workload}: P99 {w.p99_ms:.2f} ms is above the SLO of "
                f"{w.slo_p99_ms:g} ms",
                file=sys.stderr,
            )
        raise typer.Exit(1)


def _arrivals(text: str, burstiness: float) -> Arrivals:
    from igniterd.errors import ConfigError
    from igniterd.lab.replay.replay import Arrivals, Kind, read_trace

    if text in (Kind.POISSON, Kind.CONSTANT, Kind.BURSTY):
        return Arrivals(Kind(text), burstiness)
    path = Path(text)
    if path.suffix != ".csv" and not path.exists():
        raise ConfigError(
            "--arrivals",
            [f"{text!r} is none of poisson, constant, bursty, and no trace: a trace is a CSV file"],
        )
    return Arrivals(Kind.TRACE, trace=read_trace(path))


def _bearable(plan: ProvisionPlan, process: Arrivals, duration_s: float) -> None:
    """Every request is kept until the end. Raises :class:`ConfigError` for more of them than a
    machine has memory for."""
    from igniterd.errors import ConfigError

    rate_per_s = sum(t.rate_per_s for gpu in plan.gpus for t in gpu.tenants)
    if process.kind.value != "trace" and rate_per_s * duration_s > _MOST_REQUESTS:
        most_s = _MOST_REQUESTS / rate_per_s
        raise ConfigError(
            "--duration",
            [
                f"{duration_s:g} s at {rate_per_s:g} requests/s are too many to keep; at most "
                f"{most_s:.3g} s"
            ],
        )


def _boards(plan: ProvisionPlan, against: str, profiles: list[str]) -> list[Board]:
    """A board for each GPU of the plan; kinds and models without measured tables, and GPUs with
    uncapped tenants beside others, take the performance model."""
    from igniterd.errors import CannotRun
    from igniterd.lab.gpu.truth import MAX_BATCH, Truth
    from igniterd.lab.replay.boards import MeasuredBoard, ModelBoard
    from igniterd.perf import load_model, resolve_profile
    from igniterd.perf.api import UNCAPPED

    given = {p.board.name: p for p in map(resolve_profile, profiles)}
    measured = MeasuredBoard()
    models: dict[str, Board] = {}
    boards: list[Board] = []
    for gpu in plan.gpus:
        if gpu.gpu == "v100" and gpu.gpu not in given:
            known = all(
                t.model in Truth.v100().models
                and t.max_batch_size <= MAX_BATCH
                and not (t.share >= UNCAPPED and len(gpu.tenants) > 1)
                for t in gpu.tenants
            )
            if against == "measured" or (against == "auto" and known):
                boards.append(measured)
                continue
        elif against == "measured":
            raise CannotRun(
                f"nothing was measured of the {gpu.gpu}; replay against the model: --against model"
            )
        if gpu.gpu not in models:
            models[gpu.gpu] = ModelBoard(load_model(given.get(gpu.gpu) or resolve_profile(gpu.gpu)))
        boards.append(models[gpu.gpu])
    return boards


def replicas_of(plan: ProvisionPlan) -> list[list[Replica]]:
    """The tenants of each GPU of ``plan``, as :func:`igniterd.lab.replay.replay.replay` takes
    them."""
    from igniterd.lab.replay.boards import Replica

    return [
        [
            Replica(
                t.workload,
                t.model,
                t.rate_per_s,
                t.share,
                t.max_batch_size,
                t.max_queue_delay_us,
                t.slo_p99_ms,
            )
            for t in gpu.tenants
        ]
        for gpu in plan.gpus
    ]


def _number(value: float, digits: int = 4) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _told(served: Served) -> dict[str, Any]:
    return {
        "workload": served.workload,
        "model": served.model,
        "slo_p99_ms": _number(served.slo_p99_ms),
        "requests": served.requests,
        "offered_per_s": _number(served.offered_per_s),
        "served_per_s": _number(served.served_per_s),
        "mean_ms": _number(served.mean_ms),
        "p50_ms": _number(served.p50_ms),
        "p95_ms": _number(served.p95_ms),
        "p99_ms": _number(served.p99_ms),
        "attainment": _number(served.attainment, 6),
        "utilisation": _number(served.utilisation),
        "mean_batch": _number(served.mean_batch),
        "missed": served.missed,
    }


def _document(
    plan: ProvisionPlan, result: Replayed, boards: list[Board], process: Arrivals, seed: int
) -> dict[str, Any]:
    return {
        "arrivals": process.kind.value,
        "burstiness": {"constant": 0.0, "poisson": 1.0, "bursty": process.arrival_scv}.get(
            process.kind.value
        ),
        "duration_s": result.duration_s,
        "seed": seed,
        "missed": [w.workload for w in result.missed],
        "workloads": [_told(w) for w in result.workloads],
        "gpus": [
            {"gpu": gpu.gpu, "against": board.name, "tenants": [_told(r) for r in replicas]}
            for gpu, board, replicas in zip(plan.gpus, boards, result.replicas, strict=True)
        ],
    }


def _print_table(
    plan: ProvisionPlan, result: Replayed, boards: list[Board], process: Arrivals, seed: int
) -> None:
    from rich.table import Table

    heads = (
        "GPU",
        "workload",
        "model",
        "share",
        "batch",
        "delay",
        "req/s",
        "P50 ms",
        "P99 ms",
        "SLO ms",
        "held",
        "busy",
        "mean batch",
        "",
    )
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[3:13]:
        column.justify = "right"
    parts: dict[str, int] = {}
    for g, (gpu, replicas) in enumerate(zip(plan.gpus, result.replicas, strict=True)):
        for place, (seat, r) in enumerate(zip(gpu.tenants, replicas, strict=True)):
            parts[r.workload] = parts.get(r.workload, 0) + 1
            knobs = (
                share_text(seat.share, ".1%"),
                str(seat.max_batch_size),
                f"{seat.max_queue_delay_us / 1e3:g}",
            )
            table.add_row(
                f"{g} {gpu.gpu}" if place == 0 else "", r.workload, r.model, *knobs, *_figures(r)
            )
    for w in result.workloads:
        if parts[w.workload] > 1:
            table.add_row("all", w.workload, w.model, "", "", "", *_figures(w))
    process_said = f"{process.kind.value} arrivals" + (
        f" (burstiness {process.arrival_scv:g})" if process.kind.value == "bursty" else ""
    )
    missed = ", ".join(w.workload for w in result.missed) or "none"
    against = " and ".join(dict.fromkeys(b.name for b in boards)) or "nothing: the plan has no GPU"
    requests = sum(w.requests for w in result.workloads)
    said = (
        f"{requests} requests in {result.duration_s:g} s, {process_said}, seed {seed}, "
        f"against {against}; P99 above its SLO: {missed}"
    )
    shown(table, said)


def _figures(r: Served) -> tuple[str, ...]:
    def shown(value: float, form: str) -> str:
        return format(value, form) if math.isfinite(value) else "-"

    return (
        shown(r.offered_per_s, ".1f"),
        shown(r.p50_ms, ".2f"),
        shown(r.p99_ms, ".2f"),
        shown(r.slo_p99_ms, "g"),
        shown(r.attainment, ".2%"),
        shown(r.utilisation, ".0%"),
        shown(r.mean_batch, ".2f"),
        "missed" if r.missed else "",
    )
