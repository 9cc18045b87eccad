"""The joint search over share and largest batch for all models of one GPU. Pure.

1. For a growth factor g, find for every model the least share that holds its SLO at g times its
   rate, given how the others then execute; repeat until nothing changes (as Algorithm 2 of Xu et
   al., IEEE TPDS 34(3), 2023, but on the P99 instead of a halved mean).
2. If the shares fit on the GPU at g = 1, raise g as far as they still fit: the plan that leaves
   every model the same head-room.
3. If they do not, let models go, the least important first, until the rest fit; those let go get
   what is left.

Each step is found by guesses (see :mod:`igniterd.decide.tenant`) and then settled with the queue
itself, which is some hundred times slower. Every answer is rounded to the board's unit of share.

A queue delay is never planned: it lowers no P99 (``bench/delays.py``), and as relief for the
neighbours, by fewer and fuller batches, it was chosen on none of 60 random GPUs by a search that
had it (``bench/search.py``). One that is configured counts in how a model fares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.colocation import beside_on_busiest
from igniterd.decide.room import Reserved, Room, granted_on
from igniterd.decide.shed import best_effort_of, equal_shares
from igniterd.decide.tenant import EPS, Candidate, TenantSearch
from igniterd.predict import Demand, LatencyPrediction, LatencyPredictor, Neighbours
from igniterd.records import Allocation

SETTLE_ROUNDS = 12
FREE_ROUNDS = 3
"""Neighbours answer each other: after so many rounds a share only grows, so that it ends."""
GROWTHS = (1.03, 1.07, 1.12, 1.2, 1.3, 1.45, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
CLOSE = 1.0
"""Units of share by which a guess may be above the whole GPU and still be looked into."""
HOPELESS = 0.08
"""Part of a GPU by which it may not."""
GIVE = 0.05
"""Steps in which those let go are given more of what is left."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """The plan for one GPU.

    ``headroom``: every kept model's rate may grow by this factor; below 1 (and ``kept`` incomplete)
    when not all can be kept. ``reasons`` says of each model let go why; ``needs`` the least share
    that would hold it, where one would.
    """

    allocations: Mapping[str, Allocation]
    served: Mapping[str, LatencyPrediction]
    kept: frozenset[str]
    headroom: float
    # by GPU (``room.ONE`` where there is one): the sum of the least shares at the present rates,
    # which it must give
    least: Mapping[str, float]
    reasons: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        return not self.reasons

    @property
    def least_share(self) -> float:
        """What all GPUs together must give."""
        return sum(self.least.values())


Settled = tuple[dict[str, Allocation], dict[str, LatencyPrediction]]
Fixed = Mapping[str, tuple[Allocation, LatencyPrediction]]


class Search:
    """One search on one GPU; keeps its warm start, and how far its guesses are off, from one growth
    factor to the next."""

    def __init__(
        self, predictor: LatencyPredictor, demands: Sequence[Demand], reserved: Reserved = 0.0
    ) -> None:
        self.predictor = predictor
        self.unit = predictor.model.share_unit
        self.demands = list(demands)
        self.room = Room.of(demands, reserved)
        self.several = any(demand.gpus for demand in demands)
        self.tenants = [TenantSearch(predictor, d) for d in demands]

    def settle(
        self, growth: float, fixed: Fixed | None = None, *, guess: bool = False
    ) -> Settled | str:
        """Least shares of all models together at ``growth``, ``fixed`` ones as they are; or the
        name of one that no share holds.

        ``guess``: without asking the queue.
        """
        for tenant in self.tenants:
            tenant.start(growth, (fixed or {}).get(tenant.demand.model))
        for turn in range(SETTLE_ROUNDS):
            changed = False
            for tenant in self.tenants:
                if tenant.fixed:
                    continue
                beside = self._beside(tenant)
                moved = (
                    tenant.guess(beside, turn < FREE_ROUNDS)
                    if guess
                    else tenant.check(beside, turn < FREE_ROUNDS)
                )
                if moved is None:
                    return tenant.demand.model
                changed |= moved
            if not changed:
                break
        return self._allocations(), {
            s.demand.model: s.service for s in self.tenants if s.service is not None
        }

    def _allocations(self) -> dict[str, Allocation]:
        return {tenant.demand.model: tenant.allocation for tenant in self.tenants}

    def least(
        self, allocations: Mapping[str, Allocation], names: Iterable[str]
    ) -> dict[str, float]:
        """What ``names`` are granted, by GPU."""
        kept = set(names)
        return {
            gpu: sum(
                granted_on(d, allocations[d.model], gpu) for d in self.demands if d.model in kept
            )
            for gpu in self.room.capacity
        }

    def highest(
        self, count: int, settle: Callable[[int, bool], Settled | str]
    ) -> tuple[int, Settled] | None:
        """The last of ``count`` ever harder things that fits, and how; None when the first does
        not.

        ``settle(i, guess)`` tries one. What fits by guess, or nearly, is sought by bisection and
        then settled from the top down.
        """
        low, high = 0, count  # what is below `low` fits by guess, `high` does not
        positions: dict[int, list[Candidate]] = {}
        start = self._positions()
        while low < high:
            middle = (low + high) // 2
            if self._fits(settle(middle, True), CLOSE * self.unit):
                positions[middle], low = self._positions(), middle + 1
            else:
                high = middle
                self._back_to(positions.get(low - 1, start))
        for at in range(low - 1, -1, -1):
            self._back_to(positions.get(at, start))
            settled = settle(at, False)
            if not isinstance(settled, str) and self._fits(settled):
                return at, settled
        return None

    def _fits(self, settled: Settled | str, over: float = 0.0) -> bool:
        return not isinstance(settled, str) and self.room.holds(settled[0], over=over + EPS)

    def _positions(self) -> list[Candidate]:
        return [tenant.position for tenant in self.tenants]

    def _back_to(self, positions: Sequence[Candidate]) -> None:
        for tenant, position in zip(self.tenants, positions, strict=True):
            tenant.position = position

    def widest(self) -> GpuPlan | None:
        """The plan with the largest common growth factor; None when the models do not fit on this
        GPU together."""
        if not self._fits(self.settle(1.0, guess=True), HOPELESS):
            return None
        base, names = self.settle(1.0), frozenset(d.model for d in self.demands)
        if isinstance(base, str) or not self._fits(base):
            return None
        least = self._positions()
        wider = self.highest(len(GROWTHS), lambda i, guess: self.settle(GROWTHS[i], guess=guess))
        if wider is None:
            self._back_to(least)
        headroom = GROWTHS[wider[0]] if wider else 1.0
        self._spread(headroom)
        served = self._roomy()
        return GpuPlan(
            self._allocations(),
            served,
            names,
            headroom,
            self.least(base[0], names),
        )

    def overfull(self) -> frozenset[str]:
        """The GPUs that the models do not fit on, by guess."""
        settled = self.settle(1.0, guess=True)
        if isinstance(settled, str):
            return frozenset(next(d.gpus for d in self.demands if d.model == settled))
        return self.room.overfull(settled[0], over=EPS)

    def _beside(self, tenant: TenantSearch) -> Neighbours:
        if self.several:
            felt = [s.as_neighbours for s in self.tenants]
            return beside_on_busiest(
                self.tenants.index(tenant), [d.gpus for d in self.demands], felt
            )
        return sum((s.as_neighbours for s in self.tenants if s is not tenant), tenant.siblings)

    def _spread(self, growth: float) -> None:
        """Give what is left of the GPU to the models in proportion to their shares, and the rest of
        that to whoever is nearest to its SLO at ``growth``; to nobody more than speeds it up."""
        steered = [
            tenant
            for tenant in self.tenants
            if tenant.demand.steerable and tenant.demand.pinned is None
        ]
        if not steered:
            return
        most = {tenant: tenant.enough(self._beside(tenant)) for tenant in steered}
        spare = self._units_left()
        total = {gpu: sum(tenant.granted_on(gpu) for tenant in steered) for gpu in spare}
        for tenant in steered:
            units = tenant.position.units
            more = min(
                spare[gpu] * units // total[gpu] for gpu in spare if tenant.demand.instances_on(gpu)
            )
            tenant.move(units + max(0, min(more, most[tenant] - units)))
        left = self._units_left()
        slo_ratio = {tenant: tenant.slo_ratio(self._beside(tenant)) for tenant in self.tenants}
        while True:
            growing = [
                tenant
                for tenant in steered
                if tenant.position.units < most[tenant]
                and all(tenant.demand.instances_on(gpu) <= left[gpu] for gpu in left)
            ]
            if not growing:
                break
            worst = max(growing, key=slo_ratio.__getitem__)
            worst.move(worst.position.units + 1)
            slo_ratio[worst] = worst.slo_ratio(self._beside(worst))
            for gpu in left:
                left[gpu] -= worst.demand.instances_on(gpu)

    def _units_left(self) -> dict[str, int]:
        """By GPU: whole units of share that nobody has."""
        left = {}
        for gpu, capacity in self.room.capacity.items():
            pinned = sum(granted_on(d, d.pinned, gpu) for d in self.demands if d.pinned is not None)
            granted = sum(
                tenant.granted_on(gpu)
                for tenant in self.tenants
                if tenant.demand.steerable and tenant.demand.pinned is None
            )
            left[gpu] = max(0, math.floor((capacity - pinned) / self.unit + EPS) - granted)
        return left

    def _roomy(self) -> dict[str, LatencyPrediction]:
        """Larger batch limits where they cost next to nothing at the present rates, and how all
        then do.

        A limit that is not reached now is room for a burst.
        """
        before = self._positions()
        for tenant in self.tenants:
            tenant.start(1.0)
        for turn in range(2):
            for tenant in self.tenants:
                tenant.enlarge_batch(self._beside(tenant), largest=turn > 0)
        near = {s.demand.model: s.service for s in self.tenants if s.service is not None}
        served = self.predictor.together(self.demands, self._allocations(), near=near)
        if any(served[d.model].p99_ms > d.slo_ms for d in self.demands):
            self._back_to(before)
            served = self.predictor.together(self.demands, self._allocations(), near=near)
        return served


def find(
    predictor: LatencyPredictor,
    demands: Sequence[Demand],
    best_effort: Sequence[Demand] = (),
    reserved: Reserved = 0.0,
) -> GpuPlan:
    """The plan for one GPU: all models kept with the largest common head-room, or as many as fit,
    the most important first.

    ``best_effort`` are shed from the beginning: they get what is left. ``reserved``: the part of
    the GPU that others hold. A pinned model stays as it is, whatever is found.
    """
    if not best_effort:
        found = Search(
            predictor, sorted(demands, key=lambda d: (d.priority, d.model)), reserved
        ).widest()
        if found is not None:
            return found
    reasons: dict[str, str] = {}
    needs: dict[str, float] = {}
    for demand in demands:  # what no share holds even alone is let go before anything else
        alone = Search(predictor, [demand]).settle(1.0)
        if isinstance(alone, str):
            reasons[demand.model] = _hopeless(predictor, demand)
        else:
            needs[demand.model] = alone[0][demand.model].granted or 1.0
    order = [
        d for d in sorted(demands, key=lambda d: (d.priority, d.model)) if d.model not in reasons
    ]
    shed = [*best_effort, *(d for d in demands if d.model in reasons)]
    while True:
        fit = _fit(predictor, order, shed, reserved)
        if fit is not None:
            return replace(
                fit, reasons=reasons, needs={m: s for m, s in needs.items() if m in reasons}
            )
        out = _leaver(_in_the_way(predictor, order, reserved), needs)
        order.remove(out)
        shed.append(out)
        reasons[out.model] = (
            f"does not fit: it needs {needs[out.model]:.1%} of this GPU beside more important "
            "models "
            f"(priority {out.priority}); all together would need more than 100 %"
        )


def _in_the_way(
    predictor: LatencyPredictor, order: Sequence[Demand], reserved: Reserved
) -> Sequence[Demand]:
    """Those of whom one has to go: of several GPUs, the models on one that is overfull."""
    if not any(demand.gpus for demand in order):
        return order
    overfull = Search(predictor, order, reserved).overfull()
    return [d for d in order if overfull & set(d.gpus)] or order


def _leaver(order: Sequence[Demand], needs: Mapping[str, float]) -> Demand:
    """Whom to let go next: the least important; among equals the one that needs most, so that the
    fewest have to go."""
    return max(order, key=lambda d: (d.priority, needs[d.model], d.model))


def _hopeless(predictor: LatencyPredictor, demand: Demand) -> str:
    idle = replace(demand, rate_per_s=0.0)
    fastest = predictor.served(idle, Allocation(demand.max_share, 1), ()).p50_ms
    if fastest > demand.slo_ms:
        return (
            f"its SLO leaves {demand.slo_ms:.3g} ms for a request, "
            f"but one alone takes {fastest:.3g} ms at its largest share ({demand.max_share:.0%})"
        )
    return (
        f"{demand.rate_per_s:.4g} requests/s are more than {demand.max_share:.0%} of this GPU "
        f"serves within {demand.slo_ms:.3g} ms"
    )


def _fit(
    predictor: LatencyPredictor, kept: Sequence[Demand], shed: Sequence[Demand], reserved: Reserved
) -> GpuPlan | None:
    """A plan that holds ``kept`` while ``shed`` get no more than what is left; None if ``kept`` do
    not fit."""
    if not shed:
        return Search(predictor, kept, reserved).widest()
    if not kept:
        allocations = equal_shares(shed, reserved, predictor.model.share_unit)
        return GpuPlan(allocations, predictor.together(shed, allocations), frozenset(), 0.0, {})
    unit = predictor.model.share_unit
    floors = {d.model: TenantSearch(predictor, d).low for d in shed}
    search, step = Search(predictor, [*kept, *shed], reserved), max(1, round(GIVE / unit))
    spare = max(search.room.capacity.values())

    def settle(turn: int, guess: bool) -> Settled | str:
        fixed = {
            d.model: best_effort_of(d, round((floors[d.model] + turn * step) * unit, 6))
            for d in shed
        }
        return search.settle(1.0, fixed, guess=guess)

    most = search.highest(1 + max(0, math.floor((spare + EPS) / (step * unit))), settle)
    if most is None:
        return None
    allocations, near = most[1]
    names = frozenset(d.model for d in kept)
    served = predictor.together([*kept, *shed], allocations, near=near)
    return GpuPlan(allocations, served, names, 1.0, search.least(allocations, names))
