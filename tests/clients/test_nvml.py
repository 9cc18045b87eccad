import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pynvml
import pytest

from igniterd.clients.nvml import NvmlClient
from igniterd.errors import CannotRun, DeviceLost, Unreachable
from igniterd.records import BoardReading

NAMES = ["Tesla V100-SXM2-16GB", "Tesla P4"]


def fails(code: int) -> Callable[..., NoReturn]:
    def call(*_: Any) -> NoReturn:
        raise pynvml.NVMLError(code)

    return call


not_supported = fails(pynvml.NVML_ERROR_NOT_SUPPORTED)


def only_first(value: Any) -> Callable[..., Any]:
    """A reading that only board 0 gives."""
    return lambda board, *_: value if board == 0 else not_supported()


def a_library(**overrides: Any) -> Any:
    """Two boards under pynvml's names, the second without most readings. The event reasons have
    their older name only."""
    constants = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML_")}
    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda board: b"GPU-b" if board else "GPU-a",
        "nvmlDeviceGetName": lambda board: NAMES[board],
        "nvmlDeviceGetPowerUsage": only_first(251_500),
        "nvmlDeviceGetEnforcedPowerLimit": only_first(300_000),
        "nvmlDeviceGetClockInfo": only_first(1380),
        "nvmlDeviceGetMaxClockInfo": only_first(1530),
        "nvmlDeviceGetMemoryInfo": only_first(SimpleNamespace(used=3 << 30, total=16 << 30)),
        "nvmlDeviceGetCurrentClocksThrottleReasons": only_first(4),
        "nvmlDeviceGetTemperature": only_first(61),
        "nvmlDeviceGetNumGpuCores": lambda board: [5120, 2560][board],
        "nvmlDeviceGetCudaComputeCapability": lambda board: [(7, 0), (6, 1)][board],
    }
    return SimpleNamespace(NVMLError=pynvml.NVMLError, **(constants | functions | overrides))


async def test_readings_and_gaps() -> None:
    client = NvmlClient(a_library(), timeout_s=5)
    first, second = await client.read()
    assert first == BoardReading(
        index=0,
        uuid="GPU-a",
        name=NAMES[0],
        power_w=251.5,
        power_limit_w=300.0,
        sm_clock_mhz=1380.0,
        max_sm_clock_mhz=1530.0,
        memory_used_bytes=3 << 30,
        memory_total_bytes=16 << 30,
        clock_event_reasons=4,
        temperature_c=61.0,
        sm_count=80,
    )
    assert second == BoardReading(index=1, uuid="GPU-b", name=NAMES[1], sm_count=20)
    await client.close()


async def test_what_never_changes_is_asked_once() -> None:
    asked: list[int] = []

    def name(board: int) -> str:
        asked.append(board)
        return NAMES[board]

    client = NvmlClient(a_library(nvmlDeviceGetName=name), timeout_s=5)
    for _ in range(3):
        await client.read()
    assert asked == [0, 1]
    await client.close()


async def test_a_lost_board_is_looked_for_anew() -> None:
    calls: list[str] = []
    library = a_library(
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetPowerUsage=fails(pynvml.NVML_ERROR_GPU_IS_LOST),
    )
    client = NvmlClient(library, timeout_s=5)
    with pytest.raises(DeviceLost, match="nvmlDeviceGetPowerUsage: GPU is lost"):
        await client.read()
    library.nvmlDeviceGetPowerUsage = only_first(1000)
    assert (await client.read())[0].power_w == 1.0
    assert calls == ["init", "shutdown", "init"]
    await client.close()


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
async def test_a_host_without_nvml_is_told_what_to_do(code: int) -> None:
    client = NvmlClient(a_library(nvmlInit=fails(code)), timeout_s=5)
    with pytest.raises(CannotRun, match=r"Install NVIDIA's driver .* or set \[gpu\] source"):
        await client.read()
    await client.close()


async def test_another_trouble_is_for_the_next_tick() -> None:
    client = NvmlClient(a_library(nvmlDeviceGetCount=fails(pynvml.NVML_ERROR_UNKNOWN)), timeout_s=5)
    with pytest.raises(Unreachable, match="nvmlDeviceGetCount: Unknown Error"):
        await client.read()
    with pytest.raises(Unreachable, match="ValueError"):
        await NvmlClient(a_library(nvmlDeviceGetCount=lambda: int("x")), timeout_s=5).read()
    await client.close()


class Hanging:
    """A driver call that hangs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Event()

    def __call__(self, *_: Any) -> int:
        self.entered.release()
        self.let_go.wait(60)
        return 1000


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    driver = Hanging()
    yield driver
    driver.let_go.set()


async def test_a_hung_driver_costs_one_deadline_and_then_nothing(hanging: Hanging) -> None:
    now = [100.0]
    client = NvmlClient(
        a_library(nvmlDeviceGetPowerUsage=hanging),
        timeout_s=0.05,
        retry_after_s=30,
        most_abandoned=2,
        clock=lambda: now[0],
    )
    with pytest.raises(Unreachable, match=r"no answer in 0\.05 s"):
        await client.read()
    now[0] += 1
    with pytest.raises(Unreachable, match="next try in 29 s"):
        await client.read()
    now[0] += 29
    with pytest.raises(Unreachable, match=r"no answer in 0\.05 s"):
        await client.read()
    now[0] += 3000
    with pytest.raises(Unreachable, match="2 calls hang in the driver"):
        await client.read()
    assert hanging.entered.acquire(timeout=5)
    assert hanging.entered.acquire(timeout=5)
    assert not hanging.entered.acquire(blocking=False), "only two threads ever called the driver"


async def test_a_driver_that_comes_back_is_read_again(hanging: Hanging) -> None:
    client = NvmlClient(a_library(nvmlDeviceGetPowerUsage=hanging), timeout_s=5, retry_after_s=0)
    client.timeout_s = 0.05
    with pytest.raises(Unreachable):
        await client.read()
    hanging.let_go.set()
    client.timeout_s = 5
    assert (await client.read())[0].power_w == 1.0
    await client.close()
