"""Bring one model of a Triton to an allocation: its configuration changed, loaded and read back.

The stage that decides on changes (:mod:`igniterd.act`) speaks of allocations; what they are in a
configuration of Triton's, and in which folder a share lies, is known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from igniterd.clients.environments import PLAIN, ModelConfig, Reach, base_env_of, is_stale
from igniterd.clients.shares import prepare_config
from igniterd.clients.triton.config import allocation_of, instance_names_of, same_allocation
from igniterd.clients.triton.config_change import same_but_instances, with_allocation
from igniterd.errors import ChangedByHand, IgniterdError, Refused, Unreachable
from igniterd.records import Allocation, Stub

READ_BACKS = 5  # each with the deadline of a call
PROCESSES_S = 2.0  # longest look at the host's processes
OLD_GONE_S = 5.0  # longest wait for an old copy's processes to end, before anything else is changed
LOOK_EVERY_S = 0.2


class Reloader(Protocol):
    """What is asked of a Triton client."""

    async def config(self, model: str) -> ModelConfig: ...

    async def load(self, model: str, config: ModelConfig, *, exact: bool = False) -> None: ...


class ProcessSource(Protocol):
    """What is asked of the host's process table."""

    async def read(self) -> tuple[Stub, ...]: ...


@dataclass(frozen=True, slots=True)
class Applier:
    """Applies allocations to the models of one Triton.

    ``shares`` is the folder of share environments, under the path at which Triton sees it;
    ``reach``: how they reach the models of this server. ``processes``: where they can be seen, a
    load is a reload only if they are new. Not ``here``: the folder is another machine's, where
    ``igniterd shares --install`` or the daemon has made what is named.
    """

    triton: Reloader
    shares: Path
    reach: Reach = PLAIN
    processes: ProcessSource | None = None
    here: bool = True

    async def apply(
        self,
        model: str,
        wanted: Allocation,
        *,
        expected: Collection[Allocation],
        anew: bool = False,
    ) -> None:
        """Bring ``model`` to ``wanted``; return when that serves.

        What is there already is loaded again only with ``anew``, or where an earlier igniterd wrote
        its share. Raises :class:`~igniterd.errors.ChangedByHand` where the model has neither
        ``wanted`` nor one of ``expected``, and :class:`~igniterd.errors.NotNow` where Triton does
        not do it.
        """
        before, there = await self.triton.config(model), str(self.shares)
        present = allocation_of(before, there)
        anew = anew or is_stale(before, there, self.reach)
        if same_allocation(present, wanted) and not anew:
            return
        if not any(same_allocation(present, each) for each in (wanted, *expected)):
            raise ChangedByHand(f"{model}: somebody else changed it to {present}; planning anew")
        changed = await self.change(before, wanted)
        # Instances alone are started and ended beside those that serve on; anything else is a new
        # copy, and must be one.
        in_place = same_but_instances(before, changed) and not anew
        running = await self._pids(before)
        if in_place:
            await self.triton.load(model, changed, exact=True)
        else:
            await self.triton.load(model, changed)
        after = await self._read_back(model)
        applied = allocation_of(after, there)
        if not same_allocation(applied, wanted):
            raise Refused(f"{model}: Triton loaded {applied} where {wanted} was asked")
        if running and not in_place:
            await self._check_processes(model, running, after)

    async def change(self, before: ModelConfig, wanted: Allocation) -> ModelConfig:
        """``before`` with ``wanted``, and the folder of its share made. Raises
        :class:`~igniterd.errors.Refused` where the model cannot be given that."""
        if not self.here:
            return with_allocation(before, wanted, str(self.shares), reach=self.reach)
        if base_env_of(before, str(self.shares)) is None:
            return prepare_config(before, wanted, self.shares, self.reach)
        # its own environment is looked at: a mount that hangs holds up this step, not the daemon
        return await asyncio.to_thread(prepare_config, before, wanted, self.shares, self.reach)

    async def _read_back(self, model: str) -> ModelConfig:
        """The configuration after a load; a busy server may miss a deadline without anything being
        wrong."""
        for _ in range(READ_BACKS - 1):
            with contextlib.suppress(Unreachable):
                return await self.triton.config(model)
        return await self.triton.config(model)

    # ------------------------------------------------------------ processes

    async def _check_processes(
        self, model: str, running: dict[int, int], after: ModelConfig
    ) -> None:
        """Refuse a load that started no process; wait for the old ones to end."""
        serving = await self._pids(after)
        if serving is None:
            return
        new = serving.keys() - running.keys()
        if not new:
            raise Refused(
                f"{model}: Triton said that it was reloaded, but its processes are the same as "
                "before"
            )
        # another Triton of this host may have a model of this name: its processes go on
        servers = {serving[pid] for pid in new}
        old = frozenset(pid for pid, server in running.items() if server in servers)
        await self._await_end(old, after)

    async def _pids(self, config: ModelConfig) -> dict[int, int] | None:
        """The processes of models of that name, and the server of each; ``None`` where they cannot
        be seen now."""
        if self.processes is None:
            return None
        try:
            async with asyncio.timeout(PROCESSES_S):
                stubs: tuple[Stub, ...] = await self.processes.read()
        except (TimeoutError, IgniterdError):
            return None
        names = instance_names_of(config)
        return {stub.pid: stub.server_pid for stub in stubs if stub.instance in names}

    async def _await_end(self, old: frozenset[int], config: ModelConfig) -> None:
        """Wait for the processes of the old copy to end: until then they use the GPU beside the new
        one.

        One that does not end in time is no failure of the change: the next tick says what is left.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OLD_GONE_S):
                while old & (await self._pids(config) or {}).keys():  # noqa: ASYNC110  others end
                    await asyncio.sleep(LOOK_EVERY_S)
