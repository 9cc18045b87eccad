"""What the GPU did while something was measured: power, clock, memory, and counters where it has
them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from igniterd.errors import IgniterdError, ReadingUnsupported
from igniterd.profiler.counters import Activity, Counters
from igniterd.records import BoardReading

SAMPLE_S = 0.25
_COUNTER_TIMEOUT_S = 2.0
_NO_COPY_BYTES = 16 << 20  # less than any process with a CUDA context


def now_s() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()


class BoardSource(Protocol):
    """What is asked of an NVML client."""

    async def read(self) -> tuple[BoardReading, ...]: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Means over a span; what could not be read is ``None``."""

    power_w: float | None = None
    clock_mhz: float | None = None
    activity: Activity = field(default_factory=Activity)


@dataclass(slots=True)
class Span:
    """A span under way; ``result`` is there when it is over."""

    readings: list[BoardReading] = field(default_factory=list)
    result: Drawn = field(default_factory=Drawn)
    over: bool = False


class Probe:
    """One board of this host. Readings that fail are left out: they are figures beside the profile,
    not the profile."""

    def __init__(
        self, source: BoardSource, index: int = 0, counters: Counters | None = None
    ) -> None:
        self._source, self._index, self._counters = source, index, counters

    async def read(self) -> BoardReading:
        """The board now. Raises :class:`igniterd.errors.IgniterdError`, :class:`ReadingUnsupported`
        when there is no such board."""
        boards = await self._source.read()
        if not 0 <= self._index < len(boards):
            raise ReadingUnsupported(
                f"GPU {self._index} is not one of the {len(boards)} boards of this host"
            )
        return boards[self._index]

    async def memory_used_bytes(self) -> int | None:
        with contextlib.suppress(IgniterdError):
            return (await self.read()).memory_used_bytes
        return None

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Span]:
        """Sample the board while the context lasts."""
        span = Span()
        with contextlib.suppress(IgniterdError):
            await self.read()  # means that NVML keeps since the last reading begin here
        await self._count(lambda c: c.begin())
        sampling = asyncio.create_task(self._sample(span), name="board")
        try:
            yield span
        finally:
            # a source that swallows the cancellation must not keep this waiting for ever
            span.over = True
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
            activity = await self._count(lambda c: c.end())
            span.result = Drawn(
                _mean([r.power_w for r in span.readings]),
                _mean([r.sm_clock_mhz for r in span.readings]),
                activity or Activity(),
            )

    async def _sample(self, span: Span) -> None:
        while not span.over:
            await asyncio.sleep(SAMPLE_S)
            with contextlib.suppress(IgniterdError):
                span.readings.append(await self.read())

    async def _count(self, ask: Callable[[Counters], Activity | None]) -> Activity | None:
        """Counters block: they are asked in a thread, and given up for good when the driver does
        not answer."""
        if self._counters is None:
            return None
        try:
            async with asyncio.timeout(_COUNTER_TIMEOUT_S):
                return await asyncio.to_thread(ask, self._counters)
        except TimeoutError:
            self._counters = None
            return None


async def fallen(
    read: Callable[[], Awaitable[int | None]], most: int, *, timeout_s: float = 5.0
) -> int:
    """By how many bytes memory in use falls below ``most``; waits until it has, 0 after
    ``timeout_s``."""
    deadline_s = now_s() + timeout_s
    while now_s() < deadline_s:
        now = await read()
        if now is not None and now < most - _NO_COPY_BYTES:
            return most - now
        await asyncio.sleep(0.05)
    return 0


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
