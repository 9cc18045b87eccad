"""Carry out a rebalance: one step at a time, each verified, nothing after the first refusal.

Before the first step everything is checked (:func:`igniterd.fleet.orders.faults_now`). Each step is
in the journal before it is made and after. What it brings is read back; a route is changed only to
a model that serves and answers; a model is unloaded only when no request comes to it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from igniterd.clients.triton.config import same_allocation
from igniterd.errors import CannotRun, ChangedByHand, IgniterdError, Refused
from igniterd.fleet.cluster import allocation_from
from igniterd.fleet.journal import Begun, Done, Ended, Journal, Stopped, Undone
from igniterd.fleet.orders import (
    Key,
    Patience,
    as_said,
    move_of,
    remote_of,
    wanted_of,
)
from igniterd.fleet.remote import RemoteTriton
from igniterd.fleet.route import Router, Waiting
from igniterd.messages.rebalance import Rebalance, Step
from igniterd.records import Allocation

Say = Callable[[str], None]


class StepFailed(IgniterdError):
    """A step was refused, or waits for the operator: nothing more was done."""

    def __init__(self, step: Step, why: str, *, waits: bool = False) -> None:
        self.step, self.waits = step, waits
        super().__init__(f"step {step.number}, {step.action} {step.model} on {step.host}: {why}")


@dataclass(slots=True)
class Crew:
    """What carries steps out. ``say`` is told of each step that is made."""

    remotes: Mapping[Key, RemoteTriton]
    router: Router
    patience: Patience = field(default_factory=Patience)
    say: Say = lambda _: None

    async def close(self) -> None:
        await asyncio.gather(*(remote.close() for remote in self.remotes.values()))


async def carry_out(journal: Journal, crew: Crew) -> None:
    """Make every step that is not done. Raises :class:`StepFailed` at the first that cannot be
    made."""
    if journal.undo_begun:
        raise CannotRun(f"{journal.path} is being taken back: go on with --undo, or begin anew")
    for step in journal.rebalance.steps:
        if step.number in journal.done:
            continue
        try:
            done = await _make(journal, step, crew)
        except asyncio.CancelledError:
            journal.write(Stopped(step=step.number, reason="it was interrupted"))
            raise
        except Waiting as task:
            journal.write(Stopped(step=step.number, reason=str(task), waits=True))
            raise StepFailed(step, str(task), waits=True) from task
        except IgniterdError as error:
            journal.write(Stopped(step=step.number, reason=str(error)))
            raise StepFailed(step, str(error)) from error
        journal.write(done)
        crew.say(f"{sentence(step)}: {done.said or 'done'}")
    journal.write(Ended())


def mark_routed(journal: Journal, number: int) -> None:
    """The operator says that the route of this step is changed. Raises :class:`CannotRun` for
    another step than the one that waits."""
    if number in journal.done:
        return
    if journal.waits_for == number and journal.undo_begun:
        journal.write(Undone(step=number, said="back, by the operator"))
        return
    if journal.waits_for != number:
        waits = f"step {journal.waits_for} waits" if journal.waits_for else "no step waits"
        raise CannotRun(f"--routed {number}: {waits} for a route in {journal.path}")
    journal.write(Done(step=number, said="by the operator"))


def sentence(step: Step) -> str:
    """A step in words."""
    words = {
        "shrink": f"shrink {step.model} on {step.host}",
        "grow": f"grow {step.model} on {step.host}",
        "load": f"load {step.model} on {step.host}",
        "unload": f"unload {step.model} on {step.host}",
        "route": f"route of {step.model}",
    }
    return f"step {step.number}, {words[step.action]}"


async def _make(journal: Journal, step: Step, crew: Crew) -> Done:
    rebalance, remote = journal.rebalance, crew.remotes[remote_of(step)]
    move = move_of(rebalance, step)
    if step.action == "route":
        journal.write(Begun(step=step.number))
        return Done(step=step.number, said=await crew.router.send(move, move.kind))
    present = await remote.present(step.model)
    again = step.number in journal.begun  # what an interrupted run has begun
    journal.write(Begun(step=step.number, config=present))
    if step.action == "load":
        return await _load(rebalance, step, crew, is_ours=again, there=present is not None)
    if step.action == "unload":
        if present is None:
            return Done(step=step.number, said="gone already", nothing=not again)
        await remote.drain(step.model, crew.patience.quiet_of(move), crew.patience.drain_s)
        await remote.unload(step.model)
        return Done(step=step.number)
    if present is None:
        raise Refused(f"{remote.name} does not serve it any more")
    wanted, now = wanted_of(rebalance, step, remote), remote.allocation(present)
    if same_allocation(now, wanted) and not again:
        return Done(step=step.number, said="so already", nothing=True)
    said = _expected(rebalance, step)
    if said and not any(as_said(now, each) for each in (*said, wanted)):
        raise ChangedByHand(f"somebody else changed it to {now}: ask for a new rebalance")
    await remote.apply(step.model, wanted, [now])
    return Done(step=step.number)


def _expected(rebalance: Rebalance, step: Step) -> list[Allocation]:
    """What the model may have before the step: as the rebalance says, or as an earlier step has
    brought it."""
    mine = (remote_of(step), step.model)
    earlier = [
        each.allocation
        for each in rebalance.steps
        if each.number < step.number and (remote_of(each), each.model) == mine
    ]
    return [allocation_from(each) for each in (step.before, *earlier) if each is not None]


async def _load(
    rebalance: Rebalance, step: Step, crew: Crew, *, is_ours: bool, there: bool
) -> Done:
    remote, wanted = (
        crew.remotes[remote_of(step)],
        wanted_of(rebalance, step, crew.remotes[remote_of(step)]),
    )
    nothing = False
    if not there:
        await remote.load(step.model, wanted)
    elif is_ours:
        await remote.change_loaded(step.model, wanted)
    else:
        present = await remote.present(step.model)
        if present is None or not same_allocation(remote.allocation(present), wanted):
            raise Refused(f"{remote.name} serves it already, and not with {wanted}")
        nothing = True
    source = move_of(rebalance, step).source
    said = await _answers(remote, crew.remotes[source.host, source.triton], step.model)
    return Done(step=step.number, said=said, nothing=nothing)


async def _answers(remote: RemoteTriton, source: RemoteTriton, model: str) -> str:
    """Raises :class:`Refused` where it does not answer what the source does."""
    try:
        asked = await remote.answers(model)
    except Refused as error:
        try:
            await source.answers(model)
        except Refused:
            return "loaded; it takes no random values, and neither does it at the source"
        raise Refused(f"{remote.name}: {model} is loaded and does not answer: {error}") from error
    return "loaded, and answers" if asked else "loaded; no request could be made to try it"
