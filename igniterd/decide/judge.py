"""One GPU as it is applied: what is known of it, and whether its SLOs hold. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from igniterd.config import Decide
from igniterd.decide.room import Reserved, Room, grown
from igniterd.decide.search import GROWTHS
from igniterd.decide.state import ALL, LADDER, CachedVerdict, DecisionState, Margins
from igniterd.loads import Load
from igniterd.predict import Demand, LatencyPrediction, LatencyPredictor
from igniterd.records import Allocation

# a GPU with head-room is judged again no later than this, and at once when a rate has used up most
# of it
JUDGE_EVERY_S = 60.0
JUDGE_APART_S = 2.0  # and no two GPUs in the same tick for this alone: each takes some milliseconds
ROOM_LEFT = 1.1
BIAS_STEP = 1.03


@dataclass(frozen=True, slots=True)
class PredictorPair:
    """``upper`` predicts with upper bounds of service times, ``mean`` with their means."""

    upper: LatencyPredictor
    mean: LatencyPredictor

    def at(self, margins: Margins) -> LatencyPredictor:
        return self.upper if margins.kept > 0.5 else self.mean


@dataclass(frozen=True, slots=True)
class GpuJudge:
    """What is known of one GPU, or of several that are decided for together. ``demands`` gives what
    to plan for at given margins.

    ``gpu`` is its name, by which what is kept of it is found.
    ``pinned``: the models that may not be changed, and why; ``reserved``: the part of the GPU that
    is taken by what is not planned with, ``takes``: the same by model; ``waits``: why nothing is
    decided now; ``no_shares``: why no process may be started that is to have a share.
    """

    gpu: str
    demands: Callable[[Margins], Sequence[Demand]]
    here: Mapping[str, Allocation]  # as applied
    held: DecisionState
    rules: Decide
    predictors: PredictorPair
    now_s: float
    pinned: Mapping[str, str] = field(default_factory=dict)
    reserved: Reserved = 0.0
    takes: Mapping[str, float] = field(default_factory=dict)
    bound: Reserved | None = None  # of ``reserved``, what is held by shares; None: all of it
    waits: str = ""
    may_search: bool = True  # not where enough GPUs were searched in this tick
    no_shares: str = ""
    # of a model on this GPU nothing is known: what others may grow by is not promised
    unknown: bool = False
    loads: Mapping[str, Load] = field(default_factory=dict)

    @property
    def free(self) -> frozenset[str]:
        """The models that may be changed."""
        return frozenset(self.here) - self.pinned.keys()

    @property
    def knobs(self) -> frozenset[tuple[str, bool]]:
        """What may be turned: of each such model, whether its share too."""
        return frozenset(
            (d.model, d.steerable) for d in self.demands(ALL) if d.model not in self.pinned
        )

    @property
    def margins(self) -> Margins:
        """Those of the plan that is applied."""
        return self.held.gpu(self.gpu).margins

    @property
    def shed(self) -> dict[str, str]:
        """The models of this GPU that are shed, with the reasons."""
        return {m: reason for m, reason in self.held.shed.items() if m in self.here}

    def judge(self) -> dict[str, LatencyPrediction] | None:
        """How the models fare as applied; None where some still run without the share they should
        have."""
        demands = self.demands(self.margins)
        if not self.room_for(demands).holds(self.here) or any(
            d.steerable and self.here[d.model].share is None for d in demands
        ):
            return None
        return self.predictors.at(self.margins).together(demands, self.here)

    def room_for(self, demands: Sequence[Demand], margins: Margins | None = None) -> Room:
        """What there is to give; at the margins applied, unless others are given."""
        return Room.of(demands, self.reserved_at(margins or self.margins))

    def reserved_at(self, margins: Margins) -> Reserved:
        """What is left free for what is not planned with."""
        return self.bound if margins.crowded and self.bound is not None else self.reserved

    @property
    def ladder(self) -> tuple[Margins, ...]:
        """The margins to try."""
        crowded = self.bound is not None and grown(self.reserved, self.bound)
        return tuple(margins for margins in LADDER if crowded or not margins.crowded)

    def late(
        self, served: Mapping[str, LatencyPrediction] | None, *, pinned: bool = False
    ) -> list[str]:
        """Kept models that would miss, of those that may be changed, or of those that may not.

        Planned at (1 - margin) of the SLO, moved at (1 - margin / 2): what was just planned does
        not at once ask for more. Of few requests nothing is said for sure, until they are late in
        fact.
        """
        slack = (1 - self.rules.slo_margin / 2) / (1 - self.rules.slo_margin)
        kept = [
            d
            for d in self.demands(self.margins)
            if d.model not in self.held.shed and (d.model in self.pinned) is pinned
        ]
        return [
            d.model
            for d in kept
            if served is None or (served[d.model].p99_ms > d.slo_ms * slack and self._sure(d))
        ]

    def _sure(self, demand: Demand) -> bool:
        load = self.loads.get(demand.model)
        return load is None or load.confident or (load.measured_mean_ms or 0.0) > demand.slo_ms

    def room(self, allocations: Mapping[str, Allocation]) -> float:
        """The largest growth of all rates, on the ladder, under which the kept models hold: by
        bisection from where it was before."""
        demands, predictor = self.demands(self.margins), self.predictors.at(self.margins)

        def holds(growth: float) -> bool:
            served = predictor.together(demands, allocations, growth=growth)
            kept = (
                d for d in demands if d.model not in self.held.shed and d.model not in self.pinned
            )
            return all(served[d.model].p99_ms <= d.slo_ms for d in kept)

        before = self.held.gpu(self.gpu).verdict
        likely = len(GROWTHS) if before is None else bisect_right(GROWTHS, before.room)
        low, high = 0, len(GROWTHS)  # the first `low` rungs hold, rung `high` does not
        for rung in (likely - 1, likely):
            if low <= rung < high:
                low, high = (rung + 1, high) if holds(GROWTHS[rung]) else (low, rung)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if holds(GROWTHS[middle]) else (low, middle)
        return GROWTHS[low - 1] if low else 1.0

    def known_roomy(self) -> CachedVerdict | None:
        """An earlier judgement that still stands, or None."""
        judged = self.held.gpu(self.gpu).verdict
        if (
            judged is None
            or judged.here != self.here
            or self.now_s >= judged.until_s
            or self.shed
            or self.margins != ALL
        ):
            return None
        if grown(self.reserved, judged.reserved) or not self.knobs <= judged.knobs:
            return None
        growth = judged.room / ROOM_LEFT
        demands = self.demands(ALL)
        still = all(
            d.rate_per_s <= judged.rates[d.model] * growth
            and d.bias <= judged.biases[d.model] * BIAS_STEP
            and d.arrival_scv <= judged.arrival_scv[d.model]
            for d in demands
        )
        return judged if still else None

    def with_verdict(self, served: Mapping[str, LatencyPrediction], room: float) -> DecisionState:
        demands = self.demands(ALL)
        rates, biases = {d.model: d.rate_per_s for d in demands}, {d.model: d.bias for d in demands}
        judged = CachedVerdict(
            self._verdict_until_s(),
            self.here,
            rates,
            biases,
            {d.model: d.arrival_scv for d in demands},
            served,
            room,
            self.reserved,
            self.knobs,
        )
        return self.held.with_gpu(self.gpu, verdict=judged)

    def _verdict_until_s(self) -> float:
        """When a judgement made now ends: the latest time at which none of another GPU does, or
        nearly."""
        others = [
            hold.verdict.until_s
            for gpu, hold in self.held.gpus.items()
            if gpu != self.gpu and hold.verdict is not None
        ]
        latest = self.now_s + JUDGE_EVERY_S
        free = (latest - i * JUDGE_APART_S for i in range(int(JUDGE_EVERY_S / JUDGE_APART_S / 2)))
        return next(
            (at_s for at_s in free if all(abs(at_s - other) >= JUDGE_APART_S for other in others)),
            latest,
        )
