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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.decide.steps import granted
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
LEAST = 0.01
"""The least share that MPS knows."""
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
    least_share: float  # the sum of the least shares at the present rates: what the GPU must give
    reasons: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        return not self.reasons


Settled = tuple[dict[str, Allocation], dict[str, LatencyPrediction]]
Fixed = Mapping[str, tuple[Allocation, LatencyPrediction]]


class Search:
    """One search on one GPU; keeps its warm start, and how far its guesses are off, from one growth
    factor to the next."""

    def __init__(
        self, predictor: LatencyPredictor, demands: Sequence[Demand], reserved: float = 0.0
    ) -> None:
        self.predictor = predictor
        self.unit = predictor.model.share_unit
        self.demands = list(demands)
        self.capacity = 1.0 - reserved - sum(d.reserved for d in demands)
        """What of the GPU there is to give."""
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

    def total(self, allocations: Mapping[str, Allocation]) -> float:
        return sum(a.granted for a in allocations.values() if a.granted is not None)

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
        return not isinstance(settled, str) and self.total(settled[0]) <= self.capacity + over + EPS

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
        base = self.settle(1.0)
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
            frozenset(d.model for d in self.demands),
            headroom,
            self.total(base[0]),
        )

    def _beside(self, tenant: TenantSearch) -> Neighbours:
        return sum((s.as_neighbours for s in self.tenants if s is not tenant), tenant.siblings)

    def _spread(self, growth: float) -> None:
        """Give what is left of the GPU to the models in proportion to their shares, and the rest of
        that to whoever is nearest to its SLO at ``growth``: a share unused helps nobody."""
        steered = [
            tenant
            for tenant in self.tenants
            if tenant.demand.steerable and tenant.demand.pinned is None
        ]
        if not steered:
            return
        total = sum(tenant.granted for tenant in steered)
        pinned = sum(a.granted or 0.0 for d in self.demands if (a := d.pinned) is not None)
        units = max(total, math.floor((self.capacity - pinned) / self.unit + EPS))
        spare = units - total
        for tenant in steered:
            more = min(spare * tenant.position.units // total, tenant.high - tenant.position.units)
            tenant.move(tenant.position.units + more)
        left = units - sum(tenant.granted for tenant in steered)
        slo_ratio = {tenant: tenant.slo_ratio(self._beside(tenant)) for tenant in self.tenants}
        while left > 0:
            growing = [
                tenant
                for tenant in steered
                if tenant.position.units < tenant.high and tenant.demand.instances <= left
            ]
            if not growing:
                break
            worst = max(growing, key=slo_ratio.__getitem__)
            worst.move(worst.position.units + 1)
            slo_ratio[worst] = worst.slo_ratio(self._beside(worst))
            left -= worst.demand.instances

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
    reserved: float = 0.0,
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
        out = _leaver(order, needs)
        order.remove(out)
        shed.append(out)
        reasons[out.model] = (
            f"does not fit: it needs {needs[out.model]:.1%} of this GPU beside more important "
            "models "
            f"(priority {out.priority}); all together would need more than 100 %"
        )


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
    predictor: LatencyPredictor, kept: Sequence[Demand], shed: Sequence[Demand], reserved: float
) -> GpuPlan | None:
    """A plan that holds ``kept`` while ``shed`` get no more than what is left; None if ``kept`` do
    not fit."""
    if not shed:
        return Search(predictor, kept, reserved).widest()
    if not kept:
        return _all_shed(predictor, shed, reserved)
    unit = predictor.model.share_unit
    floors = {d.model: TenantSearch(predictor, d).low for d in shed}
    search, step = Search(predictor, [*kept, *shed], reserved), max(1, round(GIVE / unit))
    spare = search.capacity - sum(floors[d.model] * d.instances for d in shed) * unit

    def settle(turn: int, guess: bool) -> Settled | str:
        fixed = {
            d.model: _best_effort(d, round((floors[d.model] + turn * step) * unit, 6)) for d in shed
        }
        return search.settle(1.0, fixed, guess=guess)

    most = search.highest(1 + max(0, math.floor((spare + EPS) / (step * unit))), settle)
    if most is None:
        return None
    allocations, near = most[1]
    names = frozenset(d.model for d in kept)
    served = predictor.together([*kept, *shed], allocations, near=near)
    return GpuPlan(
        allocations,
        served,
        names,
        1.0,
        search.total({m: a for m, a in allocations.items() if m in names}),
    )


def _best_effort(demand: Demand, share: float) -> tuple[Allocation, LatencyPrediction]:
    """A model let go: always busy, with its largest batch, on ``share``."""
    batch = demand.keeps_batch or demand.max_batch
    allocation = demand.pinned or Allocation(
        share if demand.steerable else None, batch, 0, demand.instances
    )
    return allocation, LatencyPrediction(math.inf, math.inf, math.inf, 1.0, float(demand.max_batch))


def _all_shed(predictor: LatencyPredictor, shed: Sequence[Demand], reserved: float) -> GpuPlan:
    """Nobody can be held: equal shares of what is left, and said."""
    pinned = sum(d.pinned.granted or 0.0 for d in shed if d.pinned is not None)
    capacity = max(0.0, 1.0 - reserved - pinned - sum(d.reserved for d in shed))
    takers = sum(d.instances for d in shed if d.pinned is None and d.steerable)
    share = _equal(capacity, takers, predictor.model.share_unit)
    allocations = {d.model: _best_effort(d, min(share, d.max_share))[0] for d in shed}
    return GpuPlan(allocations, predictor.together(shed, allocations), frozenset(), 0.0, 0.0)


def _equal(capacity: float, takers: int, unit: float) -> float:
    """``capacity`` in equal parts: whole units, or thousandths where there are more takers than
    units."""
    if not takers:
        return 1.0
    units = math.floor(capacity / takers / unit + EPS)
    return (
        round(units * unit, 6) if units else max(LEAST, math.floor(capacity / takers * 1000) / 1000)
    )


def fewest_changes(
    predictor: LatencyPredictor,
    demands: Sequence[Demand],
    here: Mapping[str, Allocation],
    found: GpuPlan,
    capacity: float,
) -> dict[str, Allocation]:
    """The plan without the changes that are not worth a reload: those whose absence leaves half its
    head-room."""
    target = dict(found.allocations)
    growth = 1 + (found.headroom - 1) / 2 if found.feasible else 1.0
    for name in sorted(target, key=lambda m: abs(granted(target[m]) - granted(here[m]))):
        if target[name] == here[name] or (here[name].share is None) != (target[name].share is None):
            continue
        candidate = {**target, name: here[name]}
        if sum(granted(a) for a in candidate.values() if a.share is not None) > capacity + 1e-9:
            continue
        served = predictor.together(demands, candidate, growth=max(1.0, growth))
        if all(served[d.model].p99_ms <= d.slo_ms for d in demands if d.model in found.kept):
            target = candidate
    return target
