"""NVML for the emulated board: an object with pynvml's function names and units, in pynvml's place.

Power and utilisation are means since the reader's last look (NVML's are over about the last second
too). What a V100 does not support raises ``NVML_ERROR_NOT_SUPPORTED``, as it does there.
"""

# ruff: noqa: N802, N815  (the names are pynvml's)
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from igniterd.lab.gpu.boardfile import BoardFile, Copy
from igniterd.lab.gpu.truth import UNITS, Neighbour, Truth

UUID = "GPU-00000000-e4e1-a7ed-0000-000000000100"
NAME = "Tesla V100-SXM2-16GB (emulated)"
SM_COUNT = 80
_LEAST_SPAN_S = 0.2  # means over shorter spans than this would be noise
_RESERVED_BYTES = 4 * 2**20


class EmulatedNvml:
    """pynvml's functions on one emulated V100; everything else of pynvml (constants, error types)
    is pynvml's own.

    ``path`` is the board file of a running :class:`igniterd.lab.host.TritonHost`. Functions that
    are not given here raise ``NVMLError`` NOT_SUPPORTED; like pynvml's, all raise
    NOT_INITIALIZED-like errors only through a missing board file (``OSError``).
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, truth: Truth | None = None
    ) -> None:
        self._board = BoardFile(path)
        self._clock = clock
        self._truth = truth or Truth.v100()
        self._mark = (clock(), self._energy_j(clock()))
        self._power_w = self._truth.board_power_w(self._running())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml"):
            return _unsupported
        return getattr(pynvml, name)  # NVMLError and its kinds, NVML_CLOCK_SM, ...

    # -- the driver
    def nvmlInit(self) -> None:
        """Nothing to start."""

    def nvmlShutdown(self) -> None:
        """Nothing to stop."""

    def nvmlSystemGetDriverVersion(self) -> str:
        return "535.0-emulated"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index != 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> int:
        if uuid not in (UUID, UUID.encode()):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 0

    # -- what it is
    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return UUID

    def nvmlDeviceGetName(self, handle: int) -> str:
        return NAME

    def nvmlDeviceGetNumGpuCores(self, handle: int) -> int:
        return SM_COUNT * 64

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (7, 0)

    # -- what it does
    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        """Milliwatts."""
        now = self._clock()
        then, energy = self._mark
        if now - then >= _LEAST_SPAN_S:
            total = self._energy_j(now)
            self._power_w = min(
                self._truth.power_limit_w,
                self._truth.idle_power_w + (total - energy) / (now - then),
            )
            self._mark = (now, total)
        return round(self._power_w * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        """Milliwatts."""
        return round(self._truth.power_limit_w * 1000)

    nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit

    def nvmlDeviceGetClockInfo(self, handle: int, clock_type: int) -> int:
        """MHz; the memory clock of an HBM2 V100 does not move."""
        if clock_type == pynvml.NVML_CLOCK_MEM:
            return 877
        return round(self._truth.board_clock_mhz(self._running()))

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock_type: int) -> int:
        """MHz."""
        return 877 if clock_type == pynvml.NVML_CLOCK_MEM else round(self._truth.max_clock_mhz)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        """Idle, the software power cap, or nothing."""
        running = self._running()
        if not running:
            return int(pynvml.nvmlClocksEventReasonGpuIdle)
        if self._truth.board_clock_mhz(running) < self._truth.max_clock_mhz:
            return int(pynvml.nvmlClocksEventReasonSwPowerCap)
        return 0

    nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        """Bytes: total, free, used (and reserved)."""
        self._board.reap()
        total = self._board.memory_bytes
        used = min(total, _RESERVED_BYTES + sum(c.memory_bytes for c in self._board.copies()))
        return SimpleNamespace(
            total=total, free=total - used, used=used, reserved=_RESERVED_BYTES, version=version
        )

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        """Degrees Celsius, of a well cooled board: a plain function of its power."""
        return round(35 + 0.1 * self._power_w)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        """Processes with a context on the board."""
        self._board.reap()
        return [
            SimpleNamespace(pid=c.pid, usedGpuMemory=c.memory_bytes) for c in self._board.copies()
        ]

    nvmlDeviceGetMPSComputeRunningProcesses = nvmlDeviceGetComputeRunningProcesses

    # -- from the board file
    def _running(self) -> list[Neighbour]:
        return [self._tenant(c) for c in self._board.copies() if c.batch]

    def _tenant(self, copy: Copy) -> Neighbour:
        return Neighbour(self._truth.models[copy.model], copy.batch, (copy.units or UNITS) / UNITS)

    def _energy_j(self, now_s: float) -> float:
        """Energy above idle since the board was made."""
        copies = self._board.copies()
        return self._board.departed_energy_j + sum(
            c.energy_j + (c.power_w * max(0.0, now_s - c.started_s) if c.batch else 0.0)
            for c in copies
        )


def _unsupported(*_: object, **__: object) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
