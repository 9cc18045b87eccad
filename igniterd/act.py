"""Carry out a plan: one step at a time, verified by reading the world back, nothing after the first
refusal.

A change is one ``LoadModel`` with the whole configuration: share and batching together. Triton goes
on serving with the old copy until the new one is ready, and keeps the old one when it refuses the
new; so stopping here at any moment drops no request. Both copies are in the GPU's memory for a
moment: where it is known that they do not fit, Triton is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from igniterd.decisions import ActResult, Actuation, Plan, Step, StepKind
from igniterd.errors import ChangedByHand, IgniterdError, Refused, Unanswered, Unreachable
from igniterd.records import Allocation, Observation
from igniterd.states import Cause


class Changer(Protocol):
    """What is asked of the client of a model's Triton."""

    async def apply(
        self,
        model: str,
        wanted: Allocation,
        *,
        expected: Collection[Allocation],
        anew: bool = False,
    ) -> None:
        """Bring ``model`` to ``wanted``, from one of ``expected``; see
        :meth:`igniterd.clients.triton.apply.Applier.apply`."""


Adopter = Callable[[str], Awaitable[str]]
"""Gives a model a process of its own; returns why not, or an empty string."""


async def _adopt(step: Step, adopter: Adopter | None) -> None:
    why = await adopter(step.model) if adopter is not None else "nobody here can give it one"
    if why:
        raise Refused(f"{step.model}: {why}")


async def _apply(step: Step, changer: Changer, claimed: float | None, name: str) -> None:
    await changer.apply(
        name,
        _wanted(step, claimed),
        expected=(step.before, _expected(step, claimed)),
        anew=step.kind is StepKind.REVIVE or claimed is not None,
    )


def _expected(step: Step, claimed: float | None) -> Allocation:
    """What the configuration says before the step: a share that is not proven still stands
    there."""
    return step.before if claimed is None else replace(step.before, share=claimed)


def _wanted(step: Step, claimed: float | None) -> Allocation:
    """What the step is to bring: a share that is not proven is left as it stands by a change of
    batching alone."""
    return (
        replace(step.after, share=claimed)
        if step.after.share is None and claimed is not None
        else step.after
    )


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether a second copy of a model fits beside the first: why not, or why that is not known;
    neither where it does."""

    refused: str = ""
    unknown: str = ""


def second_copy(
    model: str, seen: Observation, copy_bytes: Mapping[str, int], gpus: Sequence[str] = ()
) -> Fits:
    """``gpus``: of each instance of the copy; where it is now, if that is not given.

    ``copy_bytes``: device memory (bytes) of one instance of each model, as profiled after its
    largest batch."""
    reading, each = seen.models[model], copy_bytes.get(model)
    if each is None:
        return Fits(unknown="its profile tells no memory_bytes")
    boards = {board.uuid: board for board in seen.boards}
    for gpu in gpus or dict.fromkeys(reading.gpus):
        board = boards.get(gpu)
        if board is None or board.memory_used_bytes is None or board.memory_total_bytes is None:
            return Fits(unknown="the memory of its GPU cannot be read")
        copies = gpus.count(gpu) if gpus else max(1, reading.instances_on(gpu))
        needed = each * copies
        free = board.memory_total_bytes - board.memory_used_bytes
        if needed > free:
            there = f"{gpu} has {free / 2**20:.0f} MiB free"
            return Fits(
                refused=f"{model}: a second copy takes {needed / 2**20:.0f} MiB while it is "
                f"reloaded, and {there}"
            )
    return Fits()


class SecondCopies:
    """:func:`second_copy` for a daemon: what is not known is said once and does not stand in the
    way, as many boards are nearly empty."""

    def __init__(self, copy_bytes: Mapping[str, int]) -> None:
        self._copy_bytes = copy_bytes
        self._said: set[str] = set()

    def refused(self, model: str, seen: Observation, gpus: Sequence[str] = ()) -> str:
        """Why ``model`` cannot be loaded beside itself, or on ``gpus``; or an empty string."""
        fits = second_copy(model, seen, self._copy_bytes, gpus)
        if fits.unknown and fits.unknown not in self._said:
            self._said.add(fits.unknown)
            why = f"{fits.unknown}: whether a second copy fits while it is reloaded is not known"
            structlog.get_logger("igniterd").info("memory is not checked", model=model, why=why)
        return fits.refused


async def act(
    plan: Plan,
    changer: Changer,
    refused: str = "",
    *,
    claimed: float | None = None,
    adopter: Adopter | None = None,
    cause: Cause = Cause.REFUSED,
    name: str = "",
) -> ActResult:
    """Carry out the first step of ``plan``; the ticks after it, reading the world anew, carry out
    the rest.

    ``changer`` is the client of the step's model. ``refused``: why the step must not be tried, if
    it must not, for ``cause``. ``claimed``: the share that the model's configuration names without
    effect. ``adopter`` gives a model a process of its own. ``name``: of the model as its Triton has
    it, where that is not the step's.
    """
    if not plan.steps:
        return ActResult()
    step, began_s = plan.steps[0], time.monotonic()
    try:
        if refused:
            return ActResult((Actuation(step, False, 0.0, refused, cause),))
        if step.kind is StepKind.ADOPT:
            await _adopt(step, adopter)
        else:
            await _apply(step, changer, claimed, name or step.model)
    except IgniterdError as error:
        return ActResult(
            (Actuation(step, False, time.monotonic() - began_s, str(error), _cause(error)),)
        )
    # a configuration nobody thought of: this change is not made, and the daemon goes on
    except Exception as error:
        said = f"unforeseen: {error!r}"
        return ActResult((Actuation(step, False, time.monotonic() - began_s, said, Cause.REFUSED),))
    return ActResult((Actuation(step, True, time.monotonic() - began_s),))


def _cause(error: IgniterdError) -> Cause:
    if isinstance(error, ChangedByHand):
        return Cause.BY_HAND
    if isinstance(error, Unanswered):
        return Cause.UNANSWERED
    return Cause.LOST if isinstance(error, Unreachable) else Cause.REFUSED
