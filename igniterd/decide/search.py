"""The joint search over share, largest batch and queue delay for all models of one GPU. Pure.

1. For a growth factor g, find for every model the least share that holds its SLO at g times its rate, given how the others then
   execute; repeat until nothing changes (as Algorithm 2 of Xu et al., IEEE TPDS 34(3), 2023, but on the P99 instead of a halved mean).
2. If the shares fit on the GPU at g = 1, raise g as far as they still fit: the plan that leaves every model the same head-room.
3. If they do not, let models go, the least important first, until the rest fit; those let go get what is left.

Every answer is rounded to the board's unit of share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.model.api import Tenant
from igniterd.model.oracle import Demand, Oracle, Service, as_tenant
from igniterd.records import Allocation

SETTLE_ROUNDS = 8
GROWTHS = (1.03, 1.07, 1.12, 1.2, 1.3, 1.45, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
BATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
DELAY_FRACTIONS = (0.02, 0.05, 0.1)  # of the SLO
DELAY_GAIN = 0.98  # a queue delay must lower the worst P99 / SLO to this fraction to be worth its oddity
DELAY_RELIEF = 0.97  # of the time executing: a delay must save at least this much to be considered
FAR_OFF = 1.3  # of the SLO
ROOM_COST = 1.02  # of the P99, for a larger batch limit
EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Found:
    """The plan for one GPU.

    ``headroom``: every kept model's rate may grow by this factor; below 1 (and ``kept`` incomplete) when not all can be kept.
    ``reasons`` says of each model let go why; ``needs`` the least share that would hold it, where one would.
    """

    allocations: Mapping[str, Allocation]
    served: Mapping[str, Service]
    kept: frozenset[str]
    headroom: float
    least_share: float  # the sum of the least shares at the present rates: what the GPU must give
    reasons: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        return not self.reasons


class Search:
    """One search on one GPU; keeps its warm start from one growth factor to the next."""

    def __init__(self, oracle: Oracle, demands: Sequence[Demand]) -> None:
        self.oracle = oracle
        self.unit = oracle.model.share_unit
        self.demands = {d.model: d for d in demands}
        self._warm: dict[str, Allocation] = {}
        self._best: dict[str, int] = {}  # where the walk over batches last ended

    # ------------------------------------------------------------ one model

    def _sizes(self, demand: Demand) -> list[int]:
        return [b for b in BATCHES if demand.min_batch <= b < demand.max_batch] + [demand.max_batch]

    def _at(self, demand: Demand, units: int, tenants: list[Tenant], growth: float) -> tuple[int, Service]:
        """The best largest batch at a share, and how the model then fares.

        P99 falls with the largest batch while the queue is what hurts and rises, slowly, when big batches are: one valley. It is found
        by walking downhill from the batch that was best for this model before.
        """
        share, sizes = self._share(units), self._sizes(demand)
        fares = {}

        def p99_ms(at: int) -> float:
            if at not in fares:
                fares[at] = self.oracle.served(demand, Allocation(share, sizes[at], 0, demand.instances), tenants, growth=growth)
            return fares[at].p99_ms

        at = self._first_batch(demand, share, tenants, growth, sizes)
        while at + 1 < len(sizes) and (not math.isfinite(p99_ms(at)) or p99_ms(at + 1) < p99_ms(at)):
            at += 1
        while at > 0 and p99_ms(at - 1) < p99_ms(at):
            at -= 1
        p99_ms(at)
        self._best[demand.model] = at
        return sizes[at], fares[at]

    def _first_batch(self, demand: Demand, share: float, tenants: list[Tenant], growth: float, sizes: list[int]) -> int:
        """Where to begin: where the last walk ended, but not below the first batch that can carry the rate at all."""
        curve = self.oracle.curve_ms(demand, share, tenants)
        rate_per_ms = demand.rate_per_s * growth * demand.bias / 1000 / demand.instances
        carries = (i for i, b in enumerate(sizes) if rate_per_ms * curve[b - 1] < 0.98 * b)
        return max(self._best.get(demand.model, 0), next(carries, len(sizes) - 1))

    def _share(self, units: int) -> float:
        return round(min(1.0, units * self.unit), 6)

    def _bounds(self, demand: Demand) -> tuple[int, int]:
        low = max(1, math.ceil(demand.min_share / self.unit - EPS))
        return low, max(low, math.floor(demand.max_share / self.unit + EPS))

    def _holding(self, demand: Demand, units: int, tenants: list[Tenant], growth: float) -> tuple[int, Service] | None:
        """A largest batch with which the SLO holds at a share, and how the model then fares; None if there is none.

        The batch that was best lately is asked first, and when it is far off no other is: neighbouring batches differ by less.
        """
        share, sizes = self._share(units), self._sizes(demand)
        at = self._first_batch(demand, share, tenants, growth, sizes)
        service = self.oracle.served(demand, Allocation(share, sizes[at], 0, demand.instances), tenants, growth=growth)
        if service.p99_ms <= demand.slo_ms:
            return sizes[at], service
        if math.isfinite(service.p99_ms) and service.p99_ms > FAR_OFF * demand.slo_ms:
            return None
        batch, service = self._at(demand, units, tenants, growth)
        return (batch, service) if service.p99_ms <= demand.slo_ms else None

    def _least(self, demand: Demand, tenants: list[Tenant], growth: float, start: int) -> tuple[int, int, Service] | None:
        """Least units of share (with largest batch and service) that hold the SLO, searched outward from ``start``; None if none does."""
        low, high = self._bounds(demand)
        if not demand.steerable:
            low = high = round(1 / self.unit)
        found: dict[int, tuple[int, Service]] = {}

        def holds(units: int) -> bool:
            holding = self._holding(demand, units, tenants, growth)
            if holding is not None:
                found[units] = holding
            return holding is not None

        at = min(max(start, low), high)
        stride = 1
        if holds(at):
            while at > low and holds(max(low, at - stride)):
                at, stride = max(low, at - stride), stride * 2
            bad = max(low - 1, at - stride)
        else:
            bad = at
            while True:
                if bad == high:
                    return None
                at = min(high, bad + stride)
                if holds(at):
                    break
                bad, stride = at, stride * 2
        while at - bad > 1:
            middle = (at + bad) // 2
            at, bad = (middle, bad) if holds(middle) else (at, middle)
        return (at, *found[at])

    # ------------------------------------------------------------ all models of the GPU

    def settle(
        self, growth: float, fixed: Mapping[str, tuple[Allocation, Service]] | None = None
    ) -> tuple[dict[str, Allocation], dict[str, Service]] | str:
        """Least shares of all models together at ``growth``, ``fixed`` ones as they are; or the name of one that no share holds."""
        fixed = fixed or {}
        state: dict[str, tuple[Allocation, Service | None]] = {
            m: fixed.get(m) or (self._warm.get(m, Allocation(0.3, 4, 0, d.instances)), None) for m, d in self.demands.items()
        }
        for turn in range(SETTLE_ROUNDS):
            changed = False
            for name, demand in self.demands.items():
                if name in fixed:
                    continue
                beside = [as_tenant(self.demands[o], *state[o]) for o in self.demands if o != name]
                now = state[name][0]
                units = round((now.share or 1.0) / self.unit)
                least = self._least(demand, beside, growth, units)
                if least is None:
                    return name
                found, batch, service = least
                if turn >= 3 and found < units:  # neighbours answer each other: from here on only growth, so that it ends
                    found, batch, service = units, now.max_batch_size, state[name][1] or service
                allocation = Allocation(self._share(found) if demand.steerable else None, batch, 0, demand.instances)
                changed |= found != units or state[name][1] is None
                state[name] = (allocation, service)
            if not changed:
                break
        allocations = {m: a for m, (a, _) in state.items()}
        self._warm.update({m: a for m, a in allocations.items() if m not in fixed and a.share is not None})
        return allocations, {m: s for m, (_, s) in state.items() if s is not None}

    def total(self, allocations: Mapping[str, Allocation]) -> float:
        return sum(a.share for a in allocations.values() if a.share is not None)

    def widest(self) -> Found | None:
        """The plan with the largest common growth factor; None when the models do not fit on this GPU together."""
        base = self._fits(1.0)
        if base is None:
            return None
        best, low, high = base, 0, len(GROWTHS)  # the first `low` rungs fit, rung `high` does not
        rung = max(0, sum(growth * self.total(base[0]) <= 1 for growth in GROWTHS) - 1)  # shares grow about as rates do
        while low < high:
            wider = self._fits(GROWTHS[rung])
            best, low, high = (wider, rung + 1, high) if wider is not None else (best, low, rung)
            rung = min(rung + 1, high - 1) if wider is not None else max(rung - 1, low)
        headroom = GROWTHS[low - 1] if low else 1.0
        allocations = self._with_delays(self._roomier(self._spread(self._best_batches(*best, headroom))))
        served = self.oracle.together(list(self.demands.values()), allocations)
        return Found(allocations, served, frozenset(self.demands), headroom, self.total(base[0]))

    def _fits(self, growth: float) -> tuple[dict[str, Allocation], dict[str, Service]] | None:
        settled = self.settle(growth)
        return None if isinstance(settled, str) or self.total(settled[0]) > 1 + EPS else settled

    def _best_batches(self, allocations: dict[str, Allocation], served: dict[str, Service], growth: float) -> dict[str, Allocation]:
        """Each model's best largest batch at the share found, where the search had been content with one that holds."""
        out = dict(allocations)
        for name, demand in self.demands.items():
            share = allocations[name].share
            if share is not None:
                beside = [as_tenant(self.demands[o], allocations[o], served[o]) for o in self.demands if o != name]
                out[name] = replace(out[name], max_batch_size=self._at(demand, round(share / self.unit), beside, growth)[0])
        return out

    def _spread(self, allocations: dict[str, Allocation]) -> dict[str, Allocation]:
        """What is left of the GPU, given to the models in proportion to their shares: a share unused helps nobody."""
        steered = {m: a.share for m, a in allocations.items() if a.share is not None}
        total = sum(steered.values())
        spare = math.floor((1 - total) / self.unit + EPS)
        out = dict(allocations)
        for name in sorted(steered, key=lambda m: -steered[m]):
            most = self._bounds(self.demands[name])[1]
            units = round(steered[name] / self.unit)
            more = min(math.floor(spare * steered[name] / total + EPS), most - units)
            out[name] = replace(out[name], share=self._share(units + more))
        return out

    def _roomier(self, allocations: dict[str, Allocation]) -> dict[str, Allocation]:
        """Larger batch limits where they cost next to nothing: a limit that is not reached now is room for a burst."""
        demands = list(self.demands.values())
        served = self.oracle.together(demands, allocations)
        out = dict(allocations)
        for demand in demands:
            beside = [as_tenant(d, out[d.model], served[d.model]) for d in demands if d is not demand]
            limit = min(served[demand.model].p99_ms * ROOM_COST, demand.slo_ms)
            sizes = [b for b in self._sizes(demand) if b > out[demand.model].max_batch_size]
            while sizes:  # the largest first: mostly it costs nothing
                larger = replace(out[demand.model], max_batch_size=sizes[-1])
                if self.oracle.served(demand, larger, beside).p99_ms <= limit:
                    out[demand.model] = larger
                    break
                sizes = sizes[: len(sizes) // 2]
        return out

    def _worst(self, allocations: Mapping[str, Allocation]) -> float:
        served = self.oracle.together(list(self.demands.values()), allocations)
        return max(served[m].p99_ms / d.slo_ms for m, d in self.demands.items())

    def _with_delays(self, allocations: dict[str, Allocation]) -> dict[str, Allocation]:
        """Queue delays where waiting for fuller batches leaves everybody better off (neighbours included).

        Waiting pays only through fewer executions: a delay that leaves the model as busy as it was is not looked at further.
        """
        demands = list(self.demands.values())
        served = self.oracle.together(demands, allocations)
        best, worst = dict(allocations), self._worst(allocations)
        for name, demand in self.demands.items():
            beside = [as_tenant(d, best[d.model], served[d.model]) for d in demands if d is not demand]
            for fraction in DELAY_FRACTIONS:
                waiting = replace(best[name], max_queue_delay_us=round(fraction * demand.slo_ms * 1000))
                alone = self.oracle.served(demand, waiting, beside)
                if alone.busy > served[name].busy * DELAY_RELIEF or alone.p99_ms > worst * demand.slo_ms:
                    break
                value = self._worst({**best, name: waiting})
                if value < worst * DELAY_GAIN:
                    best, worst = {**best, name: waiting}, value
        return best


def find(oracle: Oracle, demands: Sequence[Demand], flat_out: Sequence[Demand] = ()) -> Found:
    """The plan for one GPU: all models kept with the largest common head-room, or as many as fit, the most important first.

    ``flat_out`` are let go from the beginning: they get what is left.
    """
    if not flat_out:
        found = Search(oracle, sorted(demands, key=lambda d: (d.priority, d.model))).widest()
        if found is not None:
            return found
    reasons: dict[str, str] = {}
    needs: dict[str, float] = {}
    for demand in demands:  # what no share holds even alone is let go before anything else
        alone = Search(oracle, [demand]).settle(1.0)
        if isinstance(alone, str):
            reasons[demand.model] = _hopeless(oracle, demand)
        else:
            needs[demand.model] = alone[0][demand.model].share or 1.0
    order = [d for d in sorted(demands, key=lambda d: (d.priority, d.model)) if d.model not in reasons]
    gone = [*flat_out, *(d for d in demands if d.model in reasons)]
    while True:
        fit = _fit(oracle, order, gone)
        if fit is not None:
            return replace(fit, reasons=reasons, needs={m: s for m, s in needs.items() if m in reasons})
        out = _leaver(order, needs)
        order.remove(out)
        gone.append(out)
        reasons[out.model] = (
            f"does not fit: it needs {needs[out.model]:.1%} of this GPU beside more important models "
            f"(priority {out.priority}); all together would need more than 100 %"
        )


def _leaver(order: Sequence[Demand], needs: Mapping[str, float]) -> Demand:
    """Whom to let go next: the least important; among equals the one that needs most, so that the fewest have to go."""
    return max(order, key=lambda d: (d.priority, needs[d.model], d.model))


def _hopeless(oracle: Oracle, demand: Demand) -> str:
    idle = replace(demand, rate_per_s=0.0)
    fastest = oracle.served(idle, Allocation(demand.max_share, 1), []).p50_ms
    if fastest > demand.slo_ms:
        return (
            f"its SLO leaves {demand.slo_ms:.3g} ms for a request, "
            f"but one alone takes {fastest:.3g} ms at its largest share ({demand.max_share:.0%})"
        )
    return f"{demand.rate_per_s:.4g} requests/s are more than {demand.max_share:.0%} of this GPU serves within {demand.slo_ms:.3g} ms"


def _fit(oracle: Oracle, kept: Sequence[Demand], gone: Sequence[Demand]) -> Found | None:
    """A plan that holds ``kept`` while ``gone`` run flat out on what is left; None if ``kept`` do not fit."""
    if not gone:
        return Search(oracle, kept).widest()
    if not kept:
        return _all_gone(oracle, gone)
    unit = oracle.model.share_unit
    floors = {d.model: max(1, math.ceil(d.min_share / unit - EPS)) for d in gone}
    search = Search(oracle, [*kept, *gone])
    spare = 1.0 - sum(floors.values()) * unit
    best: Found | None = None
    extra = 0
    while True:  # give those let go a little more for as long as the others hold
        fixed = {d.model: _flat_out(d, round((floors[d.model] + extra // len(gone)) * unit, 6)) for d in gone}
        settled = search.settle(1.0, fixed)
        if isinstance(settled, str) or search.total(settled[0]) > 1 + EPS:
            return best
        kept_names = frozenset(d.model for d in kept)
        served = oracle.together([*kept, *gone], settled[0])
        best = Found(settled[0], served, kept_names, 1.0, search.total({m: a for m, a in settled[0].items() if m in kept_names}))
        extra += max(1, round(0.05 / unit)) * len(gone)
        if extra // len(gone) * unit > spare + EPS:
            return best


def _flat_out(demand: Demand, share: float) -> tuple[Allocation, Service]:
    """A model let go: always busy, with its largest batch, on ``share``."""
    allocation = Allocation(share if demand.steerable else None, demand.max_batch, 0, demand.instances)
    return allocation, Service(math.inf, math.inf, math.inf, 1.0, float(demand.max_batch))


def _all_gone(oracle: Oracle, gone: Sequence[Demand]) -> Found:
    """Nobody can be held: equal shares, and said."""
    unit = oracle.model.share_unit
    share = round(max(1, math.floor(1.0 / len(gone) / unit + EPS)) * unit, 6) if gone else 1.0
    allocations = {d.model: _flat_out(d, min(share, d.max_share))[0] for d in gone}
    return Found(allocations, oracle.together(gone, allocations), frozenset(), 0.0, 0.0)
