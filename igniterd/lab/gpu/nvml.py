"""NVML for emulated boards: an object with pynvml's function names and units, in pynvml's place.

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

from igniterd.lab.gpu.boardfile import BoardFile, Copy, board_paths
from igniterd.lab.gpu.boards import EmulatedBoard
from igniterd.lab.gpu.kinds import KINDS, truth_of
from igniterd.lab.gpu.truth import UNITS, Neighbour

NAME = KINDS["v100"].name
_LEAST_SPAN_S = 0.2  # means over shorter spans than this would be noise
_RESERVED_BYTES = 4 * 2**20


class _Board:
    """One board: what it is, and what its tenants make of it."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.file = BoardFile(path)
        self.what = EmulatedBoard.of(self.file)
        self.truth = truth_of(self.what.kind)
        self._clock = clock
        self._mark = (clock(), self._energy_j(clock()))
        self.power_w = self.truth.board_power_w(self.running())

    def mean_power_w(self) -> float:
        """Since the last look."""
        now = self._clock()
        then, energy = self._mark
        if now - then >= _LEAST_SPAN_S:
            total = self._energy_j(now)
            self.power_w = min(
                self.truth.power_limit_w,
                self.truth.idle_power_w + (total - energy) / (now - then),
            )
            self._mark = (now, total)
        return self.power_w

    def running(self) -> list[Neighbour]:
        """What executes now."""
        return [self._tenant(c) for c in self.file.copies() if c.batch]

    def _tenant(self, copy: Copy) -> Neighbour:
        share = (copy.units or UNITS) / UNITS
        return Neighbour(self.truth.models[copy.model], copy.batch, share, copy.busy)

    def _energy_j(self, now_s: float) -> float:
        """Energy above idle since the board was made."""
        return self.file.departed_energy_j + sum(
            c.energy_j + (c.power_w * max(0.0, now_s - c.started_s) if c.batch else 0.0)
            for c in self.file.copies()
        )


class EmulatedNvml:
    """pynvml's functions on emulated boards; everything else of pynvml (constants, error types) is
    pynvml's own.

    ``path`` is the ``board_path`` of a running :class:`igniterd.lab.host.TritonHost`: a board file,
    or a folder of several. Boards are numbered by their bus addresses, as NVML does; a handle is
    that number. Functions that are not given here raise ``NVMLError`` NOT_SUPPORTED; like pynvml's,
    all raise NOT_INITIALIZED-like errors only through a missing board file (``OSError``,
    ``ValueError``).
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        boards = [_Board(each, clock) for each in board_paths(path)]
        self._boards = sorted(boards, key=lambda board: board.what.pci)

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
        return len(self._boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < len(self._boards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> int:
        return self._found(uuid, lambda board: (board.uuid,))

    def nvmlDeviceGetHandleByPciBusId(self, pci: str | bytes) -> int:
        """By either way of writing it."""
        return self._found(pci, lambda board: (board.pci, f"0000{board.pci}"))

    def _found(self, name: str | bytes, names: Callable[[EmulatedBoard], tuple[str, ...]]) -> int:
        text = name.decode() if isinstance(name, bytes) else name
        for index, board in enumerate(self._boards):
            if text in names(board.what):
                return index
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    # -- what it is
    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._boards[handle].what.uuid

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self._boards[handle].what.figures.name

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        """pynvml's structure; ``busId`` has a domain of eight digits, ``busIdLegacy`` one of
        four."""
        pci = self._boards[handle].what.pci
        domain, bus, device = (int(part, 16) for part in pci.split(".")[0].split(":"))
        info = pynvml.nvmlPciInfo_t()
        info.busId, info.busIdLegacy = f"0000{pci}".encode(), pci.encode()
        info.domain, info.bus, info.device = domain, bus, device
        return info

    nvmlDeviceGetPciInfo_v3 = nvmlDeviceGetPciInfo

    def nvmlDeviceGetNumGpuCores(self, handle: int) -> int:
        return self._boards[handle].what.figures.cores

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self._boards[handle].what.figures.capability

    # -- what it does
    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        """Milliwatts."""
        return round(self._boards[handle].mean_power_w() * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        """Milliwatts."""
        return round(self._boards[handle].truth.power_limit_w * 1000)

    nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit

    def nvmlDeviceGetClockInfo(self, handle: int, clock_type: int) -> int:
        """MHz; the memory clock does not move."""
        board = self._boards[handle]
        if clock_type == pynvml.NVML_CLOCK_MEM:
            return board.what.figures.memory_clock_mhz
        return round(board.truth.board_clock_mhz(board.running()))

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock_type: int) -> int:
        """MHz."""
        board = self._boards[handle]
        if clock_type == pynvml.NVML_CLOCK_MEM:
            return board.what.figures.memory_clock_mhz
        return round(board.truth.max_clock_mhz)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        """Idle, the software power cap, or nothing."""
        board = self._boards[handle]
        running = board.running()
        if not running:
            return int(pynvml.nvmlClocksEventReasonGpuIdle)
        if board.truth.board_clock_mhz(running) < board.truth.max_clock_mhz:
            return int(pynvml.nvmlClocksEventReasonSwPowerCap)
        return 0

    nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        """Bytes: total, free, used (and reserved)."""
        file = self._boards[handle].file
        file.reap()
        total = file.memory_bytes
        used = min(total, _RESERVED_BYTES + sum(c.memory_bytes for c in file.copies()))
        return SimpleNamespace(
            total=total, free=total - used, used=used, reserved=_RESERVED_BYTES, version=version
        )

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        """Degrees Celsius, of a well cooled board: a plain function of its power."""
        board = self._boards[handle]
        return round(35 + 30 * board.power_w / board.truth.power_limit_w)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        """Processes with a context on the board."""
        file = self._boards[handle].file
        file.reap()
        return [SimpleNamespace(pid=c.pid, usedGpuMemory=c.memory_bytes) for c in file.copies()]

    nvmlDeviceGetMPSComputeRunningProcesses = nvmlDeviceGetComputeRunningProcesses


def _unsupported(*_: object, **__: object) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
