"""A provisioning plan as records, and its JSON.

The JSON is a contract (``igniterd plan --format json``): ``feasible, gpus[gpu, tenants[workload,
model, rate_per_s, share, max_batch_size, max_queue_delay_us, predicted{mean_ms, p99_ms}]],
cost_per_hour, lower_bound_gpus, planning_s, infeasible[workload, reason]``. Keys beyond those may
be added, none may go.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igniterd.errors import ConfigError
from igniterd.planner.workloads import Infeasible


@dataclass(frozen=True, slots=True)
class PlannedTenant:
    """One workload, or one replica of it, on one GPU. A replica has ``rate_per_s`` below the
    workload's."""

    workload: str
    model: str
    slo_p99_ms: float
    rate_per_s: float
    share: float
    max_batch_size: int
    max_queue_delay_us: int = 0
    mean_ms: float | None = None  # predicted, under this plan's neighbours
    p99_ms: float | None = None
    utilisation: float | None = None

    def as_json(self) -> dict[str, object]:
        """One entry of ``tenants``."""
        return {
            "workload": self.workload,
            "model": self.model,
            "slo_p99_ms": self.slo_p99_ms,
            "rate_per_s": round(self.rate_per_s, 6),
            "share": round(self.share, 6),
            "max_batch_size": self.max_batch_size,
            "max_queue_delay_us": self.max_queue_delay_us,
            "utilisation": _rounded(self.utilisation),
            "predicted": {"mean_ms": _rounded(self.mean_ms), "p99_ms": _rounded(self.p99_ms)},
        }


@dataclass(frozen=True, slots=True)
class PlannedGpu:
    """One GPU and who is on it."""

    gpu: str
    tenants: tuple[PlannedTenant, ...]
    price_per_hour: float | None = None

    @property
    def allocated(self) -> float:
        """Sum of the shares."""
        return sum(seat.share for seat in self.tenants)


@dataclass(frozen=True, slots=True)
class ProvisionPlan:
    """The answer to "how many GPUs, of which type, who shares with whom"."""

    strategy: str
    burstiness: float
    gpus: tuple[PlannedGpu, ...]
    infeasible: tuple[Infeasible, ...] = ()
    lower_bound_gpus: float | None = None  # sum of least shares: no plan can do with fewer
    lower_bound_cost_per_hour: float | None = None
    # sum of the shares tenants need where they are, neighbours and all; without spare ones given
    # away
    needed_gpus: float | None = None
    moves: tuple[str, ...] = ()  # against the plan it was started from, in words
    planning_s: float = 0.0  # filled in by whoever has a clock
    notes: tuple[str, ...] = ()
    kinds: int = 1  # of GPU that were offered

    @property
    def feasible(self) -> bool:
        """Whether every workload has a place."""
        return not self.infeasible

    @property
    def cost_per_hour(self) -> float | None:
        """Sum of the prices, or ``None`` when one is not known."""
        prices = [gpu.price_per_hour for gpu in self.gpus]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None

    @property
    def gap(self) -> float | None:
        """GPUs above the lower bound, as a fraction of it (the bound rounded up: GPUs come
        whole)."""
        if self.lower_bound_gpus is None or self.lower_bound_gpus <= 0:
            return None
        return len(self.gpus) / math.ceil(self.lower_bound_gpus - 1e-9) - 1.0

    def timed(self, planning_s: float) -> ProvisionPlan:
        """The same plan with the time it took."""
        return replace(self, planning_s=planning_s)

    def as_json(self) -> dict[str, object]:
        """The JSON contract, see the module."""
        return {
            "feasible": self.feasible,
            "strategy": self.strategy,
            "burstiness": self.burstiness,
            "gpus": [
                {
                    "gpu": gpu.gpu,
                    "price_per_hour": gpu.price_per_hour,
                    "tenants": [seat.as_json() for seat in gpu.tenants],
                }
                for gpu in self.gpus
            ],
            "cost_per_hour": _rounded(self.cost_per_hour),
            "lower_bound_gpus": _rounded(self.lower_bound_gpus),
            "lower_bound_cost_per_hour": _rounded(self.lower_bound_cost_per_hour),
            "needed_gpus": _rounded(self.needed_gpus),
            "planning_s": round(self.planning_s, 6),
            "infeasible": [entry.as_json() for entry in self.infeasible],
            "moves": list(self.moves),
            "notes": list(self.notes),
        }


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def read_plan(path: Path) -> ProvisionPlan:
    """A plan written by ``igniterd plan --format json``; raises :class:`ConfigError` naming what is
    not a plan."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(str(path), [f"is not a plan: {exc}"]) from exc
    return plan_from_json(document, str(path))


def plan_from_json(document: object, source: str) -> ProvisionPlan:
    """The records of a plan's JSON. Needs ``gpus[].gpu`` and per tenant workload, model,
    rate_per_s, share, max_batch_size."""
    problems: list[str] = []
    gpus: list[PlannedGpu] = []
    entries = document.get("gpus") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(
            source, ['"gpus" should be a list of GPUs, each with "gpu" and "tenants"']
        )
    for g, entry in enumerate(entries):
        tenants = entry.get("tenants") if isinstance(entry, dict) else None
        if not isinstance(tenants, list) or not isinstance(entry.get("gpu"), str):
            problems.append(f'gpus[{g}] should have a string "gpu" and a list "tenants"')
            continue
        seats = [
            seat
            for t, raw in enumerate(tenants)
            if (seat := _seat(raw, f"gpus[{g}].tenants[{t}]", problems)) is not None
        ]
        gpus.append(PlannedGpu(entry["gpu"], tuple(seats), _optional(entry.get("price_per_hour"))))
        if gpus[-1].allocated > 1 + 1e-6:
            problems.append(
                f"gpus[{g}]: shares add up to {gpus[-1].allocated:.3f}; at most 1 can be granted"
            )
    if problems:
        raise ConfigError(source, problems)
    assert isinstance(document, dict)  # noqa: S101  (checked above; for the type checker)
    return ProvisionPlan(
        strategy=str(document.get("strategy", "")),
        burstiness=_optional(document.get("burstiness")) or 0.0,
        gpus=tuple(gpus),
        lower_bound_gpus=_optional(document.get("lower_bound_gpus")),
        planning_s=_optional(document.get("planning_s")) or 0.0,
    )


_MOST_BATCH = 4096
_MOST_DELAY_US = 3_600_000_000
_NUMBERS: Sequence[tuple[str, float, float]] = (("rate_per_s", 0.0, math.inf), ("share", 0.0, 1.0))


def _seat(raw: object, where: str, problems: list[str]) -> PlannedTenant | None:
    if not isinstance(raw, Mapping):
        problems.append(f"{where} should be a table")
        return None
    before = len(problems)
    names = [
        key for key in ("workload", "model") if not isinstance(raw.get(key), str) or not raw[key]
    ]
    problems += [f"{where}.{key} is {raw.get(key)!r}; should be a name" for key in names]
    for key, low, high in _NUMBERS:
        value = _optional(raw.get(key))
        if value is None or not low < value <= high:
            problems.append(
                f"{where}.{key} is {raw.get(key)!r}; should be a number above {low:g}"
                + (f", at most {high:g}" if high < math.inf else "")
            )
    batch, delay_us = raw.get("max_batch_size"), raw.get("max_queue_delay_us", 0)
    if not _whole(batch, 1, _MOST_BATCH):
        problems.append(
            f"{where}.max_batch_size is {batch!r}; should be a whole number from 1 to {_MOST_BATCH}"
        )
    if not _whole(delay_us, 0, _MOST_DELAY_US):
        problems.append(
            f"{where}.max_queue_delay_us is {delay_us!r}; should be whole microseconds, 0 or more"
        )
    slo = raw.get("slo_p99_ms")
    if slo is not None and not (_optional(slo) or 0.0) > 0:
        problems.append(f"{where}.slo_p99_ms is {slo!r}; should be above 0, or left out")
    if len(problems) > before:
        return None
    predicted: Mapping[str, Any] = (
        raw["predicted"] if isinstance(raw.get("predicted"), Mapping) else {}
    )
    return PlannedTenant(
        workload=raw["workload"],
        model=raw["model"],
        slo_p99_ms=math.nan if slo is None else float(slo),
        rate_per_s=float(raw["rate_per_s"]),
        share=float(raw["share"]),
        max_batch_size=int(raw["max_batch_size"]),
        max_queue_delay_us=int(delay_us),
        mean_ms=_optional(predicted.get("mean_ms")),
        p99_ms=_optional(predicted.get("p99_ms")),
        utilisation=_optional(raw.get("utilisation")),
    )


def _whole(value: object, least: int, most: int) -> bool:
    number = _optional(value)
    return number is not None and number.is_integer() and least <= number <= most


def _optional(value: object) -> float | None:
    """A finite number, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None
