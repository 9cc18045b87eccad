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
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tritonclient.grpc import service_pb2

from igniterd.clients.environments import ModelConfig
from igniterd.clients.repository import model_folder, stub_memory_bytes
from igniterd.clients.triton.info import IndexEntry
from igniterd.clients.triton.obstacles import name_obstacle
from igniterd.engines.compare import Answer, OutputCompared, Timing, allowed_ms, compared, values_of
from igniterd.engines.hosting import (
    RUNTIME,
    SHADOW,
    can_host,
    engine_of,
    hosted,
    hosted_by_server,
    hosting_of,
    placeholder_of,
    shadow_of,
    unhosted_settings,
)
from igniterd.errors import CannotRun, IgniterdError, NotNow, Refused, Unreachable
from igniterd.profiler.inputs import Array, Feed, feed_of

VARIABLE_DIM = 16  # of inputs whose dimensions nobody gave
_ROUNDS, _EACH = 5, 4
_ENOUGH_S = 6.0  # of measuring one batch size; two rounds are made whatever they take
_COUNTED = 10
_GONE_S = 10.0
_READ_BACKS = 5


class Server(Protocol):
    """What is asked of a Triton client."""

    url: str

    async def config(self, model: str) -> ModelConfig: ...

    async def index(self) -> tuple[IndexEntry, ...]: ...

    async def refuses_loads(self) -> str: ...

    async def load(
        self,
        model: str,
        config: ModelConfig | None,
        files: Mapping[str, bytes] | None = None,
        *,
        exact: bool = False,
    ) -> None: ...

    async def unload(self, model: str) -> None: ...

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes: ...

    async def statistics(self, model: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What a hosted model must fulfil, and what is needed to try it.

    ``repositories``: folders of models as Triton sees them; empty: read from its command line.
    ``environment``: with the engine in it; empty: the server's own Python. A batch may take
    ``max_slowdown`` times the owner's time and ``allowance_ms`` more. ``board_bytes`` reads the
    board's memory in use.
    """

    repositories: Sequence[str] = ()
    environment: str = ""
    max_slowdown: float = 1.5
    allowance_ms: float = 0.5
    dry_run: bool = False
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    items: Mapping[str, Array] = field(default_factory=dict)
    seed: int = 0
    request_s: float = 30.0
    board_bytes: Callable[[], Awaitable[int | None]] | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """What came of it. ``outcome``: adopted, would adopt, already, refused (nothing is changed),
    released, own already, failed.

    ``how``: by which code it is hosted. ``notes``: settings that mean nothing any more. Memory is
    that of the hosted copy: its processes', and the board's where that can be read.
    """

    model: str
    outcome: str
    why: str = ""
    engine: str = ""
    how: str = ""
    outputs: tuple[OutputCompared, ...] = ()
    timings: tuple[Timing, ...] = ()
    process_bytes: int | None = None
    board_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.outcome not in ("refused", "failed")


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
    for how, override in _ways(before, versions, folder, terms.environment):
        tried = await _tried(client, before, override, replace(tried, how=how, why=""), terms)
        if not tried.why:
            break
    if tried.why:
        return tried
    if terms.dry_run:
        return replace(tried, outcome="would adopt")
    return await _swapped(client, before, override, tried, terms)


def _ways(
    before: ModelConfig, versions: Sequence[str], folder: str, environment: str
) -> list[tuple[str, ModelConfig]]:
    """How it can be hosted, what is to be tried first first."""
    ways = []
    with contextlib.suppress(Refused):
        by_server = hosted_by_server(before, versions, folder, environment=environment or None)
        ways.append((f"the server's own {RUNTIME}", by_server))
    config, _ = hosted(before, versions, folder, environment=environment or None)
    return [*ways, ("igniterd's hosting file", config)]


# ---------------------------------------------------------------- the copy under another name


async def _tried(
    client: Server, before: ModelConfig, override: ModelConfig, tried: Adoption, terms: Terms
) -> Adoption:
    """``tried`` with what the copy showed; ``why`` is empty where it may take the model's place."""
    board = await _board(terms)
    try:
        async with _shadow(client, override) as name:
            tried = await _measured(client, before, name, tried, terms)
            now = await _board(terms)
            more = None if now is None or board is None else max(0, now - board)
            return replace(tried, process_bytes=stub_memory_bytes(name), board_bytes=more)
    except Refused as error:
        return replace(tried, why=_said(str(error), terms.environment))


def _said(words: str, environment: str) -> str:
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
        await _place_kept(client, override, name)
        await client.load(name, config, files)
        yield name
    finally:
        await asyncio.shield(unload_copy(client, name))


async def _place_kept(client: Server, override: ModelConfig, name: str) -> None:
    """Have something ready under the name: a first load that is refused leaves the whole server
    "not ready" until it starts anew."""
    # the server's own Python may be one that runs no model, and so may the environment
    for own in (False, True):
        with contextlib.suppress(Refused):
            await client.load(name, *placeholder_of(override, name, in_environment=own))
            return


async def unload_copy(client: Server, name: str) -> None:
    """Unload, and wait until its memory is free. A load under way is ended by Triton first."""
    with contextlib.suppress(NotNow, TimeoutError):
        async with asyncio.timeout(_GONE_S):
            await client.unload(name)
            while True:  # Triton's index does not list it: it is in no repository
                await client.statistics(name)  # refused when there is no such model
                await asyncio.sleep(0.05)


async def _measured(
    client: Server, before: ModelConfig, name: str, tried: Adoption, terms: Terms
) -> Adoption:
    largest = max(1, int(before.get("max_batch_size", 0)))
    sizes = sorted({1, largest})
    feed = _feed(before, largest, terms, terms.seed)
    for batch in sizes:
        outputs = await _same(client, tried.model, name, feed, batch, terms)
        tried = replace(tried, outputs=outputs)
        if different := [o for o in outputs if not o.same]:
            said = "; ".join(f"output {o.name} {o.why}" for o in different)
            return replace(tried, why=f"its answers at batch {batch} are not the owner's: {said}")
    timings = tuple([await _timed(client, before, name, batch, terms) for batch in sizes])
    slow = [
        f"a batch of {t.batch} takes {t.hosted_ms:.3g} ms where the owner's takes "
        f"{t.owner_ms:.3g} ms and {t.allowed_ms:.3g} ms is allowed"
        for t in timings
        if not t.fast_enough
    ]
    return replace(tried, timings=timings, why="; ".join(slow))


def _feed(config: ModelConfig, largest: int, terms: Terms, seed: int) -> Feed:
    told = {i["name"]: [int(d) for d in i.get("dims", [])] for i in config.get("input", [])}
    guessed = {
        name: [VARIABLE_DIM if d < 0 else d for d in dims]
        for name, dims in told.items()
        if any(d < 0 for d in dims) and name not in terms.items
    }
    shapes = guessed | dict(terms.shapes)
    return feed_of(config, largest, shapes=shapes, items=terms.items, seed=seed)


async def _asked(client: Server, model: str, feed: Feed, batch: int, terms: Terms) -> Answer:
    request = replace(feed, model=model).request(batch)
    raw = await client.infer(request, timeout_s=terms.request_s)
    message = service_pb2.ModelInferResponse.FromString(raw)
    contents = zip(message.outputs, message.raw_output_contents, strict=True)
    return {o.name: (o.datatype, values_of(o.datatype, o.shape, b)) for o, b in contents}


async def _same(
    client: Server, model: str, name: str, feed: Feed, batch: int, terms: Terms
) -> tuple[OutputCompared, ...]:
    """The owner's answer against the copy's. One that differs from itself cannot be compared."""
    try:
        owner = await _asked(client, model, feed, batch, terms)
        again = await _asked(client, model, feed, batch, terms)
    except Refused as error:
        raise Refused(
            f"{model} itself does not answer a request with random values: {error}; give values "
            "it takes with --input, or dimensions with --shape"
        ) from error
    if unsteady := [o for o in compared(owner, again) if not o.same]:
        return tuple(
            replace(o, why=f"{o.why} between two answers of the owner's own") for o in unsteady
        )
    return compared(owner, await _asked(client, name, feed, batch, terms))


# ---------------------------------------------------------------- time


async def _timed(
    client: Server, before: ModelConfig, name: str, batch: int, terms: Terms
) -> Timing:
    """Both in turn, so that a busy machine is as busy for one as for the other."""
    model, cached = str(before["name"]), bool(before.get("response_cache", {}).get("enable"))
    clock = asyncio.get_running_loop().time
    found: dict[str, list[float]] = {model: [], name: []}
    feed = _feed(before, batch, terms, terms.seed + 1)
    for each in found:
        await _asked(client, each, feed, batch, terms)
    began_s, number = clock(), terms.seed + 2
    for done in range(_ROUNDS):
        if done >= 2 and clock() - began_s > _ENOUGH_S:
            break
        for each, times in found.items():
            feeds = [feed] * _EACH
            if cached:  # or the answers would come out of the cache
                feeds = [_feed(before, batch, terms, number + n) for n in range(_EACH)]
                number += _EACH
            times.append(await _round_ms(client, each, feeds, batch, terms))
    owner, other = (statistics.median(found[each]) for each in (model, name))
    return Timing(batch, owner, other, allowed_ms(owner, terms.max_slowdown, terms.allowance_ms))


async def _round_ms(
    client: Server, model: str, feeds: Sequence[Feed], batch: int, terms: Terms
) -> float:
    """Milliseconds of one execution of this batch by Triton's own statistics.

    Where others' traffic mixed with ours so that none was executed alone: of all such executions
    since the model was loaded. Where there was none ever: the time we waited.
    """
    clock = asyncio.get_running_loop().time
    before = await _executed(client, model, batch)
    after, waited = before, list[float]()
    for feed in feeds:
        began_s = clock()
        await client.infer(replace(feed, model=model).request(batch), timeout_s=terms.request_s)
        waited.append((clock() - began_s) * 1e3)
    for _ in range(_COUNTED):  # Triton counts a moment after it has answered
        after = await _executed(client, model, batch)
        if after[0] - before[0] >= len(feeds):
            break
        await asyncio.sleep(0.02)
    if after[0] > before[0]:
        return (after[1] - before[1]) / (after[0] - before[0]) / 1e6
    return after[1] / after[0] / 1e6 if after[0] else statistics.median(waited)


async def _executed(client: Server, model: str, batch: int) -> tuple[int, int]:
    """Executions of exactly this batch so far, and their nanoseconds."""
    message = await client.statistics(model)
    count, spent_ns = 0, 0
    for version in message.model_stats:
        for each in version.batch_stats:
            if each.batch_size == batch:
                count += each.compute_infer.count
                spent_ns += each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns
    return count, spent_ns


# ---------------------------------------------------------------- the model itself


async def _swapped(
    client: Server, before: ModelConfig, override: ModelConfig, tried: Adoption, terms: Terms
) -> Adoption:
    """Load it under the model's own name, and look at what serves then."""
    model = tried.model
    if await client.config(model) != before:
        return replace(tried, why=f"{model}: somebody else changed it meanwhile; try again")
    feed = _feed(before, 1, terms, terms.seed)
    expected = await _asked(client, model, feed, 1, terms)
    try:
        await client.load(model, override)
    except Refused as error:
        return replace(tried, why=f"the copy was loaded, the model itself not: {error}")
    wanted = hosting_of(override)
    try:
        if hosting_of(await read_back(client, model)) != wanted:
            raise Refused("Triton serves another configuration than the one loaded")
        found = compared(expected, await _asked(client, model, feed, 1, terms))
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
