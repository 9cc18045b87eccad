"""Give a model of an in-process backend a process of its own; :mod:`igniterd.giveback` undoes it.

Before anything is touched the hosted model is loaded under another name and compared with the one
that serves: same answers, time, memory. Only one that is the same and no slower than agreed takes
its place, by one load, so no request fails. Nothing is written into the repository: Triton
restarted serves the owner's own.

Nothing here prints: the CLI and the daemon get a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from igniterd.adopt_compare import Adoption, Server, Terms, ask, compare_copy, feed_for
from igniterd.clients.environments import ModelConfig
from igniterd.clients.repository import model_folder, stub_memory_bytes
from igniterd.clients.triton.obstacles import name_obstacle
from igniterd.engines.compare import compare_outputs
from igniterd.engines.hosting import (
    RUNTIME,
    SHADOW,
    can_host,
    engine_of,
    host_by_server,
    host_model,
    hosting_of,
    placeholder_of,
    shadow_of,
    unhosted_settings,
)
from igniterd.errors import CannotRun, IgniterdError, NotNow, Refused, Unreachable

_GONE_S = 10.0
_READ_BACKS = 5


async def adopt(client: Server, model: str, terms: Terms) -> Adoption:
    """Give ``model`` a process of its own if its hosted copy is the same and fast enough.

    Raises :class:`IgniterdError` where it cannot even be tried; nothing is changed then.
    """
    before = await client.config(model)
    if hosting_of(before) is not None:
        return Adoption(model, "already", engine=engine_of(before))
    if why := can_host(before) or name_obstacle(before):
        return Adoption(model, "refused", why)
    if why := await client.refuses_loads():
        raise CannotRun(f"Triton at {client.url}: {why}")
    folder = model_folder(model, client.url, tuple(terms.repositories))
    versions = tuple(
        e.version for e in await client.index() if e.name == model and e.state == "READY"
    )
    tried = Adoption(model, "refused", engine=engine_of(before), notes=unhosted_settings(before))
    for how, override in _find_ways(before, versions, folder, terms.environment):
        tried = await _try_ways(client, before, override, replace(tried, how=how, why=""), terms)
        if not tried.why:
            break
    if tried.why:
        return tried
    if terms.dry_run:
        return replace(tried, outcome="would adopt")
    return await _swap(client, before, override, tried, terms)


def _find_ways(
    before: ModelConfig, versions: Sequence[str], folder: str, environment: str
) -> list[tuple[str, ModelConfig]]:
    """How it can be hosted, what is to be tried first first."""
    ways = []
    with contextlib.suppress(Refused):
        by_server = host_by_server(before, versions, folder, environment=environment or None)
        ways.append((f"the server's own {RUNTIME}", by_server))
    config, _ = host_model(before, versions, folder, environment=environment or None)
    return [*ways, ("igniterd's hosting file", config)]


# ---------------------------------------------------------------- the copy under another name


async def _try_ways(
    client: Server, before: ModelConfig, override: ModelConfig, tried: Adoption, terms: Terms
) -> Adoption:
    """``tried`` with what the copy showed; ``why`` is empty where it may take the model's place."""
    board = await _board(terms)
    try:
        async with _shadow(client, override) as name:
            tried = await compare_copy(client, before, name, tried, terms)
            now = await _board(terms)
            more = None if now is None or board is None else max(0, now - board)
            return replace(tried, process_bytes=stub_memory_bytes(name), board_bytes=more)
    except Refused as error:
        return replace(tried, why=_explain(str(error), terms.environment))


def _explain(words: str, environment: str) -> str:
    """Triton's refusal of the copy, without what is Triton's own of it."""
    said = " ".join(words.split())
    found = re.search(r"No module named '(\w+)'", said)
    if environment and "canonical path" in said:
        return (
            f"the environment {environment} is not there as Triton sees the disk: [engines] "
            "environment"
        )
    if found is None:
        ours = (
            said.rpartition("state: Internal: ")[2]
            .removesuffix(";")
            .removeprefix("TritonModelException: ")
        )
        return re.sub(r" At: /\S+\(\d+\): \w+", "", ours).strip()
    place = f"the environment {environment}" if environment else "the Python that Triton runs"
    remedy = "install it there, or name an environment that has it: [engines] environment"
    return f"{place} lacks {found.group(1)}: {remedy}"


async def _board(terms: Terms) -> int | None:
    if terms.board_bytes is None:
        return None
    with contextlib.suppress(IgniterdError):
        return await terms.board_bytes()
    return None


@asynccontextmanager
async def _shadow(client: Server, override: ModelConfig) -> AsyncIterator[str]:
    """A copy under a name of no repository, unloaded on the way out whatever happens."""
    name = SHADOW + secrets.token_hex(4)
    config, files = shadow_of(override, name)
    try:
        await _keep_place(client, override, name)
        await _answered(client.load(name, config, files))
        yield name
    finally:
        await asyncio.shield(unload_copy(client, name))


async def _keep_place(client: Server, override: ModelConfig, name: str) -> None:
    """Have something ready under the name: a first load that is refused leaves the whole server
    "not ready" until it starts anew."""
    # the server's own Python may be one that runs no model, and so may the environment
    for own in (False, True):
        with contextlib.suppress(Refused):
            await _answered(client.load(name, *placeholder_of(override, name, in_environment=own)))
            return


async def _answered(load: Coroutine[Any, Any, None]) -> None:
    """Wait for ``load`` to be answered, or its deadline, also when this is cancelled: what ends a
    copy unloads it next, and a tritonserver (24.10) was seen to crash when it was told to while it
    loaded."""
    loading = asyncio.ensure_future(load)
    try:
        await asyncio.shield(loading)
    except asyncio.CancelledError:
        await asyncio.wait({loading})
        if not loading.cancelled():
            loading.exception()  # looked at: nobody else does
        raise


async def unload_copy(client: Server, name: str) -> None:
    """Unload, and wait until its memory is free."""
    with contextlib.suppress(NotNow, TimeoutError):
        async with asyncio.timeout(_GONE_S):
            await client.unload(name)
            while True:  # Triton's index does not list it: it is in no repository
                await client.statistics(name)  # refused when there is no such model
                await asyncio.sleep(0.05)


# ---------------------------------------------------------------- time


# ---------------------------------------------------------------- the model itself


async def _swap(
    client: Server, before: ModelConfig, override: ModelConfig, tried: Adoption, terms: Terms
) -> Adoption:
    """Load it under the model's own name, and look at what serves then."""
    model = tried.model
    if await client.config(model) != before:
        return replace(tried, why=f"{model}: somebody else changed it meanwhile; try again")
    feed = feed_for(before, 1, terms, terms.seed)
    expected = await ask(client, model, feed, 1, terms)
    try:
        await client.load(model, override)
    except Refused as error:
        return replace(tried, why=f"the copy was loaded, the model itself not: {error}")
    wanted = hosting_of(override)
    try:
        if hosting_of(await read_back(client, model)) != wanted:
            raise Refused("Triton serves another configuration than the one loaded")
        found = compare_outputs(expected, await ask(client, model, feed, 1, terms))
        if different := [o for o in found if not o.same]:
            raise Refused("; ".join(f"output {o.name} {o.why}" for o in different))
    except IgniterdError as error:
        try:
            await client.load(model, before, {}, exact=True)
        except IgniterdError as again:
            raise Refused(
                f"after the swap: {error}; the owner's model is not back: {again}; igniterd "
                f"release {model}"
            ) from error
        return replace(tried, why=f"after the swap: {error}; the owner's model is back")
    return replace(tried, outcome="adopted")


async def read_back(client: Server, model: str) -> ModelConfig:
    """The configuration after a load; a busy server may miss a deadline."""
    for _ in range(_READ_BACKS - 1):
        with contextlib.suppress(Unreachable):
            return await client.config(model)
    return await client.config(model)
