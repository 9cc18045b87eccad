"""The emulated board answers as NVML does."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.boards import EmulatedBoard, boards_of, create_boards
from igniterd.lab.gpu.nvml import EmulatedNvml
from igniterd.lab.gpu.truth import Truth


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def board(tmp_path: Path) -> BoardFile:
    return BoardFile.create(tmp_path / "board", slow_factor=1.0, memory_bytes=16 * 2**30)


def test_an_idle_board(board: BoardFile) -> None:
    nvml = EmulatedNvml(board.path)
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetCount() == 1
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(gpu)) == gpu
    assert "V100" in nvml.nvmlDeviceGetName(gpu)
    assert nvml.nvmlDeviceGetPowerUsage(gpu) == 53_500
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 300_000
    assert (
        nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
        == nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)
        == 1530
    )
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == pynvml.nvmlClocksEventReasonGpuIdle
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    assert memory.used + memory.free == memory.total == 16 * 2**30
    assert nvml.nvmlDeviceGetNumGpuCores(gpu) == 5120


def test_power_is_the_mean_since_the_last_look(board: BoardFile) -> None:
    clock = Clock()
    nvml = EmulatedNvml(board.path, clock=clock)
    slot = board.claim(model=0, units=20, memory_bytes=500 * 2**20)
    # 184.57 W of the board
    slot.begin(16, Truth.v100().added_power_w("alexnet", 16, 0.5), now_s=10.0)
    clock.now = 10.5
    slot.end(10.5)
    clock.now = 11.0  # busy half of the second
    assert nvml.nvmlDeviceGetPowerUsage(0) == pytest.approx(
        (53.5 + (184.5714 - 53.5) / 2) * 1000, abs=1
    )
    clock.now = 11.1  # too short a span for a mean: the last one stands
    assert nvml.nvmlDeviceGetPowerUsage(0) == pytest.approx(119_036, abs=1)
    slot.release()
    clock.now = 12.0  # what the copy drew is not given back
    assert nvml.nvmlDeviceGetPowerUsage(0) == 53_500


def test_a_board_at_its_limit_says_so(board: BoardFile) -> None:
    board.claim(model=2, units=40, memory_bytes=2**30).begin(32, 245.5, now_s=0.0)
    nvml = EmulatedNvml(board.path)
    assert nvml.nvmlDeviceGetClockInfo(0, nvml.NVML_CLOCK_SM) == 1429
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(0) == pynvml.nvmlClocksEventReasonSwPowerCap
    assert nvml.nvmlDeviceGetPowerUsage(0) == 299_000
    assert nvml.nvmlDeviceGetMemoryInfo(0).used > 2**30


def test_errors_are_nvml_s_own(board: BoardFile) -> None:
    nvml = EmulatedNvml(board.path)
    with pytest.raises(pynvml.NVMLError) as refused:
        nvml.nvmlGpmQueryDeviceSupport(0)
    assert refused.value.value == pynvml.NVML_ERROR_NOT_SUPPORTED
    with pytest.raises(pynvml.NVMLError) as wrong:
        nvml.nvmlDeviceGetHandleByIndex(1)
    assert wrong.value.value == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert nvml.NVMLError is pynvml.NVMLError


def test_several_boards_are_numbered_by_the_bus(tmp_path: Path) -> None:
    v100, t4 = boards_of("v100", "t4")
    t4 = EmulatedBoard("t4", t4.uuid, "0000:03:00.0", 2**30)
    create_boards(tmp_path / "boards", (v100, t4), slow_factor=1.0)
    nvml = EmulatedNvml(tmp_path / "boards")
    assert nvml.nvmlDeviceGetCount() == 2
    assert [nvml.nvmlDeviceGetUUID(n) for n in range(2)] == [t4.uuid, v100.uuid]
    assert nvml.nvmlDeviceGetHandleByUUID(v100.uuid.encode()) == 1
    assert nvml.nvmlDeviceGetHandleByPciBusId("00000000:03:00.0") == 0
    assert nvml.nvmlDeviceGetHandleByPciBusId(v100.pci.encode()) == 1
    info = nvml.nvmlDeviceGetPciInfo(0)
    assert (info.busId, info.busIdLegacy, info.bus) == ("00000000:03:00.0", "0000:03:00.0", 3)
    assert "T4" in nvml.nvmlDeviceGetName(0)
    assert [nvml.nvmlDeviceGetNumGpuCores(n) for n in range(2)] == [2560, 5120]
    assert [nvml.nvmlDeviceGetCudaComputeCapability(n) for n in range(2)] == [(7, 5), (7, 0)]
    assert [nvml.nvmlDeviceGetEnforcedPowerLimit(n) for n in range(2)] == [70_000, 300_000]
    with pytest.raises(pynvml.NVMLError) as missing:
        nvml.nvmlDeviceGetHandleByUUID("GPU-0")
    assert missing.value.value == pynvml.NVML_ERROR_NOT_FOUND


def test_a_tenant_shows_on_its_own_board_alone(tmp_path: Path) -> None:
    boards = boards_of("v100", "v100")
    create_boards(tmp_path / "boards", boards, slow_factor=1.0)
    nvml = EmulatedNvml(tmp_path / "boards")
    idle = nvml.nvmlDeviceGetMemoryInfo(0).used
    board = BoardFile(tmp_path / "boards" / f"{boards[1].uuid}.board")
    board.claim(model=2, units=40, memory_bytes=2**30).begin(32, 245.5, now_s=0.0)
    assert nvml.nvmlDeviceGetMemoryInfo(0).used == idle
    assert nvml.nvmlDeviceGetMemoryInfo(1).used == idle + 2**30
    clocks = [nvml.nvmlDeviceGetClockInfo(n, nvml.NVML_CLOCK_SM) for n in range(2)]
    assert clocks[0] > clocks[1]
    assert [len(nvml.nvmlDeviceGetComputeRunningProcesses(n)) for n in range(2)] == [0, 1]
