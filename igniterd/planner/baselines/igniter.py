"""The published provisioning strategy and its first-fit variants: F. Xu et al., IEEE TPDS 34(3),
2023 (arXiv 2211.01713), sec. 4.

It plans mean latencies below half the SLO, one GPU per workload, on one GPU type.
:mod:`igniterd.planner.kernels.igniter` holds the loops; here are Theorem 1, what the loops read,
and the words for what cannot be planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.perf.igniter_model import IgniterModel
from igniterd.planner.kernels import igniter as kernels
from igniterd.planner.plan import PlannedGpu, PlannedTenant
from igniterd.planner.workloads import Infeasible, Workload

_EPS = 1e-9
"""Slack when a requirement is rounded up to whole share units, against the last bits of a
division."""


_FIELDS = (
    "k1",
    "k2",
    "k3",
    "k4",
    "k5",
    "gap_ms",
    "kernels",
    "alpha_cache",
    "a_power",
    "b_power",
    "a_l2",
    "b_l2",
    "input_bytes",
    "output_bytes",
)
"""The coefficients Theorem 1 and the kernels read."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What Theorem 1 asks of each workload, all shapes (n,): batch, least share in units (0 where
    there is none), latency allowed."""

    batch: I64
    units: I64
    limit_ms: F64


@dataclass(frozen=True, slots=True)
class Demand:
    """The workloads that can be planned, as arrays for the kernels; ``rejected`` are the others."""

    workloads: tuple[Workload, ...]
    batch: I64  # (n,)
    lower: I64  # (n,) least share in units
    coef: F64  # (n, columns), as kernels.Case.coef
    rejected: tuple[Infeasible, ...]

    @property
    def order(self) -> I64:
        """Largest least share first; ties in the order given."""
        return np.argsort(-self.lower, kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Where the workloads went: GPU and share units of each, shapes (n,)."""

    gpu_of: I64
    units: I64
    gpus: int


class Theorem1:
    """b_appr and r_lower of Theorem 1 for many workloads at once.

    b_appr = ceil(T R B / (2 (B + R d_load))); r_lower = r_unit ceil((gamma / delta - k4) / r_unit),
    with gamma = k1 b^2 + k2 b + k3 and delta = T/2 - (d_load + d_feedback) b / B - k5 - k_sch n_k.
    Where b_appr is above the largest batch profiled, that batch is used and must be done in b / R,
    so that the rate is still served.
    """

    def __init__(self, model: IgniterModel) -> None:
        self.model = model
        self.index = {name: i for i, name in enumerate(model.coefficients)}
        self._of = {
            f: np.array([getattr(c, f) for c in model.coefficients.values()], dtype=np.float64)
            for f in _FIELDS
        }
        self._most = np.array(
            [model.max_batch(name) for name in model.coefficients], dtype=np.float64
        )

    def __call__(self, which: I64, slo_ms: F64, rate_per_s: F64) -> Requirements:
        """Requirements of workloads of models ``which`` (row numbers, see ``index``); all shapes
        (n,)."""
        c = {field: values[which] for field, values in self._of.items()}
        rate, bandwidth = rate_per_s / 1000.0, self.model.board.bytes_per_ms
        wanted = np.ceil(
            slo_ms * rate * bandwidth / (2.0 * (bandwidth + rate * c["input_bytes"])) - _EPS
        )
        batch = np.clip(wanted, 1.0, self._most[which])
        sustained = batch / rate + c["input_bytes"] * batch / bandwidth
        limit = np.where(wanted <= batch, slo_ms / 2.0, np.minimum(slo_ms / 2.0, sustained))
        delta = (
            limit
            - (c["input_bytes"] + c["output_bytes"]) * batch / bandwidth
            - c["k5"]
            - c["gap_ms"]
        )
        unit = 100.0 * self.model.share_unit
        gamma = c["k1"] * batch**2 + c["k2"] * batch + c["k3"]
        units = np.ceil((gamma / np.where(delta > 0, delta, np.nan) - c["k4"]) / unit - _EPS)
        fits = units <= capacity_units(self.model)  # false for NaN
        return Requirements(
            batch.astype(np.int64),
            np.where(fits, np.maximum(units, 1.0), 0.0).astype(np.int64),
            limit,
        )

    def rows(self, which: I64, need: Requirements) -> F64:
        """What the kernels read of each workload, (n, columns): ``kernels.Case.coef``."""
        c = {field: values[which] for field, values in self._of.items()}
        batch = need.batch.astype(np.float64)
        gamma = c["k1"] * batch**2 + c["k2"] * batch + c["k3"]
        transfer = (c["input_bytes"] + c["output_bytes"]) * batch / self.model.board.bytes_per_ms
        columns = (
            c["gap_ms"],
            c["kernels"],
            c["alpha_cache"],
            gamma,
            c["k4"],
            c["k5"],
            batch,
            transfer,
        )
        return np.column_stack(
            (*columns, c["a_power"], c["b_power"], c["a_l2"], c["b_l2"], need.limit_ms)
        )

    def least_slo_ms(self, name: str, rate_per_s: float, above_ms: float) -> float | None:
        """The least SLO (to 0.1 %) from ``above_ms`` to 64 times it that one GPU can hold at this
        rate."""
        return self._least(name, lambda x: (x, np.full_like(x, rate_per_s)), above_ms, 64.0)

    def largest_rate_per_s(self, name: str, slo_ms: float, below_per_s: float) -> float | None:
        """The largest rate (to 0.1 %) up to ``below_per_s`` that one GPU can hold within this SLO;
        ``None`` if not even a millionth."""
        found = self._least(
            name, lambda x: (np.full_like(x, slo_ms), 1.0 / x), 1.0 / below_per_s, 1e6
        )
        return None if found is None else 1.0 / found

    def _least(
        self, name: str, case: Callable[[F64], tuple[F64, F64]], start: float, most: float
    ) -> float | None:
        """The least x in [start, start * most] that holds, by two nested grids; requirements only
        ease as x grows."""
        low, high = start, start * most
        for _ in range(2):
            grid = np.geomspace(low, high, 129)
            units = self(np.full(grid.shape, self.index[name]), *case(grid)).units
            found = np.flatnonzero(units)
            if not found.size:
                return None
            high = float(grid[found[0]])
            low = float(grid[max(found[0] - 1, 0)])
        return high


def capacity_units(model: IgniterModel) -> int:
    """Whole share units of one GPU."""
    return math.floor(1.0 / model.share_unit + _EPS)


def demand_of(model: IgniterModel, workloads: Sequence[Workload]) -> Demand:
    """Theorem 1 for every workload; those it has no answer for are ``rejected``, by reason and with
    what would be possible."""
    theorem = Theorem1(model)
    known = [w for w in workloads if w.model in theorem.index]
    which = np.array([theorem.index[w.model] for w in known], dtype=np.int64)
    need = theorem(
        which,
        np.array([w.slo_p99_ms for w in known], dtype=np.float64),
        np.array([w.rate_per_s for w in known], dtype=np.float64),
    )
    kept = np.flatnonzero(need.units)
    rejected = [unknown_model(w, model.models) for w in workloads if w.model not in theorem.index]
    rejected += [_explain(theorem, known[i]) for i in np.flatnonzero(need.units == 0).tolist()]
    chosen = Requirements(need.batch[kept], need.units[kept], need.limit_ms[kept])
    coef = theorem.rows(which[kept], chosen)
    return Demand(
        tuple(known[i] for i in kept.tolist()), chosen.batch, chosen.units, coef, tuple(rejected)
    )


def unknown_model(workload: Workload, known: Sequence[str]) -> Infeasible:
    """The words for a model without a profile."""
    return Infeasible(
        workload.name,
        f"model {workload.model!r} is not profiled on this GPU; profiled: "
        f"{', '.join(sorted(known))}",
    )


def board_of(model: IgniterModel) -> kernels.Board:
    """The GPU for the kernels."""
    board = model.board
    return kernels.Board(
        idle_w=board.idle_power_w,
        power_limit_w=board.power_limit_w,
        clock_mhz=board.top_clock_mhz,
        alpha_f=board.alpha_f,
        alpha_sch=board.alpha_sch,
        beta_sch=board.beta_sch,
        unit_pct=100.0 * model.share_unit,
    )


def place(
    model: IgniterModel, demand: Demand, *, first_fit: bool = False, aware: bool = True
) -> Allocation:
    """Algorithm 1. ``first_fit`` with ``aware`` is FFD++, without it FFD+; neither is the published
    strategy."""
    n = len(demand.workloads)
    gpu_of, units = np.zeros(n, np.int64), np.zeros(n, np.int64)
    case = kernels.Case(
        coef=demand.coef,
        board=board_of(model),
        lower=demand.lower,
        capacity=capacity_units(model),
        first_fit=first_fit,
        aware=aware,
    )
    gpus = int(kernels.provision(case, demand.order, gpu_of, units)) if n else 0
    return Allocation(gpu_of, units, gpus)


def to_gpus(
    model: IgniterModel, demand: Demand, allocation: Allocation, gpu: str, price: float | None
) -> tuple[PlannedGpu, ...]:
    """The allocation as records, GPUs in the order they were opened."""
    tenants: list[list[PlannedTenant]] = [[] for _ in range(allocation.gpus)]
    for w, g, units, batch in zip(
        demand.workloads,
        allocation.gpu_of.tolist(),
        allocation.units.tolist(),
        demand.batch.tolist(),
        strict=True,
    ):
        tenants[g].append(
            PlannedTenant(
                w.name,
                w.model,
                w.slo_p99_ms,
                w.rate_per_s,
                round(units * model.share_unit, 9),
                batch,
            )
        )
    return tuple(PlannedGpu(gpu, tuple(seats), price) for seats in tenants)


def _explain(theorem: Theorem1, workload: Workload) -> Infeasible:
    """Why Theorem 1 has no answer for this workload, with the least SLO and the largest rate it has
    one for."""

    slo = theorem.least_slo_ms(workload.model, workload.rate_per_s, workload.slo_p99_ms)
    rate = theorem.largest_rate_per_s(workload.model, workload.slo_p99_ms, workload.rate_per_s)
    if rate is None:
        reason = (
            f"no share of one GPU brings {workload.model} below half of "
            f"{workload.slo_p99_ms:g} ms, at any rate"
        )
    else:
        asked = f"{workload.rate_per_s:g}/s within {workload.slo_p99_ms:g} ms"
        reason = f"{asked} needs more than one GPU, and this strategy does not split a workload"
    possible = (
        [f"the least SLO at {workload.rate_per_s:g}/s is {slo:.2f} ms"] if slo is not None else []
    )
    possible += (
        [f"the largest rate within {workload.slo_p99_ms:g} ms is {rate:.1f}/s"]
        if rate is not None
        else []
    )
    return Infeasible(workload.name, "; ".join([reason, *possible]), slo, rate)
