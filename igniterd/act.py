"""Carry out a plan: one step at a time, verified by reading the world back, nothing after the first refusal.

A change is one ``LoadModel`` with the whole configuration: share and batching together. Triton goes on serving with the old copy until
the new one is ready, and keeps the old one when it refuses the new; so stopping here at any moment drops no request. Both copies are in
the GPU's memory for a moment: where it is known that they do not fit, Triton is not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from igniterd.clients.environments import PLAIN, Reach, base_env_of, is_stale
from igniterd.clients.shares import prepared
from igniterd.clients.triton_config import allocation_of, same_allocation
from igniterd.errors import IgniterdError, Refused, Unreachable
from igniterd.records import Actuation, Observation, Outcome, Plan, Step

READ_BACKS = 5  # each with the deadline of a call


class Reloader(Protocol):
    """What is asked of a Triton client."""

    async def config(self, model: str) -> dict[str, Any]: ...

    async def load(self, model: str, config: dict[str, Any]) -> None: ...


async def _apply(step: Step, triton: Reloader, shares: Path, reach: Reach) -> None:
    before, there = await triton.config(step.model), str(shares)
    present = allocation_of(before, there)
    if same_allocation(present, step.after) and not is_stale(before, there, reach):
        return
    if not same_allocation(present, step.before) and not same_allocation(present, step.after):
        raise Refused(f"{step.model}: somebody else changed it to {present}; planning anew")
    if base_env_of(before, there) is None:
        changed = prepared(before, step.after, shares, reach)
    else:  # it is looked at: a mount that hangs holds up this step, not the daemon
        changed = await asyncio.to_thread(prepared, before, step.after, shares, reach)
    await triton.load(step.model, changed)
    applied = allocation_of(await _read_back(step.model, triton), there)
    if not same_allocation(applied, step.after):
        raise Refused(f"{step.model}: Triton loaded {applied} where {step.after} was asked")


async def _read_back(model: str, triton: Reloader) -> dict[str, Any]:
    """The configuration after a load; a busy server may miss a deadline without anything being wrong."""
    for _ in range(READ_BACKS - 1):
        with contextlib.suppress(Unreachable):
            return await triton.config(model)
    return await triton.config(model)


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether a second copy of a model fits beside the first: why not, or why that is not known; neither where it does."""

    refused: str = ""
    unknown: str = ""


def second_copy(model: str, seen: Observation, copy_bytes: Mapping[str, int]) -> Fits:
    """``copy_bytes``: device memory (bytes) of one instance of each model, as profiled after its largest batch."""
    reading, each = seen.models[model], copy_bytes.get(model)
    if each is None:
        return Fits(unknown="its profile tells no memory_bytes")
    board = next((board for board in seen.boards if board.index == reading.gpu_index), None)
    if board is None or board.memory_used_bytes is None or board.memory_total_bytes is None:
        return Fits(unknown="the memory of its GPU cannot be read")
    needed, free = each * max(1, reading.allocation.instances), board.memory_total_bytes - board.memory_used_bytes
    if needed <= free:
        return Fits()
    there = f"GPU {reading.gpu_index} has {free / 2**20:.0f} MiB free"
    return Fits(refused=f"{model}: a second copy takes {needed / 2**20:.0f} MiB while it is reloaded, and {there}")


class SecondCopies:
    """:func:`second_copy` for a daemon: what is not known is said once and does not stand in the way, as many boards are nearly empty."""

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
) -> Outcome:
    """Carry out the first step of ``plan``; the ticks after it, reading the world anew, carry out the rest.

    ``triton_of`` maps models to the names of their servers; ``shares`` is the folder of share environments, under the path at which
    Triton sees it. ``refused``: why the step must not be tried, if it must not. ``reach``: how shares reach the models of a server.
    """
    if not plan.steps:
        return Outcome()
    step, began_s = plan.steps[0], time.monotonic()
    try:
        if refused:
            raise Refused(refused)
        server = triton_of[step.model]
        await _apply(step, tritons[server], shares, (reach or {}).get(server, PLAIN))
    except IgniterdError as error:
        return Outcome((Actuation(step, False, time.monotonic() - began_s, str(error)),))
    except Exception as error:  # a configuration nobody thought of: this change is not made, and the daemon goes on
        return Outcome((Actuation(step, False, time.monotonic() - began_s, f"unforeseen: {error!r}"),))
    return Outcome((Actuation(step, True, time.monotonic() - began_s),))
