import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from igniterd.clients.nvml import NvmlClient
from igniterd.clients.nvml_calls import kernel_driver_version
from igniterd.errors import CannotRun, Unreachable
from tests.clients.nvml_library import Host, a_board, fails, lost
from tests.waiting import until, until_answer


def a_library(**overrides: Any) -> Any:
    """Two boards."""
    return Host([a_board("a"), a_board("b")], overrides=overrides).library


async def test_the_boards_are_read_and_given_back() -> None:
    host = Host([a_board("a"), a_board("b")])
    client = NvmlClient(host.library, timeout_s=5)
    assert [(board.uuid, board.power_w) for board in await client.read()] == [
        ("GPU-a", 251.5),
        ("GPU-b", 251.5),
    ]
    await client.close()
    await until(lambda: host.calls == ["nvmlInit", "nvmlShutdown"], timeout_s=5)


async def test_what_never_changes_is_asked_once() -> None:
    asked: list[str] = []

    def name(handle: Any) -> str:
        asked.append(handle.board["nvmlDeviceGetUUID"].decode())
        return "Tesla V100"

    boards = [a_board(letter, nvmlDeviceGetName=name) for letter in "ab"]
    client = NvmlClient(Host(boards).library, timeout_s=5)
    for _ in range(3):
        await client.read()
    assert asked == ["GPU-a", "GPU-b"]
    await client.close()


async def test_a_lost_board_does_not_cost_the_others() -> None:
    host = Host([a_board("a", nvmlDeviceGetPowerUsage=lost), a_board("b")])
    client = NvmlClient(host.library, timeout_s=5, clock=lambda: host.now_s)
    first, second = await client.read()
    assert "it has fallen off the bus" in first.fault
    assert (second.power_w, second.fault) == (251.5, "")
    host.boards[0] = a_board("a")
    host.now_s += 30
    assert [board.power_w for board in await client.read()] == [251.5, 251.5]
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


@pytest.mark.parametrize("loaded", [b"12.550.54.15", None])
async def test_a_replaced_driver_that_refuses_the_library_is_named(loaded: bytes | None) -> None:
    refused = fails(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    library = a_library(nvmlInit=refused, nvmlSystemGetNVMLVersion=lambda: loaded)
    client = NvmlClient(library, timeout_s=5, kernel_version=lambda: "570.86.10")
    words = "550.54.15" if loaded else "not of it"
    with pytest.raises(
        Unreachable,
        match="NVML: restart igniterd: the driver is now 570.86.10, the library loaded is "
        f"{words} .*restart the host",
    ):
        await client.read()
    await client.close()


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC",
            "550.90.07",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.158.01  Release Build",
            "570.158.01",
        ),
        ("", ""),
        ("something else 1.2.3", ""),
    ],
)
def test_the_kernel_tells_which_driver_it_has(tmp_path: Path, said: str, version: str) -> None:
    path = tmp_path / "version"
    path.write_text(f"{said}\nGCC version:  gcc version 12.3.0\n")
    assert kernel_driver_version(path) == version
    assert kernel_driver_version(tmp_path / "missing") == ""


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


async def test_a_driver_that_is_slow_to_begin_is_asked_again_as_soon_as_it_has(
    hanging: Hanging,
) -> None:
    host = Host([a_board("a")], overrides={"nvmlInit": hanging})
    client = NvmlClient(host.library, timeout_s=0.05, retry_after_s=1e9)
    with pytest.raises(Unreachable, match="no answer in"):
        await client.read()
    with pytest.raises(Unreachable, match="has not answered for"):
        await client.read()
    hanging.let_go.set()
    client.timeout_s = 5

    async def is_read() -> bool:
        try:
            return (await client.read())[0].power_w == 251.5
        except Unreachable:
            return False

    await until_answer(is_read, bool, timeout_s=5)
    assert hanging.entered.acquire(blocking=False)
    assert not hanging.entered.acquire(blocking=False), "it is not begun a second time"
    await client.close()
