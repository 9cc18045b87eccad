"""``igniterd predict``: latency and throughput of models that share a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from igniterd.cli.common import cannot, shown
from igniterd.errors import ConfigError

if TYPE_CHECKING:
    from igniterd.perf import PerformanceModel
    from igniterd.perf.api import Prediction, Tenant

Case = list["Tenant"]


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

    source = "standard input" if str(path) == "-" else str(path)
    given = _read(path, source)
    fitted = load_model(resolve_profile(gpu), kind)
    found = _cases(given, fitted, source)
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


def _cases(given: Any, fitted: PerformanceModel, source: str) -> list[Case]:
    """The cases as tenants; raises :class:`ConfigError` with every problem."""
    problems: list[str] = []
    if not isinstance(given, list):
        raise ConfigError(source, ['must be a list of cases, each {"tenants": [...]}'])
    found = [_case(item, f"[{index}]", fitted, problems) for index, item in enumerate(given)]
    if problems:
        raise ConfigError(source, problems)
    return found


def _case(item: Any, where: str, fitted: PerformanceModel, problems: list[str]) -> Case:
    tenants = item.get("tenants") if isinstance(item, dict) and item.keys() == {"tenants"} else None
    if not isinstance(tenants, list) or not tenants:
        problems.append(f'{where}: must be {{"tenants": [...]}} with at least one tenant')
        return []
    case = [
        _tenant(tenant, f"{where}.tenants[{index}]", fitted, problems)
        for index, tenant in enumerate(tenants)
    ]
    total = sum(t.share for t in case if t)
    if total > 1 + 1e-6:
        problems.append(f"{where}: shares add up to {total:g}; a GPU has 1")
    return [t for t in case if t]


def _tenant(item: Any, where: str, fitted: PerformanceModel, problems: list[str]) -> Tenant | None:
    from igniterd.perf.api import Tenant

    if (
        not isinstance(item, dict)
        or not item.keys() >= {"model", "batch", "share"}
        or item.keys() - {"model", "batch", "share", "duty"}
    ):
        problems.append(
            f"{where}: must have model, batch and share (duty is optional), nothing else"
        )
        return None
    before = len(problems)
    if item["model"] not in fitted.models:
        problems.append(
            f"{where}.model: {item['model']!r} is not in the profile ({', '.join(fitted.models)})"
        )
    batch, share, duty = item["batch"], item["share"], item.get("duty", 1.0)
    if not _is_number(batch) or not 1 <= batch <= 4096:
        problems.append(f"{where}.batch: {batch!r} is not a number from 1 to 4096")
    if not _is_number(share) or not 0 < share <= 1:
        problems.append(
            f"{where}.share: {share!r} is not above 0 and at most 1 (a fraction of the SMs)"
        )
    if not _is_number(duty) or not 0 <= duty <= 1:
        problems.append(f"{where}.duty: {duty!r} is not from 0 to 1")
    return (
        None
        if len(problems) > before
        else Tenant(item["model"], float(batch), float(share), float(duty))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
                f"{t['share']:.3g}",
                f"{t['latency_ms']:.2f}",
                f"{t['upper_ms']:.2f}",
                f"{t['throughput_per_s']:.1f}",
                "" if t["inside"] else "outside profile",
            )
    shown(table)
