"""Compare a hosted copy with the owner's model: the same answers, and how long each takes."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tritonclient.grpc import service_pb2

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.info import IndexEntry
from igniterd.engines.compare import (
    Answer,
    OutputCompared,
    Timing,
    allowed_ms,
    compare_outputs,
    values_of,
)
from igniterd.errors import Refused
from igniterd.profiler.inputs import Array, Feed, feed_of

VARIABLE_DIM = 16  # of inputs whose dimensions nobody gave


_ROUNDS, _EACH = 5, 4


_ENOUGH_S = 6.0  # of measuring one batch size; two rounds are made whatever they take


_COUNTED = 10


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


async def compare_copy(
    client: Server, before: ModelConfig, name: str, tried: Adoption, terms: Terms
) -> Adoption:
    """What was tried, with the answers and times of ``name`` beside those of the owner's model.

    ``why`` is filled where the copy is not the same or too slow. Raises :class:`Refused` where the
    owner's model itself answers no request that igniterd can make.
    """
    largest = max(1, int(before.get("max_batch_size", 0)))
    sizes = sorted({1, largest})
    feed = feed_for(before, largest, terms, terms.seed)
    for batch in sizes:
        outputs = await _compare_answers(client, tried.model, name, feed, batch, terms)
        tried = replace(tried, outputs=outputs)
        if different := [o for o in outputs if not o.same]:
            said = "; ".join(f"output {o.name} {o.why}" for o in different)
            return replace(tried, why=f"its answers at batch {batch} are not the owner's: {said}")
    timings = tuple([await _time_batch(client, before, name, batch, terms) for batch in sizes])
    slow = [
        f"a batch of {t.batch} takes {t.hosted_ms:.3g} ms where the owner's takes "
        f"{t.owner_ms:.3g} ms and {t.allowed_ms:.3g} ms is allowed"
        for t in timings
        if not t.fast_enough
    ]
    return replace(tried, timings=timings, why="; ".join(slow))


def feed_for(config: ModelConfig, largest: int, terms: Terms, seed: int) -> Feed:
    """Random inputs of up to ``largest`` items, of the shapes and values that ``terms`` name."""
    told = {i["name"]: [int(d) for d in i.get("dims", [])] for i in config.get("input", [])}
    guessed = {
        name: [VARIABLE_DIM if d < 0 else d for d in dims]
        for name, dims in told.items()
        if any(d < 0 for d in dims) and name not in terms.items
    }
    shapes = guessed | dict(terms.shapes)
    return feed_of(config, largest, shapes=shapes, items=terms.items, seed=seed)


async def ask(client: Server, model: str, feed: Feed, batch: int, terms: Terms) -> Answer:
    """One request of ``batch`` items: datatype and values of each output."""
    request = replace(feed, model=model).request(batch)
    raw = await client.infer(request, timeout_s=terms.request_s)
    message = service_pb2.ModelInferResponse.FromString(raw)
    contents = zip(message.outputs, message.raw_output_contents, strict=True)
    return {o.name: (o.datatype, values_of(o.datatype, o.shape, b)) for o, b in contents}


async def _compare_answers(
    client: Server, model: str, name: str, feed: Feed, batch: int, terms: Terms
) -> tuple[OutputCompared, ...]:
    """The owner's answer against the copy's. One that differs from itself cannot be compared."""
    try:
        owner = await ask(client, model, feed, batch, terms)
        again = await ask(client, model, feed, batch, terms)
    except Refused as error:
        raise Refused(
            f"{model} itself does not answer a request with random values: {error}; give values "
            "it takes with --input, or dimensions with --shape"
        ) from error
    if unsteady := [o for o in compare_outputs(owner, again) if not o.same]:
        return tuple(
            replace(o, why=f"{o.why} between two answers of the owner's own") for o in unsteady
        )
    return compare_outputs(owner, await ask(client, name, feed, batch, terms))


async def _time_batch(
    client: Server, before: ModelConfig, name: str, batch: int, terms: Terms
) -> Timing:
    """Both in turn, so that a busy machine is as busy for one as for the other."""
    model, cached = str(before["name"]), bool(before.get("response_cache", {}).get("enable"))
    clock = asyncio.get_running_loop().time
    found: dict[str, list[float]] = {model: [], name: []}
    feed = feed_for(before, batch, terms, terms.seed + 1)
    for each in found:
        await ask(client, each, feed, batch, terms)
    began_s, number = clock(), terms.seed + 2
    for done in range(_ROUNDS):
        if done >= 2 and clock() - began_s > _ENOUGH_S:
            break
        for each, times in found.items():
            feeds = [feed] * _EACH
            if cached:  # or the answers would come out of the cache
                feeds = [feed_for(before, batch, terms, number + n) for n in range(_EACH)]
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
    before = await _count_executions(client, model, batch)
    after, waited = before, list[float]()
    for feed in feeds:
        began_s = clock()
        await client.infer(replace(feed, model=model).request(batch), timeout_s=terms.request_s)
        waited.append((clock() - began_s) * 1e3)
    for _ in range(_COUNTED):  # Triton counts a moment after it has answered
        after = await _count_executions(client, model, batch)
        if after[0] - before[0] >= len(feeds):
            break
        await asyncio.sleep(0.02)
    if after[0] > before[0]:
        return (after[1] - before[1]) / (after[0] - before[0]) / 1e6
    return after[1] / after[0] / 1e6 if after[0] else statistics.median(waited)


async def _count_executions(client: Server, model: str, batch: int) -> tuple[int, int]:
    """Executions of exactly this batch so far, and their nanoseconds."""
    message = await client.statistics(model)
    count, spent_ns = 0, 0
    for version in message.model_stats:
        for each in version.batch_stats:
            if each.batch_size == batch:
                count += each.compute_infer.count
                spent_ns += each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns
    return count, spent_ns
