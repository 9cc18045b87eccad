"""Moves between GPUs, carried out: one step at a time, every state in between within every GPU's
shares. Pure.

Every shrink on a GPU that takes a model comes before the model, and growth on the GPU that it left
comes after it. A move is one reload: the new copy is loaded on its GPU, and the old one serves
until that is ready. So stopping after any step leaves a host that serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from igniterd.decide.cooldown import why_not_now
from igniterd.decide.gpu import OUTGROWN, GpuContext, GpuDecision
from igniterd.decide.moves import Found
from igniterd.decide.room import ONE
from igniterd.decide.state import ALL, DecisionState, Relocation
from igniterd.decide.steps import kind_of
from igniterd.decisions import DecisionKind, Step, StepKind
from igniterd.records import ROUNDING, Allocation


def relocation_of(found: Found, why: str) -> Relocation:
    """``found`` as moves to be carried out."""
    return Relocation(found.to, found.target, found.touched, found.made_for, why)


def carried_on(
    relocation: Relocation,
    cases: Mapping[str, GpuContext],
    held: DecisionState,
    busy: Mapping[str, str],
) -> GpuDecision | None:
    """The decision for the GPUs of ``relocation``: its next step, or to wait; ``None`` where it is
    over, or does not suit any more.

    ``cases``: of each GPU of the host that may be decided for; ``busy``: those where a step is
    under way, and why.
    """
    waits = [busy[gpu] for gpu in sorted(relocation.gpus) if gpu in busy]
    waits += [c.waits for gpu, c in cases.items() if gpu in relocation.gpus and c.waits]
    there = {gpu: cases[gpu] for gpu in sorted(relocation.gpus) if gpu in cases}
    here = {m: a for case in there.values() for m, a in case.here.items()}
    if waits:
        return GpuDecision(DecisionKind.WAIT, waits[0], here, {}, None, held)
    changes = [m for m in relocation.target if here.get(m) != relocation.target[m]]
    if not changes or not _suits(relocation, there, here, changes):
        return None
    step = next(_steps(relocation, there, changes), None)
    if step is None:
        return None
    case = next(case for case in there.values() if step.model in case.here)
    no_shares = case.no_shares if step.after.share is not None else ""
    late = max(held.gpu(gpu).held_until_s for gpu in relocation.gpus)
    settling = "its last step was not let through" if case.now_s < late else ""
    against = no_shares or settling or why_not_now(held, (step,), case.rules, case.now_s)
    if against:
        return GpuDecision(DecisionKind.WAIT, against, here, {}, None, held)
    why = f"{relocation.why}: {len(changes)} to go"
    return GpuDecision(DecisionKind.MOVE, why, relocation.target, {}, None, held, (step,))


def _suits(
    relocation: Relocation,
    there: Mapping[str, GpuContext],
    here: Mapping[str, Allocation],
    changes: Collection[str],
) -> bool:
    """Whether it was made for these models and this traffic, and all that it changes may be
    changed."""
    if here.keys() != relocation.target.keys() or any(a.share is None for a in here.values()):
        return False
    free = {model for case in there.values() for model in case.free}
    rates = {d.model: d.rate_per_s for case in there.values() for d in case.demands(ALL)}
    return free >= set(changes) and all(
        rates.get(model, 0.0) <= OUTGROWN * made_for
        for model, made_for in relocation.made_for.items()
    )


def _steps(
    relocation: Relocation, there: Mapping[str, GpuContext], changes: Collection[str]
) -> Iterator[Step]:
    """The steps that may be made now, the one to be made first."""
    gpu_of = {model: gpu for gpu, case in there.items() for model in case.here}
    spare = {
        gpu: case.room_for(case.demands(ALL)).capacity.get(ONE, 0.0)
        - sum(a.granted or 0.0 for a in case.here.values())
        for gpu, case in there.items()
    }
    growth = {}
    for model in changes:
        gpu, target = gpu_of[model], relocation.target[model]
        moves = relocation.to.get(model, gpu) != gpu
        before = 0.0 if moves else (there[gpu].here[model].granted or 0.0)
        growth[model] = (moves, (target.granted or 0.0) - before)
    in_place = [m for m in changes if not growth[m][0]]
    order = sorted((m for m in in_place if growth[m][1] <= 0), key=lambda m: (growth[m][1], m))
    order += sorted(m for m in changes if growth[m][0])
    order += sorted((m for m in in_place if growth[m][1] > 0), key=lambda m: (growth[m][1], m))
    for model in order:
        moves, more = growth[model]
        to = relocation.to[model] if moves else gpu_of[model]
        if more <= 0 or more <= spare.get(to, 0.0) + ROUNDING:
            yield _step(relocation, there[gpu_of[model]].here[model], model, moves)


def _step(relocation: Relocation, before: Allocation, model: str, moves: bool) -> Step:
    after = relocation.target[model]
    kind = StepKind.RELOCATE if moves else kind_of(before, after)
    why = f"to {relocation.to[model]}: {relocation.why}" if moves else relocation.why
    return Step(model, kind, before, after, why)


def begun(relocation: Relocation, found: Found, held: DecisionState) -> DecisionState:
    """``held`` once ``relocation`` has begun: the GPUs' own plans give way to it."""
    for gpu in relocation.gpus:
        held = held.without_plan(gpu).with_gpu(gpu, verdict=None, margins=found.margins)
    return replace(held, relocation=relocation)
