"""A rebalance as it is to be carried out: what is wanted where, and whether it can be begun. Pure
but for :func:`faults_now`, which looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from igniterd.clients.triton.config import same_allocation, same_share
from igniterd.errors import IgniterdError
from igniterd.fleet.cluster import allocation_from
from igniterd.fleet.remote import RemoteTriton
from igniterd.messages.rebalance import Move, Rebalance, Step
from igniterd.records import Allocation

CLOCKS_S = 300.0
"""Clocks of the hosts may differ by so much."""
_LEAST_QUIET_S, _LONGEST_QUIET_S, _MISSED = 5.0, 60.0, 10.0
_CHANGES = ("shrink", "grow")
_ROUNDED = 1e-4
_ASK = "ask for a new rebalance"
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Patience:
    """``drain_s``: longest wait for the requests at a source to end. ``quiet_s``: none for so long
    is none; None: by the model's rate."""

    drain_s: float = 180.0
    quiet_s: float | None = None

    def quiet_of(self, move: Move) -> float:
        """Of independent arrivals at the rate of the move, one in 20 thousand gaps is longer."""
        if self.quiet_s is not None:
            return self.quiet_s
        gaps_s = _MISSED / move.rate_per_s if move.rate_per_s > 0 else _LONGEST_QUIET_S
        return min(_LONGEST_QUIET_S, max(_LEAST_QUIET_S, gaps_s))


def remote_of(step: Step) -> Key:
    return step.host, step.triton


def as_said(now: Allocation, said: Allocation) -> bool:
    """Whether ``now`` is what a message says, where shares are rounded."""
    shares = now.share, said.share
    if None not in shares and abs(now.effective_share - said.effective_share) <= _ROUNDED:
        said = replace(said, share=now.share)
    return same_allocation(now, said)


def move_of(rebalance: Rebalance, step: Step) -> Move:
    return next(move for move in rebalance.moves if move.number == step.move)


def wanted_of(rebalance: Rebalance, step: Step, remote: RemoteTriton) -> Allocation:
    """What the step brings its model to. Where the folder of shares is not given, a model is loaded
    without one."""
    move = move_of(rebalance, step)
    if step.allocation is None:
        found = Allocation(move.share, move.max_batch_size, move.max_queue_delay_us, move.replicas)
    else:
        found = allocation_from(step.allocation)
    if step.action == "load":
        if not found.devices and move.to.device is not None:
            found = replace(found, devices=(move.to.device,) * found.instances)
        if remote.shares is None:
            found = replace(found, share=None)
    return found


def places_of(rebalance: Rebalance) -> set[Key]:
    """Every host and Triton that is concerned."""
    ends = (place for move in rebalance.moves for place in (move.source, move.to))
    return {(place.host, place.triton) for place in ends} | set(map(remote_of, rebalance.steps))


def faults_of(rebalance: Rebalance) -> list[str]:
    """Why its steps are in no order that is safe, or do not belong together."""
    moves = {move.number: move for move in rebalance.moves}
    numbers = [step.number for step in rebalance.steps]
    if numbers != sorted(set(numbers)) or len(moves) != len(rebalance.moves):
        return ["its steps and moves are not numbered in order"]
    found = [
        f"move {move.number} is within one Triton, which is for the daemon of {move.to.host} to do"
        for move in rebalance.moves
        if (move.source.host, move.source.triton) == (move.to.host, move.to.triton)
    ]
    seen = set[tuple[int, str]]()
    for step in rebalance.steps:
        if step.move not in moves:
            found.append(f"step {step.number} is of move {step.move}, which is not there")
            continue
        needs = {"route": "load", "unload": "route"}.get(step.action)
        if needs and (step.move, needs) not in seen:
            found.append(f"step {step.number} ({step.action}) comes before the {needs} of its move")
        if step.action == "unload" and moves[step.move].kind == "replicate":
            found.append(f"step {step.number} unloads a model that is only replicated")
        if step.action in _CHANGES and step.allocation is None:
            found.append(f"step {step.number} ({step.action}) has no allocation")
        seen.add((step.move, step.action))
    return found


def why_too_old(rebalance: Rebalance, now_s: float, max_age_s: float) -> str:
    """Why it is not to be carried out at ``now_s`` (Unix time), or an empty string."""
    age_s = now_s - rebalance.time_s
    if age_s > max_age_s + CLOCKS_S:
        return (
            f"the rebalance is {age_s:.0f} s old, and the cluster has changed since: ask for a new "
            "one, or give --max-age"
        )
    if age_s < -CLOCKS_S:
        return (
            f"the rebalance is of {-age_s:.0f} s from now: set the clocks of this machine and of "
            f"{rebalance.speaker}"
        )
    return ""


async def faults_now(
    rebalance: Rebalance, remotes: Mapping[Key, RemoteTriton], begun: frozenset[int] = frozenset()
) -> list[str]:
    """Why it cannot be carried out from here and now. Steps that were ``begun`` are not judged."""
    found = [why for remote in remotes.values() if (why := await _why_not(remote))]
    looked = {_model(s) for s in rebalance.steps if s.number in begun}
    for step in () if found else rebalance.steps:
        remote = remotes[remote_of(step)]
        if step.action == "route" or step.number in begun:
            continue
        if why := _cannot(rebalance, step, remote):
            found.append(why)
        elif _model(step) not in looked:
            looked.add(_model(step))
            try:
                why = await _changed(rebalance, step, remote)
            except IgniterdError as error:
                why = str(error)
            found += [why] if why else []
    return found + ([] if found else await _gone_sources(rebalance, remotes))


async def _gone_sources(rebalance: Rebalance, remotes: Mapping[Key, RemoteTriton]) -> list[str]:
    """A replicated model is not unloaded, and is looked at only here."""
    found = []
    for move in rebalance.moves:
        if move.kind == "replicate":
            remote = remotes[move.source.host, move.source.triton]
            try:
                if await remote.present(move.served_as) is None:
                    found.append(f"{remote.name} does not serve {move.served_as}: {_ASK}")
            except IgniterdError as error:
                found.append(str(error))
    return found


def _model(step: Step) -> tuple[Key, str]:
    return remote_of(step), step.model


async def _why_not(remote: RemoteTriton) -> str:
    try:
        return await remote.refuses()
    except IgniterdError as error:
        return str(error)


def _cannot(rebalance: Rebalance, step: Step, remote: RemoteTriton) -> str:
    wanted = wanted_of(rebalance, step, remote)
    if step.action == "load" and not wanted.devices:
        return (
            f"step {step.number}: on which GPU of {remote.name} {step.model} is to be is not said"
        )
    changes = step.action in _CHANGES and remote.shares is None and step.before is not None
    if changes and step.before and not same_share(wanted, allocation_from(step.before)):
        return (
            f"step {step.number} changes the share of {step.model}, and where {remote.name} has "
            "its shares is not given: [[triton]] shares"
        )
    return ""


async def _changed(rebalance: Rebalance, step: Step, remote: RemoteTriton) -> str:
    """Whether the model is there as the rebalance rests on."""
    present = await remote.present(step.model)
    since = f"{remote.name} has changed since: {_ASK}"
    if step.action == "load":
        wanted = wanted_of(rebalance, step, remote)
        if present is None or same_allocation(remote.allocation(present), wanted):
            return ""
        return f"{since} ({step.model} is served there with {remote.allocation(present)})"
    if present is None:
        return f"{since} ({step.model} is not served there)"
    # what leaves may have been given more or less meanwhile, by a daemon that is short of room
    if step.before is None or step.action == "unload":
        return ""
    now, before = remote.allocation(present), allocation_from(step.before)
    if as_said(now, before):
        return ""
    return f"{since} ({step.model} has {now}, and had {before})"
