"""The boards, through NVML: device level only, because under MPS NVML books all activity on the MPS
server.

NVML calls block, and with a driver in trouble they may block for ever. They run in one worker
thread, each read with a deadline; a thread that misses it is left behind (a thread cannot be
killed), and a new one is tried after a pause and only a few times, so that a hung driver costs a
few sleeping threads and never the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from igniterd.errors import (
    CannotRun,
    DeviceLost,
    IgniterdError,
    NotNow,
    ReadingUnsupported,
    Unreachable,
)
from igniterd.records import BoardReading

_SMS_CORES = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""FP32 cores of one SM by compute capability; 128 on every other board since 6.1 (CUDA C++
programming guide, arithmetic throughput)."""

_MISSING = (
    "NVML is not there: {}. Install NVIDIA's driver (libnvidia-ml.so.1), or set [gpu] "
    'source = "none" to run without board readings'
)


class NvmlClient:
    """Reads every board of the host. One read at a time."""

    def __init__(
        self,
        library: Any = None,
        timeout_s: float = 0.3,
        *,
        retry_after_s: float = 30.0,
        most_abandoned: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`library` is a module or object with pynvml's names; ``None`` imports pynvml."""
        self._library = library
        self.timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._most_abandoned = most_abandoned
        self._clock = clock
        self._worker: _Worker | None = None
        self._abandoned: list[_Worker] = []
        self._given_up_at_s = 0.0

    async def read(self) -> tuple[BoardReading, ...]:
        """Every board now; what a board cannot give is ``None``.

        Raises :class:`Unreachable` without an answer in time, :class:`DeviceLost` when a board fell
        off, :class:`CannotRun` without NVML on this host.
        """
        worker = self._ready_worker()
        answer: asyncio.Future[tuple[BoardReading, ...]] = (
            asyncio.get_running_loop().create_future()
        )
        worker.ask(answer)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the
            # answer.
            async with asyncio.timeout(self.timeout_s):
                return await answer
        except TimeoutError:
            self._abandon(worker)
            raise Unreachable(
                f"NVML: no answer in {self.timeout_s:g} s; next try in {self._retry_after_s:g} s"
            ) from None

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ready_worker(self) -> _Worker:
        if self._worker is not None:
            return self._worker
        self._abandoned = [worker for worker in self._abandoned if worker.alive]
        if self._abandoned:
            waited_s = self._clock() - self._given_up_at_s
            if waited_s < self._retry_after_s:
                raise Unreachable(
                    "NVML: the driver does not answer; next try in "
                    f"{self._retry_after_s - waited_s:.0f} s"
                )
            if len(self._abandoned) >= self._most_abandoned:
                raise Unreachable(
                    f"NVML: {len(self._abandoned)} calls hang in the driver; no more are tried "
                    "until one of them returns"
                )
        self._worker = _Worker(self._library)
        return self._worker

    def _abandon(self, worker: _Worker) -> None:
        worker.stop()
        self._abandoned.append(worker)
        self._worker = None
        self._given_up_at_s = self._clock()


class _Worker:
    """One thread that owns the library: initialises it, reads, and shuts it down when it is told to
    stop."""

    def __init__(self, library: Any) -> None:
        self._boards = _Boards(library)
        self._asked: queue.SimpleQueue[asyncio.Future[tuple[BoardReading, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def ask(self, answer: asyncio.Future[tuple[BoardReading, ...]]) -> None:
        self._asked.put(answer)

    def stop(self) -> None:
        self._asked.put(None)

    def _run(self) -> None:
        while (answer := self._asked.get()) is not None:
            loop = answer.get_loop()
            # the loop is gone: nobody waits for this answer any more
            with contextlib.suppress(RuntimeError):
                try:
                    loop.call_soon_threadsafe(_give, answer, self._boards.read(), None)
                except IgniterdError as error:
                    loop.call_soon_threadsafe(_give, answer, None, error)
                # whatever a binding raises must not end the thread unheard
                except Exception as error:
                    loop.call_soon_threadsafe(_give, answer, None, Unreachable(f"NVML: {error!r}"))
        self._boards.close()


def _give(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


class _Boards:
    """The blocking side: handles and what never changes are kept until a board is lost."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: list[tuple[Any, dict[str, Any]]] | None = None

    def read(self) -> tuple[BoardReading, ...]:
        if self._handles is None:
            self._handles = self._open()
        try:
            return tuple(
                self._board(index, handle, fixed)
                for index, (handle, fixed) in enumerate(self._handles)
            )
        except NotNow:
            self.close()  # handles of a lost board are worth nothing: begin anew at the next read
            raise

    def close(self) -> None:
        if self._handles is not None:
            self._handles = None
            with contextlib.suppress(Exception):
                self._library.nvmlShutdown()

    def _open(self) -> list[tuple[Any, dict[str, Any]]]:
        if self._library is None:
            self._library = driver_library()
        self._call("nvmlInit")
        handles = [
            self._call("nvmlDeviceGetHandleByIndex", index)
            for index in range(self._call("nvmlDeviceGetCount"))
        ]
        return [(handle, self._read_fixed(handle)) for handle in handles]

    def _read_fixed(self, handle: Any) -> dict[str, Any]:
        library = self._library
        return {
            "uuid": _text(self._call("nvmlDeviceGetUUID", handle)),
            "name": _text(self._call("nvmlDeviceGetName", handle)),
            "max_sm_clock_mhz": self._maybe(
                "nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_SM, scale=1.0
            ),
            "sm_count": self._sm_count(handle),
        }

    def _board(self, index: int, handle: Any, fixed: dict[str, Any]) -> BoardReading:
        library = self._library
        memory = self._maybe("nvmlDeviceGetMemoryInfo", handle)
        reasons = self._maybe("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return BoardReading(
            index=index,
            power_w=self._maybe("nvmlDeviceGetPowerUsage", handle, scale=1e-3),
            power_limit_w=self._maybe("nvmlDeviceGetEnforcedPowerLimit", handle, scale=1e-3),
            sm_clock_mhz=self._maybe(
                "nvmlDeviceGetClockInfo", handle, library.NVML_CLOCK_SM, scale=1.0
            ),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            clock_event_reasons=reasons
            if reasons is not None
            else self._maybe("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
            temperature_c=self._maybe(
                "nvmlDeviceGetTemperature", handle, library.NVML_TEMPERATURE_GPU, scale=1.0
            ),
            **fixed,
        )

    def _sm_count(self, handle: Any) -> int | None:
        cores = self._maybe("nvmlDeviceGetNumGpuCores", handle)
        capability = self._maybe("nvmlDeviceGetCudaComputeCapability", handle)
        if cores is None or capability is None:
            return None
        return int(cores) // _SMS_CORES.get((int(capability[0]), int(capability[1])), 128)

    def _maybe(self, name: str, *arguments: Any, scale: float | None = None) -> Any:
        """The reading, times `scale`; ``None`` where this board or driver has no such reading."""
        try:
            value = self._call(name, *arguments)
        except ReadingUnsupported:
            return None
        return value if scale is None else value * scale

    def _call(self, name: str, *arguments: Any) -> Any:
        """One NVML call; the only place that knows NVML's codes."""
        function = getattr(self._library, name, None)
        if function is None:
            raise ReadingUnsupported(f"{name}: this binding of NVML does not have it")
        try:
            return function(*arguments)
        except self._library.NVMLError as error:
            raise self._meaning(error)(
                _MISSING.format(error) if self._is_missing(error) else f"{name}: {error}"
            ) from error

    def _meaning(self, error: Any) -> type[IgniterdError]:
        library, code = self._library, error.value
        if self._is_missing(error):
            return CannotRun
        if code in (
            library.NVML_ERROR_NOT_SUPPORTED,
            library.NVML_ERROR_FUNCTION_NOT_FOUND,
            library.NVML_ERROR_NO_PERMISSION,
        ):
            return ReadingUnsupported
        if code in (library.NVML_ERROR_GPU_IS_LOST, library.NVML_ERROR_RESET_REQUIRED):
            return DeviceLost
        return Unreachable

    def _is_missing(self, error: Any) -> bool:
        return error.value in (
            self._library.NVML_ERROR_LIBRARY_NOT_FOUND,
            self._library.NVML_ERROR_DRIVER_NOT_LOADED,
        )


def driver_library() -> Any:
    """pynvml. Raises :class:`~igniterd.errors.CannotRun` where it is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise CannotRun(_MISSING.format(error)) from error
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
