"""One Triton of the cluster, and what a rebalance does there.

A model that is not served has no configuration that Triton tells. Where its file can be read it is
loaded once, with everything that is wanted. Elsewhere it is loaded as its repository has it, which
tells the configuration, and then reloaded with what is wanted: no traffic goes there yet. For that
moment it has room as its own file says.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from igniterd.adopt import read_back
from igniterd.adopt_compare import Server, Terms, ask, feed_for
from igniterd.clients.environments import DEFAULT_SHARES, ModelConfig
from igniterd.clients.repository import own_config
from igniterd.clients.server_identity import is_here
from igniterd.clients.shares import reach_of
from igniterd.clients.triton.apply import Applier
from igniterd.clients.triton.config import allocation_of, kinds_of, same_allocation
from igniterd.clients.triton.config_change import marked, same_but_instances
from igniterd.clients.triton.marks import rebalance_mark
from igniterd.errors import CannotRun, IgniterdError, NotNow, Refused
from igniterd.fleet.places import FleetTriton
from igniterd.records import Allocation, ModelReading

LOOK_EVERY_S = 0.25
_ANSWER_S = 30.0  # for one request to a model that has just been loaded
_SERVED, _BETWEEN = "READY", ("LOADING", "UNLOADING")


class Client(Server, Protocol):
    """What is asked of a Triton client."""

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]: ...

    async def close(self) -> None: ...


class RemoteTriton:
    """Raises :class:`~igniterd.errors.NotNow` where Triton does not answer, or says no."""

    def __init__(
        self, server: FleetTriton, client: Client, clock: Callable[[], float] = time.time
    ) -> None:
        self.server, self.client = server, client
        self.name = server.host if server.name == "main" else f"{server.host}/{server.name}"
        self.shares = server.shares
        self._there = str(server.shares or DEFAULT_SHARES)
        self._loads = _MarkedLoads(client, self._there, clock)
        self._here: bool | None = None

    # ------------------------------------------------------------ looking

    async def refuses(self) -> str:
        """Why nothing can be changed there, or an empty string."""
        why = await self.client.refuses_loads()
        return f"{self.name}: {why}" if why else ""

    async def present(self, model: str) -> ModelConfig | None:
        """The configuration that serves; None where the model is not served."""
        states = {e.state for e in await self.client.index() if e.name == model}
        if between := states & set(_BETWEEN):
            raise Refused(f"{self.name}: {model} is just {min(between)}; try again in a moment")
        return await self.client.config(model) if _SERVED in states else None

    def allocation(self, config: ModelConfig) -> Allocation:
        return allocation_of(config, self._there)

    async def requests(self, model: str) -> tuple[int, int | None]:
        """Requests that have ended since it was loaded, and those that wait (None: not told)."""
        answer = await self.client.statistics(model)
        ended = sum(
            each.inference_stats.success.count + each.inference_stats.fail.count
            for each in answer.model_stats
        )
        if self.server.metrics_url is None:
            return ended, None
        found = (await self.client.read_models((model,)))[model]
        return ended, found.pending_count if isinstance(found, ModelReading) else None

    async def answers(self, model: str) -> bool:
        """Whether it answers one request of random values; False where none can be made for it.
        Raises :class:`Refused` where it says no."""
        terms = Terms(request_s=_ANSWER_S)
        config = await read_back(self.client, model)
        try:
            feed = feed_for(config, 1, terms, terms.seed)
        except (CannotRun, Refused):
            return False
        await ask(self.client, model, feed, 1, terms)
        return True

    # ------------------------------------------------------------ changing

    async def apply(self, model: str, wanted: Allocation, expected: Collection[Allocation]) -> None:
        """Bring a model that serves to ``wanted``, from one of ``expected``."""
        await (await self._applier()).apply(model, wanted, expected=expected)

    async def load(self, model: str, wanted: Allocation) -> None:
        """Load a model that is not served, so that it serves with ``wanted`` when this returns.

        Where that fails it is not served.
        """
        own = await self._own(model)
        if own is not None:
            await self._load_once(model, await self._changed(own, wanted))
        else:
            await self._load_once(model, None)
        try:
            found = await read_back(self.client, model)
            if not self._is(found, wanted):
                await self._loads.load(model, await self._changed(found, wanted))
                found = await read_back(self.client, model)
            self._check(model, found, wanted)
        except IgniterdError as error:
            raise await self._taken_back(model, error) from error

    async def change_loaded(self, model: str, wanted: Allocation) -> None:
        """Bring a model that was loaded as its repository has it to ``wanted``."""
        found = await self.client.config(model)
        if not self._is(found, wanted):
            await self._loads.load(model, await self._changed(found, wanted))
        found = await read_back(self.client, model)
        self._check(model, found, wanted)

    def _check(self, model: str, found: ModelConfig, wanted: Allocation) -> None:
        """Raise :class:`Refused` where ``found``, read back after a load, is not as asked."""
        if not self._is(found, wanted):
            there = self.allocation(found)
            raise Refused(f"{model}: Triton loaded {there} where {wanted} was asked")

    async def put(
        self, model: str, config: ModelConfig, present: ModelConfig | None, *, anew: bool = False
    ) -> None:
        """Load a configuration that served before, in place of ``present``; ``anew``: also where it
        seems to serve."""
        in_place = not anew and present is not None and same_but_instances(present, config)
        await self._loads.load(model, config, exact=in_place)
        found = self.allocation(await read_back(self.client, model))
        if not same_allocation(found, self.allocation(config)):
            raise Refused(
                f"{model}: Triton loaded {found} where {self.allocation(config)} was asked"
            )

    async def drain(self, model: str, quiet_s: float, deadline_s: float) -> None:
        """Wait until no request has ended for ``quiet_s`` and none waits. Raises :class:`Refused`
        where they still arrive at the deadline."""
        time_s = asyncio.get_running_loop().time
        first, waiting = await self.requests(model)
        seen, since_s, until_s = first, time_s(), time_s() + max(deadline_s, quiet_s)
        while time_s() - since_s < quiet_s or waiting:
            if time_s() >= until_s:
                more = f"{waiting} wait, " if waiting else ""
                raise Refused(
                    f"{self.name}: requests for {model} still arrive there ({more}{seen - first} "
                    f"in {max(deadline_s, quiet_s):g} s), so it stays loaded: is its route changed?"
                )
            await asyncio.sleep(LOOK_EVERY_S)
            now, waiting = await self.requests(model)
            if now != seen:
                seen, since_s = now, time_s()

    async def unload(self, model: str) -> None:
        """Unload, and wait until it is gone: Triton answers its last requests first."""
        await self.client.unload(model)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.server.reload_timeout_s):
                while await self._is_there(model):  # noqa: ASYNC110  Triton ends it
                    await asyncio.sleep(LOOK_EVERY_S)
                return
        raise Refused(
            f"{self.name}: {model} is not gone {self.server.reload_timeout_s:g} s after Triton "
            "took its unload"
        )

    async def close(self) -> None:
        await self.client.close()

    # ------------------------------------------------------------ inside

    def _is(self, config: ModelConfig, wanted: Allocation) -> bool:
        return same_allocation(self.allocation(config), wanted)

    async def _is_there(self, model: str) -> bool:
        states = {e.state for e in await self.client.index() if e.name == model}
        return bool(states & {_SERVED, *_BETWEEN})

    async def _own(self, model: str) -> ModelConfig | None:
        """What its file says, where that can be read."""
        if not await self._is_here():
            return None
        repositories = tuple(self.server.repository)
        return await asyncio.to_thread(own_config, model, self.server.url, repositories)

    async def _is_here(self) -> bool:
        if self._here is None:
            self._here = await asyncio.to_thread(is_here, self.server.url)
        return self._here

    async def _applier(self) -> Applier:
        return Applier(
            self._loads,
            Path(self._there),
            reach_of(self.server),
            here=await self._is_here(),
        )

    async def _changed(self, config: ModelConfig, wanted: Allocation) -> ModelConfig:
        return await (await self._applier()).change(placed(config, wanted), wanted)

    async def _load_once(self, model: str, config: ModelConfig | None) -> None:
        try:
            if config is None:
                await self.client.load(model, None)
            else:
                await self._loads.load(model, config)
        except Refused as error:
            raise Refused(
                f"{self.name}: {model} cannot be loaded, and this Triton as a whole says that it "
                f"is not ready until a load of it succeeds or it starts anew: {error}"
            ) from error

    async def _taken_back(self, model: str, error: IgniterdError) -> Refused:
        try:
            await self.unload(model)
        except IgniterdError as again:
            return Refused(f"{error}; {model} is left loaded on {self.name}: {again}")
        return Refused(f"{error}; {model} is unloaded again on {self.name}")


class _MarkedLoads:
    """Loads whose mark says that a rebalance made them, so that the host's daemon steers on."""

    def __init__(self, client: Client, shares: str, clock: Callable[[], float]) -> None:
        self._client, self._shares, self._clock = client, shares, clock

    async def config(self, model: str) -> ModelConfig:
        return await self._client.config(model)

    async def load(self, model: str, config: ModelConfig, *, exact: bool = False) -> None:
        """``exact``: instances alone are changed, beside those that serve on. Another mark would
        make that a new copy: it has none, and the daemon respects it as a change by hand."""
        mark = rebalance_mark(allocation_of(config, self._shares), self._clock())
        await self._client.load(model, config if exact else marked(config, mark), exact=True)


def placed(config: ModelConfig, wanted: Allocation) -> ModelConfig:
    """A copy whose one group of instances is on the GPUs of ``wanted``: a model's file may leave
    that to Triton. Raises :class:`Refused` for one that cannot be put there."""
    name, groups = config.get("name", "?"), config.get("instance_group", [])
    counts = {wanted.devices.count(device) for device in wanted.devices}
    if not wanted.devices:
        return config
    if len(groups) > 1 or len(counts) != 1 or not kinds_of(config) <= {"KIND_AUTO", "KIND_GPU"}:
        raise Refused(
            f"{name}: it cannot be put on GPUs {', '.join(map(str, wanted.devices))}: igniterd "
            "moves a model of one instance group on GPUs, with as many instances on each"
        )
    group = {
        **(groups[0] if groups else {}),
        "kind": "KIND_GPU",
        "gpus": sorted(set(wanted.devices)),
        "count": counts.pop(),
    }
    return {**config, "instance_group": [group]}
