"""What the GPU says of itself while something is measured, on boards that can and boards that
cannot."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
import time
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from igniterd.errors import CannotRun, NotNow, ReadingUnsupported, Unreachable
from igniterd.profiler import bandwidth
from igniterd.profiler.board import (
    MIB,
    Activity,
    Counters,
    Drawn,
    Probe,
    await_release,
    board_of,
)
from igniterd.records import BoardReading

VALUES = {pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 41.5, pynvml.NVML_GPM_METRIC_SM_UTIL: 77.0}
VALUES |= {
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: 100.0,
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: 20.0,
}


def unsupported(*_: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def library(*, gpm: bool, pcie: bool = True) -> Any:
    """pynvml with these functions; the values of GPM are ``VALUES``."""

    def metrics_get(asked: Any) -> None:
        assert (asked.sample1.value, asked.sample2.value) == (1, 2)
        for place in range(asked.numMetrics):
            asked.metrics[place].nvmlReturn = pynvml.NVML_SUCCESS
            asked.metrics[place].value = VALUES[asked.metrics[place].metricId]

    taken = iter((1, 2))
    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlGpmQueryDeviceSupport": (lambda device: SimpleNamespace(isSupportedDevice=1))
        if gpm
        else unsupported,
        "nvmlGpmSampleAlloc": lambda: ctypes.c_void_p(next(taken)),
        "nvmlGpmSampleGet": lambda device, sample: sample,
        "nvmlGpmSampleFree": lambda sample: None,
        "nvmlGpmMetricsGet": metrics_get,
        "nvmlDeviceGetPcieThroughput": (lambda device, part: 1000 + part) if pcie else unsupported,
        "c_nvmlGpmMetricsGet_t": lambda: SimpleNamespace(
            metrics=[SimpleNamespace() for _ in range(8)]
        ),
    }
    return SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        **{n: getattr(pynvml, n) for n in dir(pynvml) if n.startswith("NVML_")},
        **functions,
    )


def test_activity_of_a_board_with_gpm() -> None:
    counters = Counters(library(gpm=True), 0)
    counters.begin()
    assert counters.end() == Activity(dram_pct=41.5, sm_pct=77.0, pcie_bytes_per_s=120.0 * MIB)
    counters.close()


def test_a_board_without_gpm_says_what_pcie_carries_now() -> None:
    counters = Counters(library(gpm=False), 0)
    counters.begin()
    assert counters.end() == Activity(pcie_bytes_per_s=2001 * 1000.0)


def test_a_board_with_neither_says_nothing() -> None:
    counters = Counters(library(gpm=False, pcie=False), 0)
    counters.begin()
    assert counters.end() == Activity()


class Source:
    """Readings one after another; the last one for ever."""

    def __init__(self, *readings: BoardReading) -> None:
        self.readings = list(readings)

    async def read(self) -> tuple[BoardReading, ...]:
        return (self.readings.pop(0) if len(self.readings) > 1 else self.readings[0],)


def reading(**more: Any) -> BoardReading:
    return BoardReading(index=0, uuid="u", name="Board", **more)


@pytest.mark.looptime
async def test_means_of_a_span_leave_out_what_came_before() -> None:
    probe = Probe(
        Source(
            reading(power_w=999.0),
            reading(power_w=100.0, sm_clock_mhz=1000.0),
            reading(power_w=200.0),
        )
    )
    async with probe.watch() as span:
        await asyncio.sleep(0.6)
    assert span.result == Drawn(power_w=150.0, clock_mhz=1000.0)


class Stubborn(Source):
    """A source whose readings go on when they are cancelled, as a wait_for of Python 3.11 may."""

    async def read(self) -> tuple[BoardReading, ...]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.4)
        return await super().read()


@pytest.mark.looptime
async def test_a_source_that_swallows_cancellation_does_not_hold_a_span_up() -> None:
    began_s = asyncio.get_running_loop().time()
    ending = asyncio.timeout(60.0)
    async with ending, Probe(Stubborn(reading(power_w=100.0))).watch() as span:
        await asyncio.sleep(0.5)  # in the middle of a reading
    assert not ending.expired()
    assert asyncio.get_running_loop().time() - began_s < 5.0  # of virtual time
    assert span.result.power_w == 100.0


@pytest.mark.looptime
async def test_memory_that_falls_is_a_copy_that_left() -> None:
    values = iter([100 << 20, None, 99 << 20, 40 << 20])

    async def read() -> int | None:
        return next(values)

    assert await await_release(read, 100 << 20) == 60 << 20


@pytest.mark.looptime
async def test_memory_that_does_not_fall_says_nothing() -> None:
    async def read() -> int | None:
        return 100 << 20

    assert await await_release(read, 100 << 20) == 0


@pytest.mark.looptime
async def test_the_board_at_rest() -> None:
    probe = Probe(
        Source(
            reading(
                sm_count=132,
                power_w=70.0,
                power_limit_w=700.0,
                max_sm_clock_mhz=1980.0,
                memory_total_bytes=80 << 30,
            )
        )
    )
    board, notes = await board_of(probe, index=0, name=None, sm_count=None, measure_link=False)
    assert (board.name, board.sm_count, board.share_unit, board.idle_power_w) == (
        "Board",
        132,
        2 / 132,
        70.0,
    )
    assert notes == ["host-to-device bandwidth assumed to be 10 GB/s"]


@pytest.mark.looptime
async def test_without_readings_the_sms_must_be_told() -> None:
    with pytest.raises(CannotRun, match="--sm-count"):
        await board_of(None, index=0, name=None, sm_count=None, measure_link=False)
    board, _ = await board_of(None, index=0, name="x", sm_count=10, measure_link=False)
    assert (board.share_unit, board.idle_power_w) == (0.2, None)


class Cuda:
    """libcuda whose copies take as long as a clock says."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[str] = []
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> int:
            self.calls.append(name)
            return 100 if name == self.broken else 0

        return call


def test_bandwidth_is_that_of_the_quickest_copy() -> None:
    ticks = iter([0.0, 0.5, 1.0, 1.1, 2.0, 2.01, *(t for i in range(3, 8) for t in (i, i + 0.2))])
    assert bandwidth.copy_rate(
        Cuda(), 0, size=10_000_000, clock=lambda: next(ticks)
    ) == pytest.approx(1e6)


def test_a_driver_without_a_gpu_is_a_reason() -> None:
    with pytest.raises(CannotRun, match="cuInit answered 100"):
        bandwidth.copy_rate(Cuda("cuInit"), 0)


async def test_the_board_is_found_by_its_index_and_not_by_its_place() -> None:
    class Source:
        async def read(self) -> tuple[BoardReading, ...]:
            return tuple(BoardReading(index, f"GPU-{index}", "Board") for index in (2, 0, -1))

    assert (await Probe(Source(), 2).read()).uuid == "GPU-2"
    with pytest.raises(ReadingUnsupported, match="GPU 1 is not one of the 3 boards"):
        await Probe(Source(), 1).read()


async def test_where_it_cannot_be_measured_the_child_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(NotNow, match=r"libcuda|cuInit"):
            await bandwidth.measure(0)
    else:  # a machine with a driver
        assert await bandwidth.measure(0) > 0


async def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    monkeypatch.setattr(bandwidth, "COMMAND", ("30",))
    began_s = time.monotonic()
    with pytest.raises(Unreachable, match="did not end"):
        await bandwidth.measure(0, timeout_s=0.2)
    assert time.monotonic() - began_s < 20.0
