"""The boards, through NVML: device level only, because under MPS NVML books all activity on the MPS
server.

NVML calls block, and with a driver in trouble they may block for ever. They run in one worker
thread, each read with a deadline. A thread that misses it is asked again once it has answered: to
begin with boards that nobody has open takes seconds. One that has not answered after a pause is
left behind (a thread cannot be killed), and a new one is tried, only a few times: a hung driver
costs a few sleeping threads and never the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from igniterd.clients.nvml_boards import Boards
from igniterd.clients.nvml_calls import MISSING, kernel_driver_version
from igniterd.errors import CannotRun, IgniterdError, Unreachable
from igniterd.records import BoardReading


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
        kernel_version: Callable[[], str] = kernel_driver_version,
    ) -> None:
        """`library` is a module or object with pynvml's names; ``None`` imports pynvml.
        `kernel_version` tells which driver the kernel has, or an empty string."""
        self._open = functools.partial(
            Boards,
            driver_library if library is None else lambda: library,
            clock=clock,
            kernel_version=kernel_version,
        )
        self.timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._most_abandoned = most_abandoned
        self._clock = clock
        self._worker: _Worker | None = None
        self._abandoned: list[_Worker] = []
        self._asked_s = 0.0

    async def read(self) -> tuple[BoardReading, ...]:
        """Every board now, and every MIG instance in place of its board. What a board cannot give
        is ``None``; why one was not read in full is its ``fault``.

        Raises :class:`Unreachable` where NVML as a whole does not answer in time or at all,
        :class:`CannotRun` without NVML on this host.
        """
        worker = self._ready_worker()
        answer: asyncio.Future[tuple[BoardReading, ...]] = (
            asyncio.get_running_loop().create_future()
        )
        self._asked_s = self._clock()
        worker.ask(answer)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the
            # answer.
            async with asyncio.timeout(self.timeout_s):
                return await answer
        except TimeoutError:
            raise Unreachable(f"NVML: no answer in {self.timeout_s:g} s") from None

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ready_worker(self) -> _Worker:
        if self._worker is not None and self._worker.busy:
            waited_s = self._clock() - self._asked_s
            if waited_s < self._retry_after_s:
                raise Unreachable(
                    f"NVML: the driver has not answered for {waited_s:.0f} s; next try in "
                    f"{self._retry_after_s - waited_s:.0f} s"
                )
            self._worker.stop()
            self._abandoned.append(self._worker)
            self._worker = None
        if self._worker is None:
            self._abandoned = [worker for worker in self._abandoned if worker.alive]
            if len(self._abandoned) >= self._most_abandoned:
                raise Unreachable(
                    f"NVML: {len(self._abandoned)} calls hang in the driver; no more are tried "
                    "until one of them returns"
                )
            self._worker = _Worker(self._open())
        return self._worker


class _Worker:
    """One thread that owns the library: initialises it, reads, and shuts it down when it is told to
    stop."""

    def __init__(self, boards: Boards) -> None:
        self._boards = boards
        self.busy = False  # asked, and not done yet
        self._asked: queue.SimpleQueue[asyncio.Future[tuple[BoardReading, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def ask(self, answer: asyncio.Future[tuple[BoardReading, ...]]) -> None:
        self.busy = True
        self._asked.put(answer)

    def stop(self) -> None:
        self._asked.put(None)

    def _run(self) -> None:
        while (answer := self._asked.get()) is not None:
            result, failure = self._read()
            self.busy = False
            # the loop is gone: nobody waits for this answer any more
            with contextlib.suppress(RuntimeError):
                answer.get_loop().call_soon_threadsafe(_give, answer, result, failure)
        self._boards.close()

    def _read(self) -> tuple[tuple[BoardReading, ...], Exception | None]:
        try:
            return self._boards.read(), None
        except IgniterdError as error:
            return (), error
        except Exception as error:  # whatever a binding raises must not end the thread unheard
            return (), Unreachable(f"NVML: {error!r}")


def _give(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def driver_library() -> Any:
    """pynvml. Raises :class:`~igniterd.errors.CannotRun` where it is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise CannotRun(MISSING.format(error)) from error
    return pynvml
