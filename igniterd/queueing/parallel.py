"""Many queues solved at once, on all processors; they do not depend on each other, so the answers
are the same on any number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WORTH_IT = 32
"""Fewer are solved one after another."""
_MOST_WORKERS = 8


def map_threads(solve: Callable[[T], R], rows: Sequence[T]) -> list[R]:
    """``solve`` of every row, in order. Slow rows lie side by side, so each thread takes every n-th
    one."""
    workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    if workers == 1 or len(rows) < _WORTH_IT:
        return [solve(row) for row in rows]

    def part(first: int) -> list[R]:
        return [solve(row) for row in rows[first::workers]]

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(part, range(workers)))
    return [parts[i % workers][i // workers] for i in range(len(rows))]
