"""Waiting for what another task, process or server brings about: always with a deadline, and no
longer than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from igniterd.lab.programs.process import Running

T = TypeVar("T")

EVERY_S = 0.02
PATIENCE_S = 90.0  # what a busy machine may take; who is not kept waiting pays nothing


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition. Raises ``AssertionError`` when it does not come to hold."""

    async def ask() -> object:
        return condition()

    await until_answer(ask, bool, timeout_s)


async def until_answer(
    ask: Callable[[], Awaitable[T]],
    accepts: Callable[[T], object],
    timeout_s: float = PATIENCE_S,
    every_s: float = EVERY_S,
) -> T:
    """The first answer that ``accepts`` takes. Raises ``AssertionError`` with the last one when
    none does in time."""
    last: list[T] = []
    try:
        async with asyncio.timeout(timeout_s):
            while not (last and accepts(last[-1])):
                if last:
                    await asyncio.sleep(every_s)
                last = [await ask()]
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s; last seen: {last}") from None
    return last[-1]


async def until_ended(program: Running, timeout_s: float = PATIENCE_S) -> str:
    """Wait for the end of a program. Returns the end of what it said."""
    await until(lambda: not program.alive, timeout_s)
    return program.log_end()


async def cancelled(task: asyncio.Task[None], timeout_s: float = 5.0) -> None:
    """End a task that would go on for ever. A library's ``wait_for`` may swallow a cancellation, up
    to Python 3.11. Raises what the task had raised before, and ``AssertionError`` where it stays.
    """
    for _ in range(3):
        task.cancel()
        await asyncio.wait({task}, timeout=timeout_s)
        if task.done():
            break
    assert task.done(), f"{task} does not end"
    if not task.cancelled():
        task.result()
