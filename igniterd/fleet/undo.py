"""Take a rebalance back: the steps that were begun, in reverse order, by what their journal says.

What somebody else has changed since is left alone and named. Done twice it does nothing more.
"""

from __future__ import annotations

import asyncio

from igniterd.clients.triton.config import same_allocation
from igniterd.errors import IgniterdError
from igniterd.fleet.apply import Crew, StepFailed, sentence
from igniterd.fleet.journal import Ended, Journal, Stopped, Undoing, Undone
from igniterd.fleet.orders import move_of, remote_of, wanted_of
from igniterd.fleet.route import Waiting
from igniterd.messages.rebalance import Step


def to_undo(journal: Journal) -> list[Step]:
    """The steps that are to be taken back, in their order."""
    return [
        step
        for step in reversed(journal.rebalance.steps)
        if step.number in journal.begun
        and not (step.number in journal.done and journal.done[step.number].nothing)
        and not (step.number in journal.undone and not journal.undone[step.number].left)
    ]


async def take_back(journal: Journal, crew: Crew) -> list[str]:
    """Take every step back; returns what was left alone, in words. Raises :class:`StepFailed` at
    the first that cannot be: nothing more is done then."""
    left = []
    for step in to_undo(journal):
        journal.write(Undoing(step=step.number))
        try:
            undone = await _back(journal, step, crew)
        except asyncio.CancelledError:
            journal.write(Stopped(step=step.number, reason="it was interrupted", undo=True))
            raise
        except IgniterdError as error:
            waits = isinstance(error, Waiting)
            journal.write(Stopped(step=step.number, reason=str(error), waits=waits, undo=True))
            raise StepFailed(step, f"taking it back: {error}", waits=waits) from error
        journal.write(undone)
        crew.say(f"{sentence(step)}: {undone.said}")
        left += [f"{sentence(step)}: {undone.said}"] if undone.left else []
    journal.write(Ended(undo=True))
    return left


async def _back(journal: Journal, step: Step, crew: Crew) -> Undone:
    if step.action == "route":
        move = move_of(journal.rebalance, step)
        return Undone(step=step.number, said="back, " + await crew.router.send(move, "back"))
    if step.action == "load":
        return await _unloaded(journal, step, crew)
    return await _put(journal, step, crew)


async def _unloaded(journal: Journal, step: Step, crew: Crew) -> Undone:
    remote, begun = crew.remotes[remote_of(step)], journal.begun[step.number]
    if begun.config is not None:
        return Undone(step=step.number, said="it was served before, and is left so")
    present = await remote.present(step.model)
    if present is None:
        return Undone(step=step.number, said="not served already")
    wanted, now = wanted_of(journal.rebalance, step, remote), remote.allocation(present)
    # the host's own daemon may have given it a share and batches since; a load cut short has those
    # of the repository, and its GPUs
    finished = step.number in journal.done
    if finished and (now.instances, now.devices) != (wanted.instances, wanted.devices):
        said = f"left as it is: somebody else changed it to {now}"
        return Undone(step=step.number, said=said, left=True)
    move = move_of(journal.rebalance, step)
    await remote.drain(step.model, crew.patience.quiet_of(move), crew.patience.drain_s)
    await remote.unload(step.model)
    return Undone(step=step.number, said="unloaded again")


async def _put(journal: Journal, step: Step, crew: Crew) -> Undone:
    """What served before serves again."""
    remote, before = crew.remotes[remote_of(step)], journal.begun[step.number].config
    present = await remote.present(step.model)
    if before is None:
        return Undone(step=step.number, said="it was not served before")
    if present is None:
        if step.action != "unload":
            said = "left as it is: somebody else unloaded it"
            return Undone(step=step.number, said=said, left=True)
        await remote.put(step.model, before, None)
        return Undone(step=step.number, said="loaded again")
    now, then = remote.allocation(present), remote.allocation(before)
    finished = step.number in journal.done
    if same_allocation(now, then) and (finished or step.action == "unload"):
        return Undone(step=step.number, said="as it was already")
    ours = () if step.action == "unload" else (wanted_of(journal.rebalance, step, remote),)
    # a load that nobody waited for may end yet: one more is behind it
    if any(same_allocation(now, each) for each in (*ours, then)):
        await remote.put(step.model, before, present, anew=not finished)
        return Undone(step=step.number, said="as it was")
    said = f"left as it is: somebody else, or its host's daemon, changed it to {now}"
    return Undone(step=step.number, said=said, left=True)
