"""A library with pynvml's names, for boards whose every answer a test can choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

import pynvml

from igniterd.clients.nvml_boards import Boards

V100: dict[str, Any] = {
    "nvmlDeviceGetName": "Tesla V100-SXM2-16GB",
    "nvmlDeviceGetPowerUsage": 251_500,
    "nvmlDeviceGetEnforcedPowerLimit": 300_000,
    "nvmlDeviceGetClockInfo": 1380,
    "nvmlDeviceGetMaxClockInfo": 1530,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 << 30, total=16 << 30),
    "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetNumGpuCores": 5120,
    "nvmlDeviceGetCudaComputeCapability": (7, 0),
}
"""What a V100 answers under an older driver: the event reasons have their older name only."""


def fails(code: int) -> Callable[..., NoReturn]:
    def call(*_: Any) -> NoReturn:
        raise pynvml.NVMLError(code)

    return call


not_supported = fails(pynvml.NVML_ERROR_NOT_SUPPORTED)
lost = fails(pynvml.NVML_ERROR_GPU_IS_LOST)


def a_board(letter: str, **answers: Any) -> dict[str, Any]:
    """A V100 with other answers: values, or functions that raise."""
    own = {
        "nvmlDeviceGetUUID": f"GPU-{letter}".encode(),
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=f"00000000:{letter.upper()}0:00.0"),
    }
    return V100 | own | answers


def a_slice(letter: str, **answers: Any) -> dict[str, Any]:
    """A MIG instance with a seventh of an A100."""
    own: dict[str, Any] = {
        "nvmlDeviceGetUUID": f"MIG-{letter}",
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1 << 30, total=5 << 30),
        "nvmlDeviceGetAttributes": SimpleNamespace(multiprocessorCount=14, memorySizeMB=4864),
    }
    return own | answers


def with_mig(letter: str, slices: Mapping[int, Any], **answers: Any) -> dict[str, Any]:
    """An A100 with MIG on: NVML counts no cores of such a board."""
    a100 = {
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB",
        "nvmlDeviceGetMigMode": [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetNumGpuCores": not_supported,
        "slices": slices,
    }
    return a_board(letter, **(a100 | answers))


def unanswered(code: int) -> dict[str, Any]:
    """A board of which not even a handle can be had."""
    return {"handle": fails(code)}


@dataclass
class Host:
    """A host whose boards answer what a test says; handles are good until the next shutdown, as
    NVML's are."""

    boards: list[dict[str, Any]]
    kernel: str = ""
    now_s: float = 100.0
    begun: int = 0
    calls: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = {name for name in dir(pynvml) if name.startswith("nvmlDeviceGet")}
        answers: dict[str, Any] = {name: self._answering(name) for name in asked}
        own = {
            "nvmlInit": self._begin,
            "nvmlShutdown": lambda: self.calls.append("nvmlShutdown"),
            "nvmlDeviceGetCount": lambda: len(self.boards),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._slice,
        }
        constants = {n: value for n, value in vars(pynvml).items() if n.startswith("NVML_")}
        self.library: Any = SimpleNamespace(
            NVMLError=pynvml.NVMLError, **(constants | answers | own | self.overrides)
        )

    def reader(self) -> Boards:
        return Boards(
            lambda: self.library, clock=lambda: self.now_s, kernel_version=lambda: self.kernel
        )

    def _begin(self) -> None:
        self.begun += 1
        self.calls.append("nvmlInit")

    def _handle(self, index: int) -> Any:
        board = self.boards[index]
        board.get("handle", lambda *_: None)(index)
        return SimpleNamespace(board=board, begun=self.begun)

    def _slice(self, handle: Any, place: int) -> Any:
        there = self._good(handle)["slices"].get(place)
        if there is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return there(handle) if callable(there) else SimpleNamespace(board=there, begun=self.begun)

    def _good(self, handle: Any) -> dict[str, Any]:
        if handle.begun != self.begun:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        found: dict[str, Any] = handle.board
        return found

    def _answering(self, name: str) -> Callable[..., Any]:
        def call(handle: Any, *arguments: Any) -> Any:
            answer = self._good(handle).get(name, not_supported)
            return answer(handle, *arguments) if callable(answer) else answer

        return call
