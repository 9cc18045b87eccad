"""Whether a change may be made now, and the watch kept on every change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

from igniterd.config import Decide
from igniterd.decide.state import DecisionState, ModelHold, Pause, Probation
from igniterd.decide.steps import granted
from igniterd.decisions import ActResult, Actuation, Step, StepKind
from igniterd.loads import Load
from igniterd.records import ROUNDING, Allocation, granted_total
from igniterd.states import Cause

HOUR_S = 3600.0
REFUSED_S = 60.0  # a model whose load was refused is left alone this long
# a GPU whose step was not let through, or whose server was lost, is left alone this long
HELD_S = 2.0
# a model that dies so often, each time within so long, is brought back ever later
DIES_TIMES, DIES_S = 3, 300.0
UNTRIED = frozenset({Cause.HELD, Cause.BY_HAND})
"""Failures that say nothing of the model: Triton was not asked."""
WORSE = 1.3  # measured this many times what was before and what was predicted: roll back


def came_after_all(held: DecisionState, applied: Mapping[str, Allocation]) -> DecisionState:
    """``held`` without the failures of changes that are there now.

    Triton finishes a load that was not answered in time.
    """
    return held.with_models(
        {
            model: replace(
                held.of(model), asked=None, pending_share=None, refused_until_s=-inf, refusals=0
            )
            for model, asked in held.asked.items()
            if model in applied and alike(asked, applied[model])
        }
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
        hold = held.of(step.model)
        if now_s < hold.refused_until_s:
            wait_s = hold.refused_until_s - now_s
            return f"{step.model}: its last change failed; next try in {wait_s:.0f} s"
        tried = hold.unhosted
        if step.kind is StepKind.ADOPT and tried and now_s < tried.until_s:
            wait_s = tried.until_s - now_s
            return (
                f"{step.model}: it could not be given a process of its own; next try in "
                f"{wait_s:.0f} s"
            )
        died = hold.revived
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

    ``applied``: the models of one GPU. They go through the same gate as every other change. That of
    a model that was let go is none: it made room for the others, and a model that pauses for it
    could not grow when there is room again.
    """
    steps = []
    oldest_first = sorted(held.on_probation.items(), key=lambda each: each[1].at_s)
    for model, watch in oldest_first:
        load = loads.get(model)
        if load is None or model not in applied or now_s < watch.at_s + rules.watch_s:
            continue
        if held.of(model).shed_why is not None:
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
    if before.devices != here.devices:
        return ""  # somebody moved it since: it is not taken back to where it was
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
    others = granted_total(a for m, a in applied.items() if m != model)
    if others + granted(before) > 1 + ROUNDING:
        return ""
    said = f"{watch.mean_ms:.1f} ms was before and {expected:.1f} ms predicted"
    return f"mean latency {measured:.1f} ms where {said}: taken back"


def expire(hold: ModelHold, rules: Decide, now_s: float) -> ModelHold:
    """Less what has proved itself, and a refusal whose pause is over."""
    watch = hold.probation
    if watch is not None and now_s >= watch.at_s + 2 * rules.watch_s:
        hold = replace(hold, probation=None)
    return replace(hold, refused_until_s=-inf) if -inf < hold.refused_until_s <= now_s else hold


def after(
    held: DecisionState, outcome: ActResult, loads: Mapping[str, Load], rules: Decide, now_s: float
) -> DecisionState:
    """``held`` once the steps of a tick have been carried out (or refused)."""
    expired = {
        model: left
        for model, hold in held.models.items()
        if (left := expire(hold, rules, now_s)) is not hold
    }
    held = replace(
        held.with_models(expired),
        reloads=tuple(at_s for at_s in held.reloads if at_s > now_s - HOUR_S),
        took_over_s={m: t for m, t in held.took_over_s.items() if t > now_s - HOUR_S},
    )
    for done in outcome.actuations:
        held = _count(held, done, now_s)
        model = done.step.model
        if done.ok:
            held = _confirm(held, done.step, loads.get(model), now_s)
        elif done.cause in UNTRIED:
            held = _put_off(held, model, now_s)
        elif done.cause is Cause.LOST and not held.of(model).refusals:
            # A server that goes away says nothing of the model, unless it does so at every try.
            held = _put_off(held, model, now_s).with_model(model, refusals=1)
        else:
            held = _refuse(held, done, now_s)
    return held


def rebalanced(held: DecisionState, models: Iterable[str], now_s: float) -> DecisionState:
    """``held`` once a rebalance has changed ``models``: no plan that was made before goes on, and
    what is there now has time to settle, as after a change of our own."""
    for model in models:
        gpu = held.gpu_of(model)
        if held.relocation is not None and model in held.relocation.target:
            held = held.without_relocation()
        held = held.with_gpu(gpu, plan=None, verdict=None, moved_at_s=now_s)
        # a load of ours that was not answered ended before this one began
        held = held.with_model(model, probation=None, asked=None, pending_share=None)
    return held


def _count(held: DecisionState, done: Actuation, now_s: float) -> DecisionState:
    """A reload that was tried counts, but for a model's first share, once an hour."""
    if done.cause in UNTRIED:
        return held
    if done.ok and takes_over(done.step) and _free_of_charge(held, done.step):
        return replace(held, took_over_s={**held.took_over_s, _first(done.step): now_s})
    return replace(held, reloads=(*held.reloads, now_s))


def _put_off(held: DecisionState, model: str, now_s: float) -> DecisionState:
    """Nothing can be said of the model: its GPU is looked at anew."""
    return held.with_gpu(held.gpu_of(model), plan=None, held_until_s=now_s + HELD_S)


def _refuse(held: DecisionState, done: Actuation, now_s: float) -> DecisionState:
    step, model = done.step, done.step.model
    hold = held.of(model)
    if step.kind is StepKind.ADOPT:  # what serves was not touched: any other change can be made
        times = 1 if hold.unhosted is None else hold.unhosted.times + 1
        return held.with_model(model, unhosted=Pause(times, now_s + _pause_s(times)))
    times = hold.refusals + 1
    # It may come yet. Where before and after are the same, nothing that comes shows that it did not
    # fail.
    may_come = done.cause in (Cause.UNANSWERED, Cause.LOST) and step.before != step.after
    pending = max(hold.pending_share or 0.0, step.after.granted or 0.0)
    if held.relocation is not None and model in held.relocation.target:
        held = held.without_relocation()
    return held.without_plan(held.gpu_of(model)).with_model(
        model,
        refusals=times,
        refused_until_s=now_s + _pause_s(times),
        refused_why=done.error,
        asked=step.after if may_come else hold.asked,
        pending_share=pending if may_come else hold.pending_share,
    )


def _confirm(held: DecisionState, step: Step, load: Load | None, now_s: float) -> DecisionState:
    """The step was carried out, and read back."""
    model, gpu = step.model, held.gpu_of(step.model)
    held = held.with_gpu(gpu, moved_at_s=now_s).with_model(
        model, probation=None, refusals=0, asked=None, pending_share=None, unhosted=None
    )
    if step.kind is StepKind.REVIVE:
        return held.with_model(model, revived=_revived_again(held.of(model).revived, now_s))
    if step.kind is StepKind.ADOPT:
        return held
    if step.kind is StepKind.RELOCATE:  # what it was where it was says nothing of where it is
        to = held.relocation.to.get(model, gpu) if held.relocation else gpu
        return held.with_gpu(to, moved_at_s=now_s, verdict=None).with_model(
            model, relocated_at_s=now_s, shed_why=None, needs_share=None
        )
    if step.kind is StepKind.ROLLBACK:
        return held.without_plan(gpu).with_model(
            model,
            refused_until_s=now_s + 5 * REFUSED_S,
            refused_why="its last change was taken back",
        )
    mean_ms, rate = (load.measured_mean_ms, load.rate_per_s) if load else (None, 0.0)
    return held.with_model(model, probation=Probation(step.before, now_s, mean_ms, rate))


def _revived_again(before: Pause | None, now_s: float) -> Pause:
    times = before.times + 1 if before and now_s < before.until_s + DIES_S else 1
    return Pause(times, now_s + (0.0 if times < DIES_TIMES else _pause_s(times - DIES_TIMES + 1)))


def _pause_s(times: int) -> float:
    """A load that hung hangs again: each failure in a row waits twice as long."""
    return REFUSED_S * float(2 ** min(times - 1, 6))
