"""Models that a plan cannot hold: what is left of the GPU for them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from igniterd.decide.room import Reserved, Room, granted_on
from igniterd.decide.tenant import EPS
from igniterd.predict import Demand, LatencyPrediction
from igniterd.records import Allocation

LEAST = 0.01
"""The least share that MPS knows."""


def best_effort_of(demand: Demand, share: float) -> tuple[Allocation, LatencyPrediction]:
    """A model let go: always busy, with its largest batch, on ``share``."""
    batch = demand.keeps_batch or demand.max_batch
    allocation = demand.pinned or Allocation(
        share if demand.steerable else None, batch, 0, demand.instances, demand.devices
    )
    return allocation, LatencyPrediction(math.inf, math.inf, math.inf, 1.0, float(demand.max_batch))


def equal_shares(shed: Sequence[Demand], reserved: Reserved, unit: float) -> dict[str, Allocation]:
    """Nobody can be held: equal shares of what is left, in units of ``unit``."""
    equal = {}
    for gpu, capacity in Room.of(shed, reserved).capacity.items():
        pinned = sum(granted_on(d, d.pinned, gpu) for d in shed if d.pinned is not None)
        takers = sum(d.instances_on(gpu) for d in shed if d.pinned is None and d.steerable)
        equal[gpu] = _equal(max(0.0, capacity - pinned), takers, unit)
    allocations = {}
    for d in shed:
        share = min(equal[gpu] for gpu in equal if d.instances_on(gpu))
        allocations[d.model] = best_effort_of(d, min(share, d.max_share))[0]
    return allocations


def _equal(capacity: float, takers: int, unit: float) -> float:
    """``capacity`` in equal parts: whole units, or thousandths where there are more takers than
    units."""
    if not takers:
        return 1.0
    units = math.floor(capacity / takers / unit + EPS)
    return (
        round(units * unit, 6) if units else max(LEAST, math.floor(capacity / takers * 1000) / 1000)
    )
