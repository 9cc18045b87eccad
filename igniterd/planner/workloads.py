"""What is to be planned: workloads read from CSV or TOML, and what is wrong with each of them.

A file that cannot be read as a table is an error of the file
(:class:`~igniterd.errors.ConfigError`). A row that cannot be planned is not: it becomes an
:class:`Infeasible` with its reason, and the rest is planned.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

    ``burstiness`` is the squared coefficient of variation of the gaps between arrivals: 0 constant,
    1 Poisson, above 1 bursty; ``None`` takes the plan's.
    """

    name: str
    model: str
    slo_p99_ms: float
    rate_per_s: float
    burstiness: float | None = None


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


def check_rows(
    rows: Sequence[Mapping[str, object]],
) -> tuple[tuple[Workload, ...], tuple[Infeasible, ...]]:
    """Turn raw rows into workloads; every row at fault is named with all that is wrong with it."""
    good: list[Workload] = []
    bad: list[Infeasible] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        name = str(row.get("workload") or "").strip() or f"row {number}"
        problems = (
            [f"the name {name!r} is used before; give every workload a name of its own"]
            if name in seen
            else []
        )
        seen.add(name)
        model = str(row.get("model") or "").strip()
        if not model:
            problems.append("model is empty; name the profiled model it is served by")
        slo = _number(row, "slo_p99_ms", problems, "a P99 in milliseconds above 0, e.g. 25")
        rate = _number(row, "rate_per_s", problems, "requests a second above 0, e.g. 400")
        burst = _burstiness(row, problems)
        if problems:
            bad.append(Infeasible(name, "; ".join(problems)))
        else:
            good.append(Workload(name, model, slo, rate, burst))
    return tuple(good), tuple(bad)


def _number(row: Mapping[str, object], key: str, problems: list[str], right: str) -> float:
    """A finite number above zero, or NaN and a line in ``problems``."""
    raw = row.get(key)
    value = _as_float(raw)
    if value is None or not math.isfinite(value) or value <= 0:
        problems.append(
            f"{key} is {'missing' if raw in (None, '') else repr(raw)}; right would be {right}"
        )
        return math.nan
    return value


def _burstiness(row: Mapping[str, object], problems: list[str]) -> float | None:
    raw = row.get("burstiness")
    if raw in (None, ""):
        return None
    value = ARRIVALS.get(str(raw).strip().lower(), _as_float(raw))
    if value is None or not math.isfinite(value) or value < 0:
        problems.append(
            f"burstiness is {raw!r}; right would be constant, poisson or a number from 0 "
            "(constant), 1 being Poisson"
        )
        return None
    return value


def _as_float(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        return float(raw)
    except (ValueError, OverflowError):  # TOML's whole numbers have any length
        return None


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
