"""gpu-lets+: Choi et al., USENIX ATC 2022, as the evaluation of Xu et al. (IEEE TPDS 34(3), 2023,
sec. 5) describes it.

At most two tenants share a GPU, with shares from a short list, best fit. A linear regression on the
L2 and DRAM use of both tenants predicts their interference. Each workload takes the smallest share
that is enough: latency below half the SLO, throughput above the rate. Solo latencies come from the
published performance model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.api import Tenant
from igniterd.perf.igniter_model import IgniterModel
from igniterd.perf.profile import Profile
from igniterd.planner.plan import PlannedGpu, PlannedTenant
from igniterd.planner.workloads import Infeasible, Workload

GPU_LETS = (0.2, 0.4, 0.5, 0.6, 0.8)
"""Shares a gpu-let may have; a workload that needs more takes a GPU of its own."""


class Contention:
    """Slowdown of a pair as a linear function of the L2 and DRAM use of both, fitted from a
    profile's co-runs.

    L2 and DRAM use of a tenant are linear in its rate (items/ms), fitted per model from the solo
    points that have them; a model without such points counts as using none.
    """

    def __init__(self, profile: Profile, model: IgniterModel) -> None:
        self._model = model
        self._lines = {
            name: (self._line(profile, name, "l2_pct"), self._line(profile, name, "dram_pct"))
            for name in profile.models
        }
        rows: list[F64] = []
        seen: list[float] = []
        for run in profile.co_runs:
            # a pair of models, not a model beside its copy
            if len({t.model for t in run.tenants}) == len(run.tenants) == 2:
                for me, other in (run.tenants, run.tenants[::-1]):
                    mine, theirs = (
                        Tenant(me.model, me.batch, me.share),
                        Tenant(other.model, other.batch, other.share),
                    )
                    rows.append(np.array([1.0, *self.use_pct(mine), *self.use_pct(theirs)]))
                    seen.append(me.latency_ms / self.solo_ms(mine))
        fitted = (
            np.linalg.lstsq(np.array(rows), np.array(seen), rcond=None)[0]
            if rows
            else np.array([1.0, 0, 0, 0, 0])
        )
        self._weights: list[float] = fitted.tolist()

    def solo_ms(self, tenant: Tenant) -> float:
        """Latency alone."""
        return self._model.predict([tenant])[0].latency_ms

    def use_pct(self, tenant: Tenant) -> tuple[float, float]:
        """L2 and DRAM use (% of peak) of a tenant."""
        pace = tenant.batch / self.solo_ms(tenant)
        l2, dram = self._lines[tenant.model]
        return l2[0] * pace + l2[1], dram[0] * pace + dram[1]

    def slowdown(self, own: tuple[float, float], other: tuple[float, float]) -> float:
        """Predicted latency beside another over the latency alone, at least 1; from the use of
        both."""
        w = self._weights
        return max(1.0, w[0] + w[1] * own[0] + w[2] * own[1] + w[3] * other[0] + w[4] * other[1])

    def _line(self, profile: Profile, name: str, field: str) -> tuple[float, float]:
        points = [p for p in profile.models[name].solo if getattr(p, field) is not None]
        if len(points) < 2:
            return 0.0, 0.0
        pace = [p.batch / p.latency_ms for p in points]
        slope, intercept = np.polyfit(pace, [getattr(p, field) for p in points], 1)
        return float(slope), float(intercept)


@dataclass(frozen=True, slots=True)
class _Let:
    """A workload at one share: the largest batch within half its SLO."""

    workload: Workload
    share: float
    batch: int
    solo_ms: float
    use: tuple[float, float]  # L2, DRAM


def gpu_lets(
    model: IgniterModel,
    profile: Profile,
    workloads: Sequence[Workload],
    gpu: str,
    price: float | None,
) -> tuple[tuple[PlannedGpu, ...], tuple[Infeasible, ...]]:
    """gpu-lets+: largest need first; the GPU with one tenant that is left fullest and where both
    hold; else a new GPU."""
    contention = Contention(profile, model)
    options = {w.name: _lets(model, contention, w) for w in workloads}
    rejected = tuple(_too_large(w) for w in workloads if not options[w.name])
    queue = sorted(
        (w for w in workloads if options[w.name]), key=lambda w: -options[w.name][0].share
    )
    hosts: list[list[_Let]] = []
    # least share -> GPUs with one tenant, its options
    half: dict[float, dict[int, Sequence[_Let]]] = {share: {} for share in GPU_LETS}
    for workload in queue:
        lets = options[workload.name]
        found = _best_partner(contention, half, lets)
        if found is not None:
            host, pair = found
            half[hosts[host][0].share].pop(host)
            hosts[host] = list(pair)
            continue
        if lets[0].share < 1.0:
            half[lets[0].share][len(hosts)] = lets
        hosts.append([lets[0]])
    return tuple(_planned(host, gpu, price) for host in hosts), rejected


def _planned(lets: Sequence[_Let], gpu: str, price: float | None) -> PlannedGpu:
    seats = (
        PlannedTenant(
            x.workload.name,
            x.workload.model,
            x.workload.slo_p99_ms,
            x.workload.rate_per_s,
            x.share,
            x.batch,
        )
        for x in lets
    )
    return PlannedGpu(gpu, tuple(seats), price)


def _best_partner(
    contention: Contention, half: Mapping[float, Mapping[int, Sequence[_Let]]], lets: Sequence[_Let]
) -> tuple[int, tuple[_Let, _Let]] | None:
    """The GPU with one tenant, and the shares of both, that leave least unused and hold; the tenant
    there may grow for it."""
    fits = [
        (1.0 - share - let.share, let, share)
        for let in lets
        for share in GPU_LETS
        if let.share + share <= 1.0 + 1e-9
    ]
    for _, let, share in sorted(fits, key=lambda fit: fit[0]):
        for host, others in half[share].items():
            for other in others:
                if other.share + let.share > 1.0 + 1e-9:
                    break
                if _holds(contention, let, other) and _holds(contention, other, let):
                    return host, (other, let)
    return None


def _holds(contention: Contention, own: _Let, other: _Let) -> bool:
    latency = own.solo_ms * contention.slowdown(own.use, other.use)
    return (
        latency <= own.workload.slo_p99_ms / 2.0
        and 1000.0 * own.batch / latency >= own.workload.rate_per_s
    )


def _lets(model: IgniterModel, contention: Contention, workload: Workload) -> tuple[_Let, ...]:
    """The workload at every listed share that is enough alone, smallest first."""
    found = []
    top = model.max_batch(workload.model)
    for share in (*GPU_LETS, 1.0):
        curve = model.service_curve_ms(workload.model, share, (), top)[0]
        batch = int(np.count_nonzero(curve <= workload.slo_p99_ms / 2.0))
        if batch and 1000.0 * batch / curve[batch - 1] >= workload.rate_per_s:
            found.append(
                _Let(
                    workload,
                    share,
                    batch,
                    float(curve[batch - 1]),
                    contention.use_pct(Tenant(workload.model, batch, share)),
                )
            )
    return tuple(found)


def _too_large(workload: Workload) -> Infeasible:
    return Infeasible(
        workload.name,
        f"no batch of {workload.model} serves {workload.rate_per_s:g}/s on a whole GPU within "
        f"half of {workload.slo_p99_ms:g} ms",
    )
