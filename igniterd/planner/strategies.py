"""Strategies by name: one way in for the command line, the benchmarks and the fleet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from igniterd.errors import ConfigError
from igniterd.planner.baselines import igniter as published
from igniterd.planner.baselines.gpu_lets import gpu_lets
from igniterd.planner.baselines.gslice import gslice
from igniterd.planner.evaluate import LEVEL
from igniterd.planner.gpu_types import GpuType, check_gpus
from igniterd.planner.plan import PlannedGpu, ProvisionPlan
from igniterd.planner.replan import replan
from igniterd.planner.several_types import plan_types
from igniterd.planner.workloads import Infeasible, Workload

Strategy = Literal["igniterd", "igniter", "ffd+", "ffd++", "gslice+", "gpu-lets+"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan: the workloads, the kinds of GPU there are, and the arrival process workloads
    have that name none."""

    workloads: Sequence[Workload]
    gpus: tuple[GpuType, ...]
    arrival_scv: float = 1.0
    level: float = LEVEL
    seed: int = 0
    start: ProvisionPlan | None = None
    """A running plan to start from (strategy igniterd only); :mod:`igniterd.planner.replan`."""
    max_moves: int | None = None
    even_splits: bool = False
    """Replicas of a workload get equal parts of its traffic, for balancers that know no weights
    (strategy igniterd, from nothing)."""

    def burstiness_by_name(self) -> dict[str, float]:
        """Arrival process of every workload, by name."""
        return {
            w.name: self.arrival_scv if w.arrival_scv is None else w.arrival_scv
            for w in self.workloads
        }


def plan(
    request: Request, strategy: Strategy = "igniterd", rejected: Sequence[Infeasible] = ()
) -> ProvisionPlan:
    """The plan of one strategy; ``rejected`` are workloads refused before, carried into the answer.

    Raises :class:`igniterd.errors.ConfigError` for kinds of GPU that cannot be compared and
    :class:`igniterd.errors.ProfileError` for a profile that lacks what the strategy's model needs.
    """
    check_gpus(request.gpus)
    if request.even_splits and (strategy != "igniterd" or request.start is not None):
        raise ConfigError(
            "even splits", ["are for strategy igniterd that plans from nothing, without --from"]
        )
    if strategy == "igniterd":
        if request.start is None:
            own = plan_types(
                request.workloads,
                request.gpus,
                request.arrival_scv,
                level=request.level,
                seed=request.seed,
                even=request.even_splits,
            )
        else:
            own = replan(
                request.start,
                request.workloads,
                request.gpus,
                request.arrival_scv,
                max_moves=request.max_moves,
                level=request.level,
            )
        return replace(own, infeasible=(*rejected, *own.infeasible))
    if request.start is not None:
        raise ConfigError(
            "running plan",
            [f"strategy {strategy} plans from nothing; only igniterd starts from a running plan"],
        )
    plans = [_on_one_kind(request, gpu, strategy) for gpu in request.gpus]
    best = min(
        plans,
        key=lambda p: (
            len(p.infeasible),
            math.inf if p.cost_per_hour is None else p.cost_per_hour,
            len(p.gpus),
        ),
    )
    return replace(best, infeasible=(*rejected, *best.infeasible))


def prepare(request: Request, strategy: Strategy) -> None:
    """Fit the models and load the compiled parts a strategy needs, so that the time it takes to
    plan is the time it takes to plan."""
    check_gpus(request.gpus)
    first: dict[str, Workload] = {}
    for workload in request.workloads:
        first.setdefault(workload.model, workload)
    few = list(first.values())[:2]
    copies = [replace(w, name=f"{w.name} again") for w in few]  # these are planned by pattern
    plan(replace(request, workloads=(*few, *copies), start=None), strategy)


def _on_one_kind(request: Request, gpu: GpuType, strategy: Strategy) -> ProvisionPlan:
    """Published strategies and baselines know one kind of GPU: each kind is planned alone, and the
    cheapest taken."""
    gpus, rejected, bound = _PUBLISHED[strategy](request, gpu)
    if gpu.most is not None and len(gpus) > gpu.most:
        gpus, over = gpus[: gpu.most], gpus[gpu.most :]
        reason = f"needs a GPU beyond the {gpu.most} of kind {gpu.name} there are"
        rejected = (
            *rejected,
            *(Infeasible(seat.workload, reason) for extra in over for seat in extra.tenants),
        )
    cost = None if gpu.price_per_hour is None else bound * gpu.price_per_hour
    needed = sum(seat.share for host in gpus for seat in host.tenants)
    return ProvisionPlan(strategy, request.arrival_scv, gpus, rejected, bound, cost, needed)


_Answer = tuple[tuple[PlannedGpu, ...], tuple[Infeasible, ...], float]


def _igniter(
    request: Request, gpu: GpuType, *, first_fit: bool = False, aware: bool = True
) -> _Answer:
    demand = published.demand_of(gpu.published, request.workloads)
    allocation = published.place(gpu.published, demand, first_fit=first_fit, aware=aware)
    gpus = published.to_gpus(gpu.published, demand, allocation, gpu.name, gpu.price_per_hour)
    return gpus, demand.rejected, float(demand.lower.sum()) / gpu.units


def _gslice(request: Request, gpu: GpuType) -> _Answer:
    demand = published.demand_of(gpu.published, request.workloads)
    return (
        gslice(gpu.published, demand, gpu.name, gpu.price_per_hour),
        demand.rejected,
        float(demand.lower.sum()) / gpu.units,
    )


def _gpu_lets(request: Request, gpu: GpuType) -> _Answer:
    demand = published.demand_of(gpu.published, request.workloads)
    gpus, rejected = gpu_lets(
        gpu.published, gpu.profile, demand.workloads, gpu.name, gpu.price_per_hour
    )
    return gpus, (*demand.rejected, *rejected), float(demand.lower.sum()) / gpu.units


_PUBLISHED: dict[Strategy, Callable[[Request, GpuType], _Answer]] = {
    "igniter": _igniter,
    "ffd+": lambda request, gpu: _igniter(request, gpu, first_fit=True, aware=False),
    "ffd++": lambda request, gpu: _igniter(request, gpu, first_fit=True),
    "gslice+": _gslice,
    "gpu-lets+": _gpu_lets,
}
"""The bound these report is the sum of Theorem 1's least shares, in GPUs."""
