"""A provisioning plan as records, and its JSON.

The JSON is a contract (``igniterd plan --format json``): ``feasible, gpus[gpu, tenants[workload,
model, rate_per_s, share, max_batch_size, max_queue_delay_us, predicted{mean_ms, p99_ms}]],
cost_per_hour, lower_bound_gpus, planning_s, infeasible[workload, reason]``. Keys beyond those may
be added, none may go.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from igniterd.documents import Document, Name, Whole, check
from igniterd.errors import ConfigError
from igniterd.perf.api import UNCAPPED, capped_total
from igniterd.planner.workloads import Infeasible


@dataclass(frozen=True, slots=True)
class PlannedTenant:
    """One workload, or one replica of it, on one GPU. A replica has ``rate_per_s`` below the
    workload's. Beside others, a ``share`` of 1 is none (``UNCAPPED``): only what was read has it,
    no strategy plans it."""

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

    def as_json(self, weight: float) -> dict[str, object]:
        """One entry of ``tenants``; ``weight`` is its part of the workload's traffic."""
        return {
            "workload": self.workload,
            "model": self.model,
            "slo_p99_ms": self.slo_p99_ms,
            "rate_per_s": round(self.rate_per_s, 6),
            "weight": round(weight, 6),
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
class Advice:
    """A workload whose SLO is the reason for its many GPUs; ``others`` like it are not told again.

    ``load``: mean utilisation of its replicas. ``enough_slo_ms``: at it one GPU would do.
    """

    workload: str
    others: int
    gpu: str
    gpus: int
    load: float
    slo_p99_ms: float
    enough_slo_ms: float

    @property
    def sentence(self) -> str:
        """In words."""
        more = f" and {self.others} like it" if self.others else ""
        each = " each" if self.others else ""
        return (
            f"{self.workload}{more}: at an SLO of {self.slo_p99_ms:g} ms {self.gpus} GPUs{each} at "
            f"{self.load:.0%} load; one {self.gpu} would do with an SLO of "
            f"{self.enough_slo_ms:.6g} ms"
        )

    def as_json(self) -> dict[str, object]:
        """One entry of ``advice``."""
        return {
            "workload": self.workload,
            "others": self.others,
            "gpus": self.gpus,
            "load": _rounded(self.load),
            "slo_p99_ms": self.slo_p99_ms,
            "enough_slo_ms": self.enough_slo_ms,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class ProvisionPlan:
    """The answer to "how many GPUs, of which type, who shares with whom"."""

    strategy: str
    arrival_scv: float
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
    advice: tuple[Advice, ...] = ()
    kinds: int = 1  # of GPU that were offered
    uncapped: tuple[str, ...] = ()  # workloads that were read without a share
    # what the lower bound was found by: "least shares", or "patterns" of the cuts offered
    bound_by: str = "least shares"

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

    def weights(self) -> list[list[float]]:
        """Of each GPU's tenants: the part of its workload's planned traffic each gets."""
        rates: dict[str, list[float]] = {}
        for seat in (seat for gpu in self.gpus for seat in gpu.tenants):
            rates.setdefault(seat.workload, []).append(seat.rate_per_s)
        total = {name: math.fsum(each) for name, each in rates.items()}
        return [[s.rate_per_s / total[s.workload] for s in gpu.tenants] for gpu in self.gpus]

    def uneven(self) -> dict[str, list[float]]:
        """The rates (1/s) of the replicas of each workload whose replicas get unequal parts."""
        rates: dict[str, list[float]] = {}
        for seat in (seat for gpu in self.gpus for seat in gpu.tenants):
            rates.setdefault(seat.workload, []).append(seat.rate_per_s)
        return {name: each for name, each in rates.items() if max(each) > min(each) * (1.0 + 1e-6)}

    def timed(self, planning_s: float) -> ProvisionPlan:
        """The same plan with the time it took."""
        return replace(self, planning_s=planning_s)

    def as_json(self) -> dict[str, object]:
        """The JSON contract, see the module."""
        return {
            "feasible": self.feasible,
            "strategy": self.strategy,
            "burstiness": self.arrival_scv,
            "gpus": [
                {
                    "gpu": gpu.gpu,
                    "price_per_hour": gpu.price_per_hour,
                    "tenants": [
                        seat.as_json(weight)
                        for seat, weight in zip(gpu.tenants, weights, strict=True)
                    ],
                }
                for gpu, weights in zip(self.gpus, self.weights(), strict=True)
            ],
            "cost_per_hour": _rounded(self.cost_per_hour),
            "lower_bound_gpus": _rounded(self.lower_bound_gpus),
            "lower_bound_cost_per_hour": _rounded(self.lower_bound_cost_per_hour),
            "lower_bound_by": self.bound_by,
            "needed_gpus": _rounded(self.needed_gpus),
            "planning_s": round(self.planning_s, 6),
            "infeasible": [entry.as_json() for entry in self.infeasible],
            "moves": list(self.moves),
            "notes": list(self.notes),
            "advice": [entry.as_json() for entry in self.advice],
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


Positive = Annotated[float, Field(gt=0)]
Figure = Annotated[float, Field(description="a finite number, or null")]


class _Predicted(Document):
    mean_ms: Figure | None = None
    p99_ms: Figure | None = None


class _Tenant(Document):
    workload: Name
    model: Name
    rate_per_s: Annotated[Positive, Field(description="a number above 0")]
    share: (
        Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1, or left out")]
        | None
    ) = None
    max_batch_size: Annotated[
        Whole, Field(ge=1, le=4096, description="a whole number from 1 to 4096")
    ]
    max_queue_delay_us: Annotated[
        Whole, Field(ge=0, le=3_600_000_000, description="whole microseconds, 0 or more")
    ] = 0
    slo_p99_ms: Annotated[Positive | None, Field(description="above 0, or left out")] = None
    utilisation: Figure | None = None
    predicted: Annotated[
        _Predicted | None, Field(description='a table with "mean_ms" and "p99_ms"')
    ] = None

    @property
    def effective_share(self) -> float:
        return UNCAPPED if self.share is None else self.share

    def record(self) -> PlannedTenant:
        predicted = self.predicted or _Predicted()
        return PlannedTenant(
            workload=self.workload,
            model=self.model,
            slo_p99_ms=math.nan if self.slo_p99_ms is None else self.slo_p99_ms,
            rate_per_s=self.rate_per_s,
            share=self.effective_share,
            max_batch_size=self.max_batch_size,
            max_queue_delay_us=self.max_queue_delay_us,
            mean_ms=predicted.mean_ms,
            p99_ms=predicted.p99_ms,
            utilisation=self.utilisation,
        )


class _Gpu(Document):
    gpu: Annotated[str, Field(description="the name of a type of GPU")]
    tenants: Annotated[list[_Tenant], Field(description="a list of tenants")]
    price_per_hour: Figure | None = None

    @field_validator("tenants")
    @classmethod
    def _fits(cls, tenants: list[_Tenant]) -> list[_Tenant]:
        total = capped_total(tenant.effective_share for tenant in tenants)
        if total > 1 + 1e-6:
            raise ValueError(
                f"have shares that add up to {total:.3f}; at most 1 can be granted (leave out the "
                "share of a model that has none)"
            )
        return tenants

    @property
    def uncapped(self) -> list[_Tenant]:
        """Who has no share. Alone on its GPU, a share of 1 may have been planned."""
        alone = len(self.tenants) == 1
        return [t for t in self.tenants if t.share is None or (t.share >= UNCAPPED and not alone)]

    def record(self) -> PlannedGpu:
        return PlannedGpu(
            self.gpu, tuple(tenant.record() for tenant in self.tenants), self.price_per_hour
        )


class _Plan(Document):
    gpus: Annotated[list[_Gpu], Field(description='a list of GPUs, each with "gpu" and "tenants"')]
    strategy: Annotated[str, Field(description="the name of a strategy")] = ""
    burstiness: Figure | None = None
    lower_bound_gpus: Figure | None = None
    planning_s: Figure | None = None


def plan_from_json(document: object, source: str) -> ProvisionPlan:
    """The records of a plan's JSON. Needs ``gpus[].gpu`` and per tenant workload, model,
    rate_per_s, max_batch_size; without share it is uncapped; other keys are left alone. Raises
    :class:`ConfigError` with all that is wrong in it.
    """
    if not isinstance(document, dict):
        raise ConfigError(source, ['should be a table with "gpus", a list of GPUs'])
    plan = check(_Plan, document, source)
    uncapped = {seat.workload for gpu in plan.gpus for seat in gpu.uncapped}
    return ProvisionPlan(
        strategy=plan.strategy,
        arrival_scv=plan.burstiness or 0.0,
        gpus=tuple(gpu.record() for gpu in plan.gpus),
        lower_bound_gpus=plan.lower_bound_gpus,
        planning_s=plan.planning_s or 0.0,
        uncapped=tuple(sorted(uncapped)),
    )
