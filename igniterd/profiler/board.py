"""The board of a profile: what it is, and what it did while something was measured.

Once, idle: its size, the power it draws when nothing runs, the speed of its link to the host. Over
each span: power, clock and memory, and what NVML counts beyond the daemon's readings (bytes over
PCIe; on Hopper and later, through GPM, how busy DRAM and the SMs were). A reading that a board or
driver lacks is ``None``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

from igniterd.errors import CannotRun, IgniterdError, NotNow, ReadingUnsupported
from igniterd.perf.profile import Board
from igniterd.profiler import bandwidth
from igniterd.records import BoardReading, ModelReading

MIB = 2**20
SAMPLE_S = 0.25
_COUNTER_TIMEOUT_S = 2.0
_NO_COPY_BYTES = 16 << 20  # less than any process with a CUDA context
IDLE_S = 1.2
_IDLE_SAMPLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Activity:
    """Means over a span: percent of the peak, and bytes a second from and to the host."""

    dram_pct: float | None = None
    sm_pct: float | None = None
    pcie_bytes_per_s: float | None = None


class Counters:
    """What NVML counts on one board. Its calls block: it is used from one worker thread.

    ``library`` is a module or object with pynvml's names.
    """

    def __init__(self, library: Any, index: int) -> None:
        self._library = library
        self._samples: list[Any] = []
        self._begun = False
        self._device: Any = None
        try:
            library.nvmlInit()
            self._device = library.nvmlDeviceGetHandleByIndex(index)
            if library.nvmlGpmQueryDeviceSupport(self._device).isSupportedDevice:
                self._samples = [library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()]
        except (library.NVMLError, AttributeError):
            self._samples = []

    def begin(self) -> None:
        """The span begins now."""
        self._begun = self._sample(0)

    def end(self) -> Activity:
        """What happened since :meth:`begin`."""
        if not (self._begun and self._sample(1)):
            return Activity(pcie_bytes_per_s=self._pcie())
        library = self._library
        wanted = (
            library.NVML_GPM_METRIC_DRAM_BW_UTIL,
            library.NVML_GPM_METRIC_SM_UTIL,
            library.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
            library.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
        )
        asked = library.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = library.NVML_GPM_METRICS_GET_VERSION, len(wanted)
        asked.sample1, asked.sample2 = self._samples
        for place, metric in enumerate(wanted):
            asked.metrics[place].metricId = metric
        try:
            library.nvmlGpmMetricsGet(asked)
        except library.NVMLError:
            return Activity(pcie_bytes_per_s=self._pcie())
        dram, sm, received, sent = (
            float(m.value) if m.nvmlReturn == library.NVML_SUCCESS else None
            for m in (asked.metrics[i] for i in range(len(wanted)))
        )
        moved = None if received is None or sent is None else (received + sent) * MIB
        return Activity(_percent(dram), _percent(sm), moved)

    def close(self) -> None:
        """Give back what NVML allocated."""
        for sample in self._samples:
            self._library.nvmlGpmSampleFree(sample)
        self._samples = []

    def _sample(self, place: int) -> bool:
        if not self._samples:
            return False
        try:
            self._library.nvmlGpmSampleGet(self._device, self._samples[place])
        except self._library.NVMLError:
            return False
        return True

    def _pcie(self) -> float | None:
        """Both directions over the last 20 ms, which is what NVML keeps on boards without GPM."""
        library = self._library
        try:
            parts = (library.NVML_PCIE_UTIL_RX_BYTES, library.NVML_PCIE_UTIL_TX_BYTES)
            return 1000.0 * sum(
                int(library.nvmlDeviceGetPcieThroughput(self._device, part)) for part in parts
            )
        except (library.NVMLError, AttributeError):
            return None


def _percent(value: float | None) -> float | None:
    return None if value is None else min(100.0, max(0.0, value))


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
        board = next((board for board in boards if board.index == self._index), None)
        if board is None:
            raise ReadingUnsupported(
                f"GPU {self._index} is not one of the {len(boards)} boards of this host"
            )
        return board

    async def memory_used_bytes(self) -> int | None:
        with contextlib.suppress(IgniterdError):
            return (await self.read()).memory_used_bytes
        return None

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Span]:
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


async def await_release(
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


class ModelSource(Protocol):
    """What is asked of a Triton client."""

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]: ...


async def check_quiet(
    client: ModelSource, models: Sequence[str], *, span_s: float = IDLE_S
) -> None:
    """Raise :class:`CannotRun` when one of ``models`` is being used by others: what is measured
    beside that would be wrong."""
    before = await client.read_models(models)
    await asyncio.sleep(span_s)
    after = await client.read_models(models)
    used = []
    for name in models:
        one, other = before[name], after[name]
        if (
            isinstance(one, ModelReading)
            and isinstance(other, ModelReading)
            and one.inference_count != other.inference_count
        ):
            used.append(name)
    if used:
        raise CannotRun(
            f"{', '.join(used)}: in use by others; a profile needs the GPU to itself: take the "
            "traffic off this server first"
        )


async def board_of(
    probe: Probe | None, *, index: int, name: str | None, sm_count: int | None, measure_link: bool
) -> tuple[Board, list[str]]:
    """The board, and notes on what was assumed. Call while nothing runs on it. Raises
    :class:`CannotRun` when it must be told more."""
    reading, idle_w, notes = None, None, list[str]()
    if probe is not None:
        reading, idle_w = await _idle(probe)
    sms = sm_count or (reading.sm_count if reading else None)
    if sms is None:
        raise CannotRun("how many SMs the GPU has cannot be read here: give --sm-count")
    bytes_per_ms, note = (
        await _link(index) if measure_link else (bandwidth.ASSUMED_BYTES_PER_MS, "")
    )
    notes.append(note or f"host-to-device bandwidth assumed to be {bytes_per_ms / 1e6:g} GB/s")
    units = max(1, sms // 2)
    board = Board(
        name=name or (reading.name if reading else "GPU"),
        sm_count=sms,
        share_unit=1.0 / units,
        pcie_bytes_per_ms=bytes_per_ms,
        memory_bytes=reading.memory_total_bytes if reading else None,
        max_clock_mhz=reading.max_sm_clock_mhz if reading else None,
        power_limit_w=reading.power_limit_w if reading else None,
        idle_power_w=idle_w,
    )
    return board, notes


async def _idle(probe: Probe) -> tuple[BoardReading, float | None]:
    """A reading, and the mean power over ``IDLE_S``. Raises :class:`CannotRun` when the board
    cannot be read at all."""
    try:
        reading = await probe.read()
        powers, until_s = [], now_s() + IDLE_S
        while now_s() < until_s:
            await asyncio.sleep(_IDLE_SAMPLE_S)
            powers.append((await probe.read()).power_w)
    except IgniterdError as error:
        raise CannotRun(
            f"the GPU cannot be read: {error} (--gpu none profiles without power, clocks and "
            "memory)"
        ) from error
    known = [p for p in powers if p is not None]
    return reading, fmean(known) if known else None


async def _link(index: int) -> tuple[float, str]:
    try:
        return await bandwidth.measure(index), "host-to-device bandwidth measured"
    except (IgniterdError, OSError) as error:
        assumed = bandwidth.ASSUMED_BYTES_PER_MS
        return (
            assumed,
            f"host-to-device bandwidth assumed to be {assumed / 1e6:g} GB/s (not measured: "
            f"{error})",
        )
