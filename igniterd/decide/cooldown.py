"""What one decision leaves to the next, and the watch kept on every change. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from igniterd.config import Decide
from igniterd.decide.steps import granted
from igniterd.predict import LatencyPrediction
from igniterd.records import ActResult, Actuation, Allocation, Load, Step, StepKind
from igniterd.states import Cause

K = TypeVar("K")
V = TypeVar("V")

HOUR_S = 3600.0
REFUSED_S = 60.0  # a model whose load was refused is left alone this long
# a GPU whose step was not let through, or whose server was lost, is left alone this long
HELD_S = 2.0
# a model that dies so often, each time within so long, is brought back ever later
DIES_TIMES, DIES_S = 3, 300.0
UNTRIED = frozenset({Cause.HELD, Cause.BY_HAND})
"""Failures that say nothing of the model: Triton was not asked."""
WORSE = 1.3  # measured this many times what was before and what was predicted: roll back


@dataclass(frozen=True, slots=True)
class Probation:
    """A change under watch until it has proved itself."""

    before: Allocation
    at_s: float
    mean_ms: float | None  # measured before the change
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class LetGo:
    """How often a model has been let go lately, and until when it stays so."""

    times: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Underway:
    """A plan being carried out step by step on one GPU.

    It is valid for exactly the ``models`` it was made for, of which those in ``free`` could be
    changed, and for the rates in ``made_for``; ``whys`` has the sentence of each change.
    """

    target: Mapping[str, Allocation]
    free: frozenset[str] = frozenset()
    made_for: Mapping[str, float] = field(default_factory=dict)
    whys: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.target)


@dataclass(frozen=True, slots=True)
class Pause:
    """How often in a row something came to nothing, and when it is tried next."""

    times: int
    until_s: float


@dataclass(frozen=True, slots=True)
class CachedVerdict:
    """A GPU found to hold every SLO with ``room`` to spare: true for as long as no rate has grown
    by that much, until ``until_s``.

    P99 only falls when a rate falls, so a GPU far from its limit need not be judged again at every
    tick.
    """

    until_s: float
    here: Mapping[str, Allocation]
    rates: Mapping[str, float]
    biases: Mapping[str, float]
    bursts: Mapping[str, float]
    served: Mapping[str, LatencyPrediction]
    room: float
    reserved: float = 0.0
    # models that may be changed, and whether in their share
    knobs: frozenset[tuple[str, bool]] = frozenset()


@dataclass(frozen=True, slots=True)
class DecisionState:
    """All that outlives a decision. What is about one GPU is kept by GPU, so that one holds up no
    other.

    ``gone`` names the models that the plans let go, with the reasons.
    """

    gpus: Mapping[str, int] = field(default_factory=dict)  # of each model, when it was last seen
    plans: Mapping[int, Underway] = field(default_factory=dict)
    moved_at_s: Mapping[int, float] = field(default_factory=dict)
    searched_at_s: Mapping[int, float] = field(default_factory=dict)
    # GPUs whose last step was not let through
    held_until_s: Mapping[int, float] = field(default_factory=dict)
    reloads: tuple[float, ...] = ()
    under_way: int = 0  # reloads that have begun and are not counted yet
    # first shares, see ``takes_over``
    took_over_s: Mapping[tuple[str, bool], float] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    let_go: Mapping[str, LetGo] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)
    least_share: Mapping[int, float] = field(default_factory=dict)  # by the last search
    # how much of the margins its plan keeps
    caution: Mapping[int, float] = field(default_factory=dict)
    watches: Mapping[str, Probation] = field(default_factory=dict)
    judged: Mapping[int, CachedVerdict] = field(default_factory=dict)
    refused_until_s: Mapping[str, float] = field(default_factory=dict)
    refusals_in_a_row: Mapping[str, int] = field(default_factory=dict)
    refused_why: Mapping[str, str] = field(default_factory=dict)
    # by loads that were not answered, and may end yet
    asked: Mapping[str, Allocation] = field(default_factory=dict)
    # the largest share that those may bring
    pending: Mapping[str, float] = field(default_factory=dict)
    # could not be given a process of their own
    unhosted: Mapping[str, Pause] = field(default_factory=dict)
    # were brought back, and may die again
    revived: Mapping[str, Pause] = field(default_factory=dict)
    # a prediction of it failed: why, until when
    left_out: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def target(self) -> dict[str, Allocation]:
        """What all plans under way lead to."""
        return {model: a for plan in self.plans.values() for model, a in plan.target.items()}

    def since_move_s(self, gpu: int, now_s: float) -> float:
        return now_s - self.moved_at_s.get(gpu, float("-inf"))

    def since_search_s(self, gpu: int, now_s: float) -> float:
        return now_s - self.searched_at_s.get(gpu, float("-inf"))

    def without_plan(self, gpu: int) -> DecisionState:
        return (
            self
            if gpu not in self.plans
            else replace(self, plans={g: p for g, p in self.plans.items() if g != gpu})
        )

    def with_none_pending(self, models: Collection[str]) -> DecisionState:
        """``models`` are on a server that started anew: no load of before can end any more."""
        gone = self.asked.keys() & set(models)
        if not gone:
            return self
        return replace(
            self,
            asked=only(self.asked, self.asked.keys() - gone),
            pending=only(self.pending, self.pending.keys() - gone),
        )

    def pruned(self, gpus: Mapping[str, int]) -> DecisionState:
        """Less what is about models and GPUs that are not there any more."""
        there, boards = gpus.keys(), set(gpus.values())
        known = self.gone.keys() | self.let_go.keys() | self.watches.keys() | self.gpus.keys()
        if (
            known <= there
            and self.judged.keys() | self.plans.keys() | self.least_share.keys() <= boards
        ):
            return self if self.gpus == gpus else replace(self, gpus=dict(gpus))
        return replace(
            self,
            gpus=dict(gpus),
            gone=only(self.gone, there),
            let_go=only(self.let_go, there),
            needs=only(self.needs, there),
            watches=only(self.watches, there),
            plans=only(self.plans, boards),
            judged=only(self.judged, boards),
            least_share=only(self.least_share, boards),
            caution=only(self.caution, boards),
        )


def only(known: Mapping[K, V], there: Collection[K]) -> dict[K, V]:
    """What is known of those that are ``there``."""
    return {key: value for key, value in known.items() if key in there}


def came_after_all(held: DecisionState, applied: Mapping[str, Allocation]) -> DecisionState:
    """``held`` without the failures of changes that are there now.

    Triton finishes a load that was not answered in time.
    """
    came = {m for m, asked in held.asked.items() if m in applied and alike(asked, applied[m])}
    if not came:
        return held
    return replace(
        held,
        asked={m: a for m, a in held.asked.items() if m not in came},
        pending={m: s for m, s in held.pending.items() if m not in came},
        refused_until_s={m: t for m, t in held.refused_until_s.items() if m not in came},
        refusals_in_a_row={m: n for m, n in held.refusals_in_a_row.items() if m not in came},
    )


def alike(one: Allocation, other: Allocation) -> bool:
    """Equal, but for how a share is written down."""
    if one.share is None or other.share is None:
        return one == other
    return replace(one, share=other.share) == other and abs(one.share - other.share) < 1e-5


def why_not_now(held: DecisionState, steps: Sequence[Step], rules: Decide, now_s: float) -> str:
    """What stands against carrying out ``steps`` now, or an empty string.

    The one gate for every change, whatever asks for it: a move, a take-over, a rollback, upkeep.
    What must be asked of the host (memory, MPS control, somebody else's hand) the loop asks just
    before a step, and says no in the same way.
    """
    for step in steps:
        until_s = held.refused_until_s.get(step.model, 0.0)
        if now_s < until_s:
            return f"{step.model}: its last change failed; next try in {until_s - now_s:.0f} s"
        tried = held.unhosted.get(step.model)
        if step.kind is StepKind.ADOPT and tried and now_s < tried.until_s:
            wait_s = tried.until_s - now_s
            return (
                f"{step.model}: it could not be given a process of its own; next try in "
                f"{wait_s:.0f} s"
            )
        died = held.revived.get(step.model)
        if step.kind is StepKind.REVIVE and died and now_s < died.until_s:
            return (
                f"{step.model}: it was brought back {died.times} times; next try in "
                f"{died.until_s - now_s:.0f} s"
            )
    recent = held.under_way + sum(1 for at_s in held.reloads if at_s > now_s - HOUR_S)
    counted = sum(1 for step in steps if not (takes_over(step) and _free_of_charge(held, step)))
    if counted and recent + counted > rules.max_reloads_per_hour:
        most = rules.max_reloads_per_hour
        return f"{recent} reloads in the last hour; decide.max_reloads_per_hour is {most}"
    return ""


def takes_over(step: Step) -> bool:
    """Whether the step is one of those that give a host its first shares.

    A model without a share gets one, and one that has the whole GPU until all others have shares
    (see ``steps.ordered``) its part.
    """
    return step.after.share is not None and (
        step.before.share is None or step.before.share >= 1 > step.after.share
    )


def _free_of_charge(held: DecisionState, step: Step) -> bool:
    """The first shares are not counted, however many models there are: once an hour and model each.

    Whoever takes the shares away again and again must not be answered without end.
    """
    return _first(step) not in held.took_over_s


def _first(step: Step) -> tuple[str, bool]:
    return step.model, step.before.share is None


def rollbacks(
    held: DecisionState,
    loads: Mapping[str, Load],
    applied: Mapping[str, Allocation],
    rules: Decide,
    now_s: float,
) -> list[Step]:
    """Changes to take back: measured worse than before and than predicted, at no more traffic.

    ``applied``: the models of one GPU. They go through the same gate as every other change.
    """
    steps = []
    for model, watch in held.watches.items():
        load = loads.get(model)
        if load is None or model not in applied or now_s < watch.at_s + rules.watch_s:
            continue
        why = _worse(watch, load, model, applied)
        if not why:
            continue
        step = Step(model, StepKind.ROLLBACK, applied[model], watch.before, why)
        if not why_not_now(held, (step,), rules, now_s):
            steps.append(step)
    return steps


def _worse(watch: Probation, load: Load, model: str, applied: Mapping[str, Allocation]) -> str:
    """Why the change under watch is to be taken back, or an empty string."""
    here, before = applied[model], watch.before
    measured, expected = load.measured_mean_ms, load.predicted_mean_ms
    if before == here or measured is None or expected is None or watch.mean_ms is None:
        return ""
    if (
        load.rate_per_s > watch.rate_per_s * 1.1
        or measured <= WORSE * watch.mean_ms
        or measured <= WORSE * expected
    ):
        return ""
    if granted(before) < granted(here):
        return ""  # a larger share never made its model slower: what is worse has another cause
    # one without a share takes none
    others = sum(a.granted or 0.0 for m, a in applied.items() if m != model)
    if others + granted(before) > 1 + 1e-9:
        return ""
    said = f"{watch.mean_ms:.1f} ms was before and {expected:.1f} ms predicted"
    return f"mean latency {measured:.1f} ms where {said}: taken back"


def after(
    held: DecisionState, outcome: ActResult, loads: Mapping[str, Load], rules: Decide, now_s: float
) -> DecisionState:
    """``held`` once the steps of a tick have been carried out (or refused)."""
    held = replace(
        held,
        watches={m: w for m, w in held.watches.items() if now_s < w.at_s + 2 * rules.watch_s},
        refused_until_s={m: t for m, t in held.refused_until_s.items() if t > now_s},
        reloads=tuple(at_s for at_s in held.reloads if at_s > now_s - HOUR_S),
        took_over_s={m: t for m, t in held.took_over_s.items() if t > now_s - HOUR_S},
    )
    for done in outcome.actuations:
        held = _counted(held, done, now_s)
        model = done.step.model
        if done.ok:
            held = _made(held, done.step, loads.get(model), now_s)
        elif done.cause in UNTRIED:
            held = _put_off(held, model, now_s)
        elif done.cause is Cause.LOST and not held.refusals_in_a_row.get(model):
            # A server that goes away says nothing of the model, unless it does so at every try.
            held = replace(
                _put_off(held, model, now_s), refusals_in_a_row={**held.refusals_in_a_row, model: 1}
            )
        else:
            held = _failed(held, done, now_s)
    return held


def _counted(held: DecisionState, done: Actuation, now_s: float) -> DecisionState:
    """A reload that was tried counts, but for a model's first share, once an hour."""
    if done.cause in UNTRIED:
        return held
    if done.ok and takes_over(done.step) and _free_of_charge(held, done.step):
        return replace(held, took_over_s={**held.took_over_s, _first(done.step): now_s})
    return replace(held, reloads=(*held.reloads, now_s))


def _put_off(held: DecisionState, model: str, now_s: float) -> DecisionState:
    """Nothing can be said of the model: its GPU is looked at anew."""
    gpu = held.gpus.get(model, 0)
    return replace(held.without_plan(gpu), held_until_s={**held.held_until_s, gpu: now_s + HELD_S})


def _failed(held: DecisionState, done: Actuation, now_s: float) -> DecisionState:
    step, model = done.step, done.step.model
    if step.kind is StepKind.ADOPT:  # what serves was not touched: any other change can be made
        times = held.unhosted[model].times + 1 if model in held.unhosted else 1
        return replace(
            held, unhosted={**held.unhosted, model: Pause(times, now_s + _pause_s(times))}
        )
    times = held.refusals_in_a_row.get(model, 0) + 1
    # It may come yet. Where before and after are the same, nothing that comes shows that it did not
    # fail.
    may_come = done.cause in (Cause.UNANSWERED, Cause.LOST) and step.before != step.after
    asked, pending = held.asked, held.pending
    if may_come:
        asked = {**asked, model: step.after}
        pending = {**pending, model: max(pending.get(model, 0.0), step.after.granted or 0.0)}
    return replace(
        held.without_plan(held.gpus.get(model, 0)),
        refusals_in_a_row={**held.refusals_in_a_row, model: times},
        refused_until_s={**held.refused_until_s, model: now_s + _pause_s(times)},
        refused_why={**held.refused_why, model: done.error},
        asked=asked,
        pending=pending,
    )


def _made(held: DecisionState, step: Step, load: Load | None, now_s: float) -> DecisionState:
    model, gpu = step.model, held.gpus.get(step.model, 0)
    held = replace(
        held,
        moved_at_s={**held.moved_at_s, gpu: now_s},
        watches=_less(held.watches, model),
        refusals_in_a_row=_less(held.refusals_in_a_row, model),
        asked=_less(held.asked, model),
        pending=_less(held.pending, model),
        unhosted=_less(held.unhosted, model),
    )
    if step.kind is StepKind.REVIVE:
        before = held.revived.get(model)
        times = before.times + 1 if before and now_s < before.until_s + DIES_S else 1
        pause_s = 0.0 if times < DIES_TIMES else _pause_s(times - DIES_TIMES + 1)
        return replace(held, revived={**held.revived, model: Pause(times, now_s + pause_s)})
    if step.kind is StepKind.ADOPT:
        return held
    if step.kind is StepKind.ROLLBACK:
        why = "its last change was taken back"
        return replace(
            held.without_plan(gpu),
            refused_until_s={**held.refused_until_s, model: now_s + 5 * REFUSED_S},
            refused_why={**held.refused_why, model: why},
        )
    mean_ms, rate = (load.measured_mean_ms, load.rate_per_s) if load else (None, 0.0)
    return replace(
        held, watches={**held.watches, model: Probation(step.before, now_s, mean_ms, rate)}
    )


def _less(known: Mapping[str, V], model: str) -> Mapping[str, V]:
    return (
        {name: value for name, value in known.items() if name != model} if model in known else known
    )


def _pause_s(times: int) -> float:
    """A load that hung hangs again: each failure in a row waits twice as long."""
    return REFUSED_S * float(2 ** min(times - 1, 6))
