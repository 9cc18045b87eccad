"""``igniterd predict``: latency and throughput of models that share a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from igniterd.cli.common import cannot, shown
from igniterd.cli.wording import share_text
from igniterd.errors import ConfigError

if TYPE_CHECKING:
    from igniterd.perf.api import Prediction, Tenant


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(name="predict", short_help="Latency and throughput of models that share a GPU.")(
        predict
    )


def predict(
    cases: Annotated[
        Path,
        typer.Argument(
            metavar="CASES.json",
            help="Tenants that share a GPU, case by case; - reads standard input.",
        ),
    ],
    gpu: Annotated[
        str,
        typer.Option(
            metavar="GPU",
            help="A GPU igniterd ships a profile of (v100), or the path of a profile.",
        ),
    ] = "v100",
    model: Annotated[
        Literal["igniterd", "igniter"],
        typer.Option(help="igniterd's own model, or the published one."),
    ] = "igniterd",
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the upper bound.")
    ] = 0.95,
    output: Annotated[
        Literal["table", "json"], typer.Option("--format", help="How to print.")
    ] = "table",
) -> None:
    """Predict latency and throughput of models in closed loops that share a GPU; transfers are
    included.

    CASES.json: [{"tenants": [{"model": "alexnet", "batch": 3, "share": 0.2}, {"model": "ssd",
    "batch": 3, "share": 0.8}]}, ...]

    A tenant without "share" is uncapped: it may use the whole GPU, as a model that runs inside
    tritonserver does. The shares below 1 of a case add up to at most 1. "duty" is the fraction of
    the time it executes (1 when left out). In the answer an uncapped tenant has the share 1.
    """
    with cannot():
        answers = _answers(cases, gpu, model, level)
    if output == "json":
        print(json.dumps(answers, indent=1, allow_nan=False))
    else:
        _print_table(answers)


def _answers(
    path: Path, gpu: str, kind: Literal["igniterd", "igniter"], level: float
) -> list[dict[str, Any]]:
    from igniterd.perf import load_model, resolve_profile
    from igniterd.perf.cases import cases_of

    source = "standard input" if str(path) == "-" else str(path)
    given = _read(path, source)
    fitted = load_model(resolve_profile(gpu), kind)
    found = cases_of(given, fitted.models, source)
    return [
        {
            "tenants": [
                _told(t, p) for t, p in zip(case, fitted.predict(case, level=level), strict=True)
            ]
        }
        for case in found
    ]


def _told(tenant: Tenant, prediction: Prediction) -> dict[str, Any]:
    return {
        "model": tenant.model,
        "batch": tenant.batch,
        "share": tenant.share,
        "latency_ms": prediction.latency_ms,
        "upper_ms": prediction.upper_ms,
        "throughput_per_s": prediction.throughput_per_s,
        "inside": prediction.inside,
    }


def _read(path: Path, source: str) -> Any:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as exc:
        raise ConfigError(source, [f"cannot be read: {exc.strerror or exc}"]) from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(source, [f"not JSON: {exc}"]) from exc


def _print_table(answers: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(
        "case",
        "model",
        "batch",
        "share",
        "latency ms",
        "upper ms",
        "requests/s",
        "",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[2:7]:
        column.justify = "right"
    for index, answer in enumerate(answers):
        for place, t in enumerate(answer["tenants"]):
            table.add_row(
                str(index) if place == 0 else "",
                t["model"],
                f"{t['batch']:g}",
                share_text(t["share"], ".3g"),
                f"{t['latency_ms']:.2f}",
                f"{t['upper_ms']:.2f}",
                f"{t['throughput_per_s']:.1f}",
                "" if t["inside"] else "outside profile",
            )
    shown(table)
