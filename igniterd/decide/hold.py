"""When not to move: what one decision leaves to the next, cool-downs, and the watch kept on every change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from igniterd.config import Decide
from igniterd.decide.steps import granted
from igniterd.model.oracle import Service
from igniterd.records import Allocation, Load, Outcome, Step, StepKind

HOUR_S = 3600.0
REFUSED_S = 60.0  # a model whose load was refused is left alone this long
SAME_TIMES = 3  # the same change made this often in a row, each within SAME_S of the last, does not last
SAME_S = 300.0
WORSE = 1.3  # measured this many times what was before and what was predicted: roll back


@dataclass(frozen=True, slots=True)
class Watch:
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
class Done:
    """The last change of a model, and how many times in a row it was the same one."""

    allocation: Allocation
    times: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Unhosted:
    """How often in a row a model could not be given a process of its own, and when that is tried next."""

    times: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A GPU found to hold every SLO with ``room`` to spare: true for as long as no rate has grown by that much, until ``until_s``.

    P99 only falls when a rate falls, so a GPU far from its limit need not be judged again at every tick.
    """

    until_s: float
    here: Mapping[str, Allocation]
    rates: Mapping[str, float]
    biases: Mapping[str, float]
    bursts: Mapping[str, float]
    served: Mapping[str, Service]
    room: float


@dataclass(frozen=True, slots=True)
class Held:
    """All that outlives a decision.

    ``target`` is the plan being carried out step by step, made for the rates in ``made_for``; ``gone`` names the models it lets go
    with the reasons.
    """

    seen: frozenset[str] = frozenset()  # models that Triton has shown at least once
    fixed: frozenset[str] = frozenset()  # models whose share cannot be changed: a plan is made for just these
    floors: Mapping[str, int] = field(default_factory=dict)  # batch limits of models whose clients bring batches of their own
    moved_at_s: float | None = None
    searched_at_s: float | None = None
    reloads: tuple[float, ...] = ()
    target: Mapping[str, Allocation] = field(default_factory=dict)
    made_for: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    let_go: Mapping[str, LetGo] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)
    least_share: Mapping[int, float] = field(default_factory=dict)  # of each GPU, by the last search
    caution: Mapping[int, float] = field(default_factory=dict)  # of each GPU: how much of the margins its plan keeps
    whys: Mapping[str, str] = field(default_factory=dict)  # the sentence of each change of the plan in flight
    watches: Mapping[str, Watch] = field(default_factory=dict)
    judged: Mapping[int, Judged] = field(default_factory=dict)  # by GPU
    done: Mapping[str, Done] = field(default_factory=dict)
    refused_until_s: Mapping[str, float] = field(default_factory=dict)
    refusals_in_a_row: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, Allocation] = field(default_factory=dict)  # by the changes that failed
    unhosted: Mapping[str, Unhosted] = field(default_factory=dict)

    def since_move_s(self, now_s: float) -> float:
        return float("inf") if self.moved_at_s is None else now_s - self.moved_at_s

    def since_search_s(self, now_s: float) -> float:
        return float("inf") if self.searched_at_s is None else now_s - self.searched_at_s


def refusals(held: Held, models: Iterable[str], now_s: float) -> str:
    """Which of ``models`` is left alone because its last change failed, or an empty string."""
    for model in models:
        until_s = held.refused_until_s.get(model, 0.0)
        if now_s < until_s:
            return f"{model}: its last change failed; next try in {until_s - now_s:.0f} s"
    return ""


def came_after_all(held: Held, applied: Mapping[str, Allocation]) -> Held:
    """``held`` without the failures of changes that are there now: Triton finishes a load that was not answered in time."""
    came = {m for m, asked in held.asked.items() if m in applied and _alike(asked, applied[m])}
    if not came:
        return held
    return replace(
        held,
        asked={m: a for m, a in held.asked.items() if m not in came},
        refused_until_s={m: t for m, t in held.refused_until_s.items() if m not in came},
        refusals_in_a_row={m: n for m, n in held.refusals_in_a_row.items() if m not in came},
    )


def _alike(one: Allocation, other: Allocation) -> bool:
    """Equal, but for how a share is written down."""
    if one.share is None or other.share is None:
        return one == other
    return replace(one, share=other.share) == other and abs(one.share - other.share) < 1e-5


def why_not_now(held: Held, steps: tuple[Step, ...], rules: Decide, now_s: float) -> str:
    """What stands against carrying out ``steps`` now, or an empty string."""
    refused = refusals(held, [step.model for step in steps], now_s)
    if refused:
        return refused
    for step in steps:
        tried = held.unhosted.get(step.model)
        if step.kind is StepKind.ADOPT and tried and now_s < tried.until_s:
            return f"{step.model}: it could not be given a process of its own; next try in {tried.until_s - now_s:.0f} s"
        last = held.done.get(step.model)
        if last and last.allocation == step.after and last.times >= SAME_TIMES and now_s < last.at_s + REFUSED_S * last.times:
            return f"{step.model}: this change was made {last.times} times and did not last; somebody else changes it back"
    recent = sum(1 for at_s in held.reloads if at_s > now_s - HOUR_S)
    counted = sum(1 for step in steps if not _takes_over(step))
    if counted and recent + counted > rules.max_reloads_per_hour:
        return f"{recent} reloads in the last hour; decide.max_reloads_per_hour is {rules.max_reloads_per_hour}"
    return ""


def _takes_over(step: Step) -> bool:
    """Whether the step is one of those that give a host its first shares: they are made once, however many models there are.

    A model without a share gets one, and one that has the whole GPU until all others have shares (see ``steps.ordered``) its part.
    """
    return step.after.share is not None and (step.before.share is None or step.before.share >= 1 > step.after.share)


def rollbacks(held: Held, loads: Mapping[str, Load], applied: Mapping[str, Allocation], rules: Decide, now_s: float) -> list[Step]:
    """Changes to take back: measured worse than before and than predicted, at no more traffic than before."""
    steps = []
    for model, watch in held.watches.items():
        load = loads.get(model)
        if load is None or model not in applied or now_s < watch.at_s + rules.watch_s or watch.before == applied[model]:
            continue
        measured, expected = load.measured_mean_ms, load.predicted_mean_ms
        if measured is None or expected is None or watch.mean_ms is None or load.rate_per_s > watch.rate_per_s * 1.1:
            continue
        if granted(watch.before) < granted(applied[model]):
            continue  # a larger share never made its model slower: what is worse has another cause, and less would be worse still
        others = sum(granted(a) for m, a in applied.items() if m != model)
        if measured > WORSE * watch.mean_ms and measured > WORSE * expected and others + granted(watch.before) <= 1 + 1e-9:
            why = f"mean latency {measured:.1f} ms where {watch.mean_ms:.1f} ms was before and {expected:.1f} ms predicted: taken back"
            steps.append(Step(model, StepKind.ROLLBACK, applied[model], watch.before, why))
    return steps


def after(held: Held, outcome: Outcome, loads: Mapping[str, Load], rules: Decide, now_s: float) -> Held:
    """``held`` once the steps of a tick have been carried out (or refused)."""
    watches = {m: w for m, w in held.watches.items() if now_s < w.at_s + 2 * rules.watch_s}
    refused = {m: t for m, t in held.refused_until_s.items() if t > now_s}
    reloads = tuple(at_s for at_s in held.reloads if at_s > now_s - HOUR_S)
    moved_at_s, target, made = held.moved_at_s, held.target, dict(held.done)
    failures, asked, unhosted = dict(held.refusals_in_a_row), dict(held.asked), dict(held.unhosted)
    for done in outcome.actuations:
        step = done.step
        if not (done.ok and _takes_over(step)):
            reloads = (*reloads, now_s)
        if step.kind is StepKind.ADOPT:  # what serves was not touched where it failed: any other change can be made
            times = unhosted[step.model].times if step.model in unhosted else 0
            unhosted.pop(step.model, None)
            if not done.ok:
                unhosted[step.model] = Unhosted(times + 1, now_s + _pause_s(times + 1))
                continue
        if not done.ok:
            failures[step.model] = failures.get(step.model, 0) + 1
            refused[step.model] = now_s + _pause_s(failures[step.model])
            if step.before != step.after:  # where they are the same, nothing that comes later shows that it did not fail
                asked[step.model] = step.after
            target = {}
            continue
        failures.pop(step.model, None)
        asked.pop(step.model, None)
        moved_at_s = now_s
        last = made.get(step.model)
        again = last is not None and last.allocation == step.after and now_s < last.at_s + SAME_S
        made[step.model] = Done(step.after, last.times + 1 if last and again else 1, now_s)
        watches.pop(step.model, None)
        if step.kind in (StepKind.REVIVE, StepKind.ADOPT):
            continue
        if step.kind is StepKind.ROLLBACK:
            refused[step.model] = now_s + 5 * REFUSED_S
            target = {}
        else:
            load = loads.get(step.model)
            watches[step.model] = Watch(step.before, now_s, load.measured_mean_ms if load else None, load.rate_per_s if load else 0.0)
    return replace(
        held,
        moved_at_s=moved_at_s,
        reloads=reloads,
        target=target,
        watches=watches,
        done=made,
        refused_until_s=refused,
        refusals_in_a_row=failures,
        asked=asked,
        unhosted=unhosted,
    )


def _pause_s(times: int) -> float:
    """A load that hung hangs again: each failure in a row waits twice as long."""
    return REFUSED_S * float(2 ** min(times - 1, 6))
