"""The decision for one GPU: judge what is applied, search when it does not do, carry a plan
through. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from igniterd.decide import words
from igniterd.decide.cooldown import rollbacks, why_not_now
from igniterd.decide.fewest import fewest_changes
from igniterd.decide.judge import GpuJudge
from igniterd.decide.room import Reserved, by_gpu, granted_on, named
from igniterd.decide.search import GROWTHS, GpuPlan, find
from igniterd.decide.shed import LEAST
from igniterd.decide.state import (
    ALL,
    LADDER,
    NONE,
    REMEMBERED,
    DecisionState,
    Margins,
    Pause,
    Underway,
)
from igniterd.decide.steps import ordered
from igniterd.decisions import DecisionKind, Step
from igniterd.predict import Demand, LatencyPrediction
from igniterd.records import ROUNDING, Allocation

ROOM_TO_REMEMBER = 1.12  # head-room that such a plan must leave
LEAST_ROOM = GROWTHS[0]
"""A plan without this head-room is outgrown by noise at once: nothing is reloaded for its margins
alone."""
OUTGROWN = 1.06  # a rate this much above what the plan in flight was made for: plan again
RETRY_S = 10.0  # how often a GPU in trouble, or short of head-room, is searched again
ROOMY = 1.3  # with this much head-room no better plan is looked for


@dataclass(frozen=True, slots=True)
class GpuDecision:
    """One GPU's part of the decision."""

    outcome: DecisionKind
    why: str
    target: Mapping[str, Allocation]
    served: Mapping[str, LatencyPrediction]
    headroom: float | None
    held: DecisionState
    steps: tuple[Step, ...] = ()
    reserved: Mapping[str, float] = field(default_factory=dict)
    """By GPU: what is left free for what is not planned with."""
    takes: Mapping[str, float] = field(default_factory=dict)
    """By model that is not planned with: the most it is reckoned to take of a GPU."""


@dataclass(frozen=True, slots=True)
class GpuContext(GpuJudge):
    """One GPU to decide for."""

    def decide(self) -> GpuDecision:
        return replace(self._decision(), reserved=by_gpu(self.reserved, self.gpu), takes=self.takes)

    def _decision(self) -> GpuDecision:
        if self.waits:
            return GpuDecision(DecisionKind.WAIT, self.waits, self.here, {}, None, self.held)
        return self._taken_back() or self._decided()

    def _taken_back(self) -> GpuDecision | None:
        """A change that made things worse is undone before anything else is decided."""
        back = rollbacks(self.held, self.loads, self.here, self.rules, self.now_s)
        for step in back:
            if step.model in self.free and not self._against((step,)):
                held = self.held.without_plan(self.gpu)
                return GpuDecision(DecisionKind.MOVE, step.why, self.here, {}, None, held, (step,))
        return None

    def _decided(self) -> GpuDecision:
        known = self.known_roomy()
        if known is not None:
            return self._stay(known.served, known.room, [])
        served = self.judge()
        late = self.late(served)
        plan = self.held.gpu(self.gpu).plan
        if (
            plan is not None
            and self._valid(plan)
            and (self._in_between(plan.target) or self._still_fits(plan))
        ):
            return self._carry_on(plan, served)
        room = self.room(self.here) if served is not None and self.free and not late else None
        content = (
            not late and not self.shed and self.margins == ALL and (room is None or room >= ROOMY)
        )
        if content and served is not None and room is not None:
            return replace(self, held=self.with_verdict(served, room))._stay(served, room, [])
        pause_s = self.rules.urgent_hold_s if self._urgent(served, late) else RETRY_S
        hold = self.held.gpu(self.gpu)
        rests = self.now_s - max(hold.searched_at_s, hold.moved_at_s) < pause_s
        held_back = not self.may_search or self.now_s < hold.held_until_s
        if content or rests or not self.free or held_back:
            return self._stay(served, room, late)
        return self._search(served, late, room)

    def _valid(self, plan: Underway) -> bool:
        """Whether it was made for these models, all that it changes may be changed, and is not
        done."""
        if plan.models != self.here.keys() or plan.target == self.here:
            return False
        return (
            all(m in self.free for m, a in plan.target.items() if a != self.here[m])
            and self.free <= plan.free
        )

    def _urgent(self, served: Mapping[str, LatencyPrediction] | None, late: Sequence[str]) -> bool:
        """Whether an SLO would be missed even if everything went as expected, not only within the
        margins."""
        if not late or served is None or self.margins.kept == 0:
            return bool(late)
        expected = self.predictors.at(NONE).together(self.demands(NONE), self.here)
        return any(
            expected[d.model].p99_ms > d.slo_ms for d in self.demands(NONE) if d.model in late
        )

    def _in_between(self, target: Mapping[str, Allocation]) -> bool:
        """Whether the GPU is half taken over: worse than any plan, so that this one is finished
        even if traffic has outgrown it."""
        if not self.room_for(self.demands(self.margins)).holds(self.here):
            return True
        some = any(a.granted is not None for a in self.here.values())
        return some and any(
            self.here[m].share is None and target[m].share is not None for m in target
        )

    def _still_fits(self, plan: Underway) -> bool:
        return all(
            d.rate_per_s <= OUTGROWN * plan.made_for.get(d.model, 0.0)
            for d in self.demands(self.margins)
        )

    def _carry_on(self, plan: Underway, served: dict[str, LatencyPrediction] | None) -> GpuDecision:
        target, steps = plan.target, tuple(ordered(self.here, plan.target, plan.whys))
        why = self._against(steps[:1])
        if why:
            return GpuDecision(
                DecisionKind.WAIT,
                why,
                self.here,
                served or {},
                None,
                self.held.without_plan(self.gpu),
            )
        outcome = DecisionKind.INFEASIBLE if self.shed else DecisionKind.MOVE
        return GpuDecision(
            outcome,
            f"carrying on: {words.changes(len(steps))} to go",
            target,
            served or {},
            None,
            self.held,
            steps,
        )

    def _against(self, steps: Sequence[Step]) -> str:
        """What stands against carrying out ``steps`` now, or an empty string."""
        if self.no_shares and any(step.after.share is not None for step in steps):
            return self.no_shares
        return why_not_now(self.held, steps, self.rules, self.now_s)

    def _stay(
        self,
        served: Mapping[str, LatencyPrediction] | None,
        room: float | None,
        late: Sequence[str],
    ) -> GpuDecision:
        held = self.held.without_plan(self.gpu)
        kept = self.late(served, pinned=True) if served is not None else []
        fixed = [f"{m} would miss, and is not changed: {self.pinned[m]}" for m in kept]
        if self.shed:
            why = "; ".join(
                [*(f"{m} is let go: {reason}" for m, reason in self.shed.items()), *fixed]
            )
            return GpuDecision(DecisionKind.INFEASIBLE, why, self.here, served or {}, room, held)
        if late:
            why = "; ".join([f"{', '.join(late)} would miss; {self._pause()}", *fixed])
            return GpuDecision(DecisionKind.WAIT, why, self.here, served or {}, room, held)
        if fixed or (served is None and not self.free):
            others = [f"{m}: {why}" for m, why in self.pinned.items()]
            return GpuDecision(
                DecisionKind.WAIT, "; ".join(fixed or others), self.here, served or {}, None, held
            )
        room = None if self.unknown else room
        why = "every SLO holds" + (
            f", with rates free to grow by {room - 1:.0%}" if room is not None else ""
        )
        if self.margins.crowded:
            why += ", with nothing left free for models that no share confines"
        elif self.margins.kept < 1:
            why += f", with {self.margins.kept:.0%} of the margins: the GPU is nearly full"
        return GpuDecision(DecisionKind.HOLD, why, self.here, served or {}, room, held)

    def _pause(self) -> str:
        """Why nothing is done about it in this tick."""
        if self.no_shares:
            return self.no_shares
        if self.pinned:
            return "not changed: " + "; ".join(f"{m}: {why}" for m, why in self.pinned.items())
        return "waiting for the last change to settle"

    def _sought(self, margins: Margins) -> Sequence[Demand]:
        """What to plan for. The SLO of a model that misses it and cannot be changed asks for
        nothing."""
        demands = self.demands(margins)
        served = self.judge() if self.pinned else None
        lost = (
            set(self.pinned)
            if served is None
            else {m for m in self.pinned if m in self.late(served, pinned=True)}
        )
        return [replace(d, slo_ms=inf) if d.model in lost else d for d in demands]

    def _remembering(
        self, found: GpuPlan, demands: Sequence[Demand], reserved: Reserved
    ) -> tuple[GpuPlan, Sequence[Demand]]:
        """``found``, or a plan with room for what was and may soon be again: an idle model keeps
        its share while nobody needs it."""
        remembered = self._sought(REMEMBERED)
        if found.headroom >= ROOM_TO_REMEMBER and remembered != demands:
            wider = find(self.predictors.at(ALL), remembered, reserved=reserved)
            if wider.feasible and wider.headroom >= ROOM_TO_REMEMBER:
                return wider, remembered
        return found, demands

    def _find(self) -> tuple[Margins, GpuPlan, Sequence[Demand]]:
        """The plan with the most margins that keeps every model, else that which expects the least;
        and what it is made for."""
        pauses = (self.held.of(m).shed for m in self.shed)
        waiting = any(pause is not None and self.now_s < pause.until_s for pause in pauses)
        for margins in self.ladder:
            demands, reserved = self._sought(margins), self.reserved_at(margins)
            found = find(self.predictors.at(margins), demands, reserved=reserved)
            if found.feasible and (not self.shed or (margins.kept > 0 and not waiting)):
                if margins.kept == 1:
                    found, demands = self._remembering(found, demands, reserved)
                return margins, found, demands
        # a model let go does not come back for a plan without margins, nor at once: it would soon
        # go again
        if found.feasible:
            kept = [d for d in demands if d.model not in self.shed]
            found = find(
                self.predictors.at(margins),
                kept,
                [d for d in demands if d.model in self.shed],
                reserved,
            )
            found = replace(found, reasons={**found.reasons, **self.shed})
        return margins, found, demands

    def _search(
        self, served: dict[str, LatencyPrediction] | None, late: Sequence[str], room: float | None
    ) -> GpuDecision:
        margins, found, demands = self._find()
        held = self.held.with_gpu(self.gpu, searched_at_s=self.now_s)
        if not found.feasible and self._nothing_left(demands):
            return replace(self, held=held)._stay(served, room, late)
        held = self._with_found(held, found)
        case = replace(self, held=held)
        target = fewest_changes(
            self.predictors.at(margins), demands, self.here, found, self.room_for(demands, margins)
        )
        back = set(self.shed) - set(found.reasons)
        better = bool(late) or bool(back)
        lasting = found.headroom >= LEAST_ROOM
        if late and found.feasible and not back and not lasting:
            content = self._content_with_less()
            if content is not None:
                return case._with_margins(content)._stay(served, room, [])
        roomier = found.headroom >= (room or 1.0) * (1 + self.rules.dead_band) or (
            LADDER.index(margins) < LADDER.index(self.margins) and lasting
        )
        rested_s = self.now_s - held.gpu(self.gpu).moved_at_s
        gained = roomier and not back and rested_s >= self.rules.hold_s
        if target == self.here:
            return case._with_margins(margins)._stay(served, room, [])
        if not (better or gained):
            return case._stay(served, room, [])
        return case._move(
            target,
            margins,
            found,
            served,
            words.reason(found, served, late, self.shed, self.here, room),
        )

    def _nothing_left(self, demands: Sequence[Demand]) -> bool:
        """Whether what is not changed holds the GPU whole, or may soon: whoever took what is left
        would starve."""
        if any(self.held.of(m).pending_share is not None for m in self.pinned):
            return True
        takers = [d for d in demands if d.model in self.free and d.steerable]
        for gpu, capacity in self.room_for(demands).capacity.items():
            fixed = sum(granted_on(d, d.pinned, gpu) for d in demands if d.pinned is not None)
            taken = LEAST * sum(d.instances_on(gpu) for d in takers)
            # one on which nobody takes anything is no obstacle to the others
            if (taken or not takers) and capacity - fixed < taken - ROUNDING:
                return True
        return False

    def _content_with_less(self) -> Margins | None:
        """The most margins, below that of the plan applied, at which what is applied holds every
        SLO; None where none does."""
        for margins in self.ladder:
            if LADDER.index(margins) > LADDER.index(self.margins):
                less = self._with_margins(margins)
                served = less.judge()
                if served is not None and not less.late(served):
                    return margins
        return None

    def _with_margins(self, margins: Margins) -> GpuContext:
        return replace(self, held=self.held.with_gpu(self.gpu, margins=margins))

    def _with_found(self, held: DecisionState, found: GpuPlan) -> DecisionState:
        """``held`` with what the search found: whom it sheds, and what they would need. Each time a
        model is shed it stays so for longer."""
        changed = {}
        for model in self.here:
            hold, why = held.of(model), found.reasons.get(model)
            pause = hold.shed
            if why is not None and hold.shed_why is None:
                pause = self._shed_again(pause)
            changed[model] = replace(
                hold, shed_why=why, shed=pause, needs_share=found.needs.get(model)
            )
        return held.with_models(changed).with_gpu(self.gpu, least=named(found.least, self.gpu))

    def _shed_again(self, before: Pause | None) -> Pause:
        lately = before is not None and self.now_s < before.until_s + 10 * self.rules.hold_s
        times = before.times + 1 if before is not None and lately else 1
        return Pause(times, self.now_s + self.rules.hold_s * min(16, 2 ** (times - 1)))

    def _move(
        self,
        target: Mapping[str, Allocation],
        margins: Margins,
        found: GpuPlan,
        served: dict[str, LatencyPrediction] | None,
        why: str,
    ) -> GpuDecision:
        demands = self.demands(margins)
        whys = {
            d.model: words.sentence(d, self.here[d.model], target[d.model], served, found)
            for d in demands
        }
        steps = tuple(ordered(self.here, target, whys))
        against = self._against(steps)
        outcome = (
            DecisionKind.INFEASIBLE
            if found.reasons
            else DecisionKind.WAIT
            if against
            else DecisionKind.MOVE
        )
        if against:
            return GpuDecision(outcome, against, self.here, served or {}, None, self.held)
        plan = Underway(target, self.free, {d.model: d.rate_per_s for d in demands}, whys)
        held = self.held.with_gpu(self.gpu, plan=plan, margins=margins)
        return GpuDecision(outcome, why, target, found.served, found.headroom, held, steps)
