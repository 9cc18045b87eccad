"""Closed loops: a model kept busy with requests of one batch size.

A few requests are always on their way, so that the next one waits in the queue when the last has
been executed and the GPU does not idle. Inputs too large to send each time lie in shared memory,
where Triton can see it (same host, same ``/dev/shm``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Protocol, Self

from igniterd.errors import IgniterdError, NotNow
from igniterd.profiler.inputs import Feed

REQUEST_TIMEOUT_S = 60.0
_SMALL_BYTES = 1 << 16  # below this a request carries its inputs itself


class Inferring(Protocol):
    """What is asked of a Triton client."""

    async def infer(self, request: bytes, *, timeout_s: float) -> object: ...

    async def register_memory(self, name: str, key: str, size: int) -> None: ...

    async def forget_memory(self, name: str) -> None: ...


class Source:
    """Requests of one model, made once for each batch size."""

    def __init__(self, feed: Feed, region: str = "") -> None:
        self.feed = feed
        self.shared = bool(region)
        self._region = region
        self._made: dict[int, bytes] = {}

    def request(self, batch: int) -> bytes:
        """Serialised, for ``batch`` items."""
        if batch not in self._made:
            self._made[batch] = self.feed.request(batch, self._region)
        return self._made[batch]


@asynccontextmanager
async def source(client: Inferring, feed: Feed) -> AsyncIterator[Source]:
    """Requests of ``feed``, its bytes in shared memory when they are many and Triton can see them;
    forgotten on the way out."""
    if feed.size < _SMALL_BYTES:
        yield Source(feed)
        return
    memory = SharedMemory(create=True, size=feed.size)
    name, offset = f"igniterd-{memory.name.strip('/')}", 0
    try:
        with memoryview(memory.buf or b"") as view:
            for tensor in feed.tensors:
                view[offset : offset + len(tensor.blob)] = tensor.blob
                offset += len(tensor.blob)
        try:
            await client.register_memory(name, f"/{memory.name.strip('/')}", feed.size)
        except NotNow:
            name = ""  # Triton is elsewhere: the bytes travel with every request
        yield Source(feed, name)
    finally:
        if name:
            with contextlib.suppress(IgniterdError):
                await asyncio.shield(client.forget_memory(name))
        memory.close()
        memory.unlink()


class ClosedLoop:
    """One model kept busy with batches of one size while the context lasts; every request is
    answered before it ends."""

    def __init__(self, client: Inferring, requests: Source, batch: int, depth: int) -> None:
        self.model, self.batch = requests.feed.model, batch
        self.failure: NotNow | None = None
        """Why it stopped early."""
        self.answered = 0
        """Requests answered so far."""
        self._client, self._request, self._depth = client, requests.request(batch), depth
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.deepen(self._depth)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        await asyncio.shield(asyncio.gather(*self._tasks))

    def deepen(self, depth: int) -> None:
        """Have at least ``depth`` requests on their way."""
        self._tasks += [
            asyncio.create_task(self._go(), name=f"load {self.model}")
            for _ in range(depth - len(self._tasks))
        ]

    async def _go(self) -> None:
        while not self._over:
            try:
                await self._client.infer(self._request, timeout_s=REQUEST_TIMEOUT_S)
                self.answered += 1
            except NotNow as problem:
                self.failure, self._over = problem, True


@asynccontextmanager
async def busy(loops: Sequence[ClosedLoop]) -> AsyncIterator[None]:
    """All of ``loops`` at once."""
    async with contextlib.AsyncExitStack() as stack:
        for loop in loops:
            await stack.enter_async_context(loop)
        yield
