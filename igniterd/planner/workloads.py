"""What is to be planned: workloads read from CSV or TOML, and what is wrong with each of them.

A file that cannot be read as a table is an error of the file
(:class:`~igniterd.errors.ConfigError`). A row that cannot be planned is not: it becomes an
:class:`Infeasible` with its reason, and the rest is planned.
"""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from igniterd.documents import Document, faults
from igniterd.errors import ConfigError

REQUIRED = ("workload", "model", "slo_p99_ms", "rate_per_s")
OPTIONAL = ("burstiness",)
_NONE = (
    "holds no workload; a row is e.g. W1,alexnet,10,1200 under workload,model,slo_p99_ms,rate_per_s"
)
ARRIVALS = {"constant": 0.0, "poisson": 1.0}
"""Named arrival processes: the squared coefficient of variation of the gaps between requests."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One stream of requests to one model.

    ``arrival_scv`` is the squared coefficient of variation of the gaps between arrivals: 0
    constant, 1 Poisson, above 1 bursty; ``None`` takes the plan's.
    """

    name: str
    model: str
    slo_p99_ms: float
    rate_per_s: float
    arrival_scv: float | None = None


@dataclass(frozen=True, slots=True)
class Infeasible:
    """A workload that cannot be planned: why, and what would be possible instead (where there is an
    answer)."""

    workload: str
    reason: str
    least_slo_ms: float | None = None  # the least P99 SLO that could be held at this rate
    largest_rate_per_s: float | None = None  # the largest rate that could be served within this SLO

    def as_json(self) -> dict[str, object]:
        """The entry of ``infeasible`` in a plan; figures that do not apply are left out."""
        entry: dict[str, object] = {"workload": self.workload, "reason": self.reason}
        if self.least_slo_ms is not None:
            entry["least_slo_ms"] = round(self.least_slo_ms, 3)
        if self.largest_rate_per_s is not None:
            entry["largest_rate_per_s"] = round(self.largest_rate_per_s, 3)
        return entry


def read_workloads(path: Path) -> tuple[tuple[Workload, ...], tuple[Infeasible, ...]]:
    """Workloads of a ``.csv`` or ``.toml`` file, and the rows that are no workloads, each with its
    reason.

    CSV needs the columns ``workload,model,slo_p99_ms,rate_per_s`` (``burstiness`` may follow); TOML
    has ``[[workload]]`` tables with the same keys. Raises :class:`ConfigError` when the file is
    missing, is neither, or lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), [f"cannot be read: {exc}"]) from exc
    if not text.strip():
        raise ConfigError(str(path), [_NONE])
    rows = (
        _toml_rows(str(path), text)
        if path.suffix.lower() == ".toml"
        else _csv_rows(str(path), text)
    )
    if not rows:
        raise ConfigError(str(path), [_NONE])
    return check_rows(rows)


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _process(value: object) -> object:
    """A named arrival process as the number it stands for; nothing for an empty cell."""
    if value in (None, ""):
        return None
    return ARRIVALS.get(str(value).strip().lower(), value)


# the cells of a CSV file are text
Above = Annotated[float, Field(gt=0, strict=False), BeforeValidator(_no_truth)]
Scv = Annotated[float, Field(ge=0, strict=False), BeforeValidator(_no_truth)]


class _Row(Document):
    model: str
    slo_p99_ms: Annotated[Above, Field(description="a P99 in milliseconds above 0, e.g. 25")]
    rate_per_s: Annotated[Above, Field(description="requests a second above 0, e.g. 400")]
    burstiness: Annotated[
        Scv | None,
        BeforeValidator(_process),
        Field(
            description="constant, poisson or a number from 0 (constant), 1 being Poisson",
        ),
    ] = None

    @field_validator("model", mode="before")
    @classmethod
    def _named(cls, value: object) -> str:
        name = str(value or "").strip()
        if not name:
            raise PydanticCustomError("said", "is empty; name the profiled model it is served by")
        return name


def check_rows(
    rows: Sequence[Mapping[str, object]],
) -> tuple[tuple[Workload, ...], tuple[Infeasible, ...]]:
    """Turn raw rows into workloads; every row at fault is named with all that is wrong with it."""
    good: list[Workload] = []
    bad: list[Infeasible] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        name = str(row.get("workload") or "").strip() or f"row {number}"
        problems = []
        if name in seen:
            problems = [f"the name {name!r} is used before; give every workload a name of its own"]
        seen.add(name)
        try:
            # an empty cell is a missing one
            given = {key: value for key, value in row.items() if value not in (None, "")}
            known = _Row.model_validate({"model": "", **given})
        except ValidationError as error:
            problems += faults(error, _Row, words=_said)
        if problems:
            bad.append(Infeasible(name, "; ".join(problems)))
            continue
        good.append(
            Workload(name, known.model, known.slo_p99_ms, known.rate_per_s, known.burstiness)
        )
    return tuple(good), tuple(bad)


def _said(path: str, found: str, right: str) -> str:
    return f"{path} is {found or 'missing'}; right would be {right}"


def _csv_rows(source: str, text: str) -> list[dict[str, object]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_keys(source, columns)
        rows: list[dict[str, object]] = []
        for row in reader:
            beyond = row.pop(None, None)  # where csv puts what has no column
            if beyond:
                raise ConfigError(
                    source,
                    [
                        f"line {reader.line_num} has {len(columns) + len(beyond)} fields under "
                        f"{len(columns)} columns"
                    ],
                )
            rows.append(dict(row))
        return rows
    except csv.Error as exc:
        raise ConfigError(source, [f"line {reader.line_num} is not CSV: {exc}"]) from exc


def _toml_rows(source: str, text: str) -> list[dict[str, object]]:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(source, [f"is not TOML: {exc}"]) from exc
    unknown = sorted(set(document) - {"workload"})
    tables = document.get("workload", [])
    if (
        unknown
        or not isinstance(tables, list)
        or not all(isinstance(table, dict) for table in tables)
    ):
        raise ConfigError(
            source,
            [
                "should hold [[workload]] tables "
                f"only{', not ' + ', '.join(unknown) if unknown else ''}"
            ],
        )
    rows: list[dict[str, object]] = []
    for table in tables:
        row = {("workload" if key == "name" else key): value for key, value in table.items()}
        _check_keys(source, list(row))
        rows.append(row)
    return rows


def _check_keys(source: str, keys: Sequence[str]) -> None:
    missing = [key for key in REQUIRED if key not in keys]
    twice = sorted({key for key in keys if list(keys).count(key) > 1})
    unknown = [key for key in keys if key not in REQUIRED + OPTIONAL]
    problems = [f"lacks {', '.join(missing)}; needed are {', '.join(REQUIRED)}"] if missing else []
    problems += [f"has {key!r} twice" for key in twice]
    problems += [
        f"has {key!r}, which means nothing here; known are {', '.join(REQUIRED + OPTIONAL)}"
        for key in unknown
    ]
    if problems:
        raise ConfigError(source, problems)
