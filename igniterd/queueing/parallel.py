"""Many queues solved at once, on all processors; they do not depend on each other, so the answers
are the same on any number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from igniterd.queueing.tail import TailRows, response_times

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")

_WORTH_IT = 32
"""Fewer are solved one after another."""
_MOST_WORKERS = 8


def map_threads(solve: Callable[[T], R], rows: Sequence[T]) -> list[R]:
    """``solve`` of every row, in order. Slow rows lie side by side, so each thread takes every n-th
    one."""
    workers = _workers(len(rows))
    if workers == 1:
        return [solve(row) for row in rows]

    def part(first: int) -> list[R]:
        return [solve(row) for row in rows[first::workers]]

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(part, range(workers)))
    return [parts[i % workers][i // workers] for i in range(len(rows))]


def response_times_threaded(
    rates_per_s: F64, curves_ms: F64, *, batches: I64, service_cv: float, arrival_scv: float
) -> TailRows:
    """:func:`igniterd.queueing.tail.response_times` for (R,) rates, (R, B) curves and (R,) largest
    batches, without a queue delay."""

    def part(rows: slice) -> TailRows:
        return response_times(
            rates_per_s[rows],
            curves_ms[rows],
            batches=batches[rows],
            service_cv=service_cv,
            arrival_scv=arrival_scv,
        )

    workers = _workers(rates_per_s.size)
    if workers == 1:
        return part(slice(None))
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(part, [slice(w, None, workers) for w in range(workers)]))
    merged = {}
    for field in fields(TailRows):
        values = np.empty(rates_per_s.size, dtype=getattr(parts[0], field.name).dtype)
        for w, answer in enumerate(parts):
            values[w::workers] = getattr(answer, field.name)
        merged[field.name] = values
    return TailRows(**merged)


def _workers(rows: int) -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS) if rows >= _WORTH_IT else 1
