"""Carry out a plan: one step at a time, verified by reading the world back, nothing after the first
refusal.

A change is one ``LoadModel`` with the whole configuration: share and batching together. Triton goes
on serving with the old copy until the new one is ready, and keeps the old one when it refuses the
new; so stopping here at any moment drops no request. Both copies are in the GPU's memory for a
moment: where it is known that they do not fit, Triton is not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from igniterd.clients.environments import PLAIN, Reach, base_env_of, is_stale
from igniterd.clients.shares import prepared
from igniterd.clients.triton.config import (
    allocation_of,
    instance_names_of,
    same_allocation,
    same_but_instances,
)
from igniterd.errors import IgniterdError, Refused, Unanswered, Unreachable
from igniterd.records import (
    ActResult,
    Actuation,
    Allocation,
    Observation,
    Plan,
    Step,
    StepKind,
    Stub,
)
from igniterd.states import Cause

READ_BACKS = 5  # each with the deadline of a call
PROCESSES_S = 2.0  # longest look at the host's processes
OLD_GONE_S = 5.0  # longest wait for an old copy's processes to end, before anything else is changed
LOOK_EVERY_S = 0.2


class ByHand(Refused):
    """Somebody else has changed the model since it was planned with."""


class Reloader(Protocol):
    """What is asked of a Triton client."""

    async def config(self, model: str) -> dict[str, Any]: ...

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None: ...


class ProcessSource(Protocol):
    """What is asked of the host's process table."""

    async def read(self) -> tuple[Stub, ...]: ...


Adopter = Callable[[str], Awaitable[str]]
"""Gives a model a process of its own; returns why not, or an empty string."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a step is carried out with, beside its Triton.

    ``shares``: the folder of share environments, under the path at which Triton sees it; ``reach``:
    how they reach the models of this server; ``claimed``: the share that the model's configuration
    names without effect; ``processes``: where they can be seen, a load is a reload only if they are
    new; ``adopter`` gives a model a process of its own.
    """

    shares: Path
    reach: Reach = PLAIN
    claimed: float | None = None
    processes: ProcessSource | None = None
    adopter: Adopter | None = None


async def _adopt(step: Step, around: Surroundings) -> None:
    why = (
        await around.adopter(step.model)
        if around.adopter is not None
        else "nobody here can give it one"
    )
    if why:
        raise Refused(f"{step.model}: {why}")


async def _apply(step: Step, triton: Reloader, around: Surroundings) -> None:
    if step.kind is StepKind.ADOPT:
        await _adopt(step, around)
        return
    before, there = await triton.config(step.model), str(around.shares)
    present, wanted = allocation_of(before, there), _wanted(step, around.claimed)
    again = (
        step.kind is StepKind.REVIVE
        or around.claimed is not None
        or is_stale(before, there, around.reach)
    )
    if same_allocation(present, wanted) and not again:
        return
    expected = (step.before, _expected(step, around.claimed), wanted)
    if not any(same_allocation(present, each) for each in expected):
        raise ByHand(f"{step.model}: somebody else changed it to {present}; planning anew")
    if base_env_of(before, there) is None:
        changed = prepared(before, wanted, around.shares, around.reach)
    else:  # it is looked at: a mount that hangs holds up this step, not the daemon
        changed = await asyncio.to_thread(prepared, before, wanted, around.shares, around.reach)
    running = await _pids(before, around.processes)
    # Instances alone are started and ended beside those that serve on; anything else is a new copy,
    # and must be one.
    in_place = same_but_instances(before, changed) and not again
    if in_place:
        await triton.load(step.model, changed, exact=True)
    else:
        await triton.load(step.model, changed)
    after = await _read_back(step.model, triton)
    applied = allocation_of(after, there)
    if not same_allocation(applied, wanted):
        raise Refused(f"{step.model}: Triton loaded {applied} where {wanted} was asked")
    serving = await _pids(after, around.processes) if running and not in_place else None
    if serving is not None and running is not None and serving.keys() <= running.keys():
        raise Refused(
            f"{step.model}: Triton said that it was reloaded, but its processes are the same as "
            "before"
        )
    if serving is not None and running:
        # another Triton of this host may have a model of this name: its processes go on
        servers = {serving[pid] for pid in serving.keys() - running.keys()}
        old = frozenset(pid for pid, server in running.items() if server in servers)
        await _until_gone(old, after, around.processes)


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


async def _pids(config: dict[str, Any], processes: ProcessSource | None) -> dict[int, int] | None:
    """The processes of models of that name, and the server of each; ``None`` where they cannot be
    seen now."""
    if processes is None:
        return None
    try:
        async with asyncio.timeout(PROCESSES_S):
            stubs: tuple[Stub, ...] = await processes.read()
    except (TimeoutError, IgniterdError):
        return None
    names = instance_names_of(config)
    return {stub.pid: stub.server_pid for stub in stubs if stub.instance in names}


async def _until_gone(
    old: frozenset[int], config: dict[str, Any], processes: ProcessSource | None
) -> None:
    """Wait for the processes of the old copy to end: until then they use the GPU beside the new
    one.

    One that does not end in time is no failure of the change: the next tick says what is left.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(OLD_GONE_S):
            while old & (await _pids(config, processes) or {}).keys():  # noqa: ASYNC110  other processes end
                await asyncio.sleep(LOOK_EVERY_S)


async def _read_back(model: str, triton: Reloader) -> dict[str, Any]:
    """The configuration after a load; a busy server may miss a deadline without anything being
    wrong."""
    for _ in range(READ_BACKS - 1):
        with contextlib.suppress(Unreachable):
            return await triton.config(model)
    return await triton.config(model)


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether a second copy of a model fits beside the first: why not, or why that is not known;
    neither where it does."""

    refused: str = ""
    unknown: str = ""


def second_copy(model: str, seen: Observation, copy_bytes: Mapping[str, int]) -> Fits:
    """``copy_bytes``: device memory (bytes) of one instance of each model, as profiled after its
    largest batch."""
    reading, each = seen.models[model], copy_bytes.get(model)
    if each is None:
        return Fits(unknown="its profile tells no memory_bytes")
    board = next((board for board in seen.boards if board.index == reading.gpu_index), None)
    if board is None or board.memory_used_bytes is None or board.memory_total_bytes is None:
        return Fits(unknown="the memory of its GPU cannot be read")
    needed, free = (
        each * max(1, reading.allocation.instances),
        board.memory_total_bytes - board.memory_used_bytes,
    )
    if needed <= free:
        return Fits()
    there = f"GPU {reading.gpu_index} has {free / 2**20:.0f} MiB free"
    return Fits(
        refused=f"{model}: a second copy takes {needed / 2**20:.0f} MiB while it is reloaded, "
        f"and {there}"
    )


class SecondCopies:
    """:func:`second_copy` for a daemon: what is not known is said once and does not stand in the
    way, as many boards are nearly empty."""

    def __init__(self, copy_bytes: Mapping[str, int]) -> None:
        self._copy_bytes = copy_bytes
        self._said: set[str] = set()

    def refused(self, model: str, seen: Observation) -> str:
        """Why ``model`` cannot be loaded beside itself, or an empty string."""
        fits = second_copy(model, seen, self._copy_bytes)
        if fits.unknown and fits.unknown not in self._said:
            self._said.add(fits.unknown)
            why = f"{fits.unknown}: whether a second copy fits while it is reloaded is not known"
            structlog.get_logger("igniterd").info("memory is not checked", model=model, why=why)
        return fits.refused


async def act(
    plan: Plan,
    tritons: Mapping[str, Reloader],
    triton_of: Mapping[str, str],
    shares: Path,
    refused: str = "",
    reach: Mapping[str, Reach] | None = None,
    *,
    claimed: float | None = None,
    processes: ProcessSource | None = None,
    adopter: Adopter | None = None,
    cause: Cause = Cause.REFUSED,
) -> ActResult:
    """Carry out the first step of ``plan``; the ticks after it, reading the world anew, carry out
    the rest.

    ``triton_of`` maps models to the names of their servers; ``shares`` is the folder of share
    environments, under the path at which Triton sees it. ``refused``: why the step must not be
    tried, if it must not, for ``cause``. ``reach``: how shares reach the models of each server. For
    the others see :class:`Surroundings`.
    """
    if not plan.steps:
        return ActResult()
    step, began_s = plan.steps[0], time.monotonic()
    try:
        if refused:
            return ActResult((Actuation(step, False, 0.0, refused, cause),))
        server = triton_of[step.model]
        around = Surroundings(shares, (reach or {}).get(server, PLAIN), claimed, processes, adopter)
        await _apply(step, tritons[server], around)
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
    if isinstance(error, ByHand):
        return Cause.BY_HAND
    if isinstance(error, Unanswered):
        return Cause.UNANSWERED
    return Cause.LOST if isinstance(error, Unreachable) else Cause.REFUSED
