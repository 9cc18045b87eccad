"""Many evaluations of the queue at once, on all processors; rows do not depend on each other, so
the answer is the same on any number."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.queueing.tail import TailRows, response_times

_WORTH_IT = 32
"""Fewer rows are evaluated at once."""


def respond(
    rates_per_s: F64,
    curves_ms: F64,
    caps: I64,
    delays_ms: F64,
    *,
    service_cv: float,
    burstiness: float,
) -> TailRows:
    """:func:`igniterd.queueing.tail.response_times` for (R,) rates, (R, B) curves, (R,) largest
    batches and delays."""

    def part(rows: slice) -> TailRows:
        return response_times(
            rates_per_s[rows],
            curves_ms[rows],
            batches=caps[rows],
            service_cv=service_cv,
            max_queue_delay_ms=delays_ms[rows],
            burstiness=burstiness,
        )

    workers = min(len(os.sched_getaffinity(0)), 8)
    if workers == 1 or rates_per_s.size < _WORTH_IT:
        return part(slice(None))
    with ThreadPoolExecutor(workers) as pool:
        # every so-manieth row: slow rows are spread
        parts = list(pool.map(part, [slice(w, None, workers) for w in range(workers)]))
    merged = {}
    for field in fields(TailRows):
        values = np.empty(rates_per_s.size, dtype=getattr(parts[0], field.name).dtype)
        for w, answer in enumerate(parts):
            values[w::workers] = getattr(answer, field.name)
        merged[field.name] = values
    return TailRows(**merged)
