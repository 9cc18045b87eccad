"""Moves between GPUs, carried out: one step at a time, every state in between within every GPU's
shares. Pure.

Every shrink on a GPU that takes a model comes before the model, and growth on the GPU that it left
comes after it. A move is one reload: the new copy is loaded on its GPU, and the old one serves
until that is ready. So stopping after any step leaves a host that serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from igniterd.decide.cooldown import why_not_now
from igniterd.decide.gpu import OUTGROWN, GpuContext, GpuDecision
from igniterd.decide.moves import Side, capacities
from igniterd.decide.room import ONE, Room
from igniterd.decide.state import ALL, REMEMBERED, DecisionState, Relocation
from igniterd.decide.steps import kind_of
from igniterd.decisions import DecisionKind, Step, StepKind
from igniterd.records import ROUNDING, Allocation


def carried_on(
    relocation: Relocation,
    sides: Sequence[Side[GpuContext]],
    held: DecisionState,
    busy: Mapping[str, str],
) -> GpuDecision | None:
    """The decision for the GPUs of ``relocation``: its next step, or to wait; ``None`` where it is
    over, or does not suit any more.

    ``sides``: the GPUs of the host that may be decided for; ``busy``: those where a step is under
    way, and why.
    """
    there = [side for side in sides if relocation.gpus & set(side.group.gpus)]
    here = {m: a for side in there for m, a in side.case.here.items()}
    waits = [busy[gpu] for gpu in sorted(relocation.gpus) if gpu in busy]
    waits += [side.case.waits for side in there if side.case.waits]
    if waits:
        return GpuDecision(DecisionKind.WAIT, waits[0], here, {}, None, held)
    changes = [m for m in relocation.target if here.get(m) != relocation.target[m]]
    if not changes or not _suits(relocation, there, here, changes):
        return None
    step = next(_steps(relocation, there, changes), None)
    if step is None:
        return None
    case = there[0].case
    late = max(held.gpu(gpu).held_until_s for gpu in relocation.gpus)
    settling = "its last step was not let through" if case.now_s < late else ""
    no_shares = case.no_shares if step.after.share is not None else ""
    against = no_shares or settling or why_not_now(held, (step,), case.rules, case.now_s)
    if against:
        return GpuDecision(DecisionKind.WAIT, against, here, {}, None, held)
    why = f"{relocation.why}: {len(changes)} to go"
    return GpuDecision(DecisionKind.MOVE, why, relocation.target, {}, None, held, (step,))


def _suits(
    relocation: Relocation,
    there: Sequence[Side[GpuContext]],
    here: Mapping[str, Allocation],
    changes: Collection[str],
) -> bool:
    """Whether it was made for these models and this traffic, and all that it changes may be
    changed."""
    if here.keys() != relocation.target.keys() or any(here[m].share is None for m in changes):
        return False
    free = {model for side in there for model in side.case.free}
    rates = {d.model: d.rate_per_s for side in there for d in side.case.demands(relocation.margins)}
    return free >= set(changes) and all(
        rates.get(model, 0.0) <= OUTGROWN * made_for
        for model, made_for in relocation.made_for.items()
    )


def _steps(
    relocation: Relocation, there: Sequence[Side[GpuContext]], changes: Collection[str]
) -> Iterator[Step]:
    """The steps that may be made now, the one to be made first: what gives, then what moves, then
    what takes."""
    spare = {}
    on = dict[str, dict[str, int]]()  # model -> GPU -> instances
    here = {m: a for side in there for m, a in side.case.here.items()}
    for side in there:
        demands = side.case.demands(ALL)
        for d in demands:
            gpus = d.gpus or (side.group.name,) * d.instances
            on[d.model] = {gpu: gpus.count(gpu) for gpu in set(gpus)}
        room = Room.of(demands, side.case.reserved)
        for gpu, capacity in capacities(side).items():
            key = gpu if gpu in room.capacity else ONE
            spare[gpu] = capacity - (room.granted(key, side.case.here) if demands else 0.0)
    moves = {m for m in changes if relocation.to.get(m, "") not in ("", *on[m])}
    more = {m: _more(here[m], relocation.target[m], on[m]) for m in changes if m not in moves}
    more |= {
        m: {relocation.to[m]: relocation.target[m].granted or 0.0} for m in changes if m in moves
    }
    order = sorted(
        changes, key=lambda m: (1 if m in moves else 0 if _gives(more[m]) else 2, _sum(more[m]), m)
    )
    for model in order:
        if all(
            part <= max(0.0, spare.get(gpu, 0.0)) + ROUNDING for gpu, part in more[model].items()
        ):
            yield _step(relocation, here[model], model, model in moves)


def _more(here: Allocation, target: Allocation, on: Mapping[str, int]) -> dict[str, float]:
    """What of each GPU a change in place takes more; less than 0 where it gives."""
    grown = (target.share or 0.0) - (here.share or 0.0)
    return {gpu: grown * instances for gpu, instances in on.items()}


def _gives(more: Mapping[str, float]) -> bool:
    return all(part <= 0 for part in more.values())


def _sum(more: Mapping[str, float]) -> float:
    return sum(more.values())


def _step(relocation: Relocation, before: Allocation, model: str, moves: bool) -> Step:
    after = relocation.target[model]
    kind = StepKind.RELOCATE if moves else kind_of(before, after)
    why = f"to {relocation.to[model]}: {relocation.why}" if moves else relocation.why
    return Step(model, kind, before, after, why)


def begun(relocation: Relocation, held: DecisionState) -> DecisionState:
    """``held`` once ``relocation`` has begun: the GPUs' own plans give way to it."""
    margins = ALL if relocation.margins == REMEMBERED else relocation.margins
    for gpu in relocation.gpus:
        held = held.without_plan(gpu).with_gpu(gpu, verdict=None, margins=margins)
    return replace(held, relocation=relocation)
