"""A plan without the changes that are not worth a reload. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from igniterd.decide.room import Room
from igniterd.decide.search import GpuPlan
from igniterd.decide.steps import granted
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation


def fewest_changes(
    predictor: LatencyPredictor,
    demands: Sequence[Demand],
    here: Mapping[str, Allocation],
    found: GpuPlan,
    room: Room,
) -> dict[str, Allocation]:
    """The plan without the changes that are not worth a reload: those whose absence leaves half its
    head-room."""
    target = dict(found.allocations)
    growth = 1 + (found.headroom - 1) / 2 if found.feasible else 1.0
    for name in sorted(target, key=lambda m: abs(granted(target[m]) - granted(here[m]))):
        if target[name] == here[name] or (here[name].share is None) != (target[name].share is None):
            continue
        candidate = {**target, name: here[name]}
        if not room.holds(candidate):
            continue
        served = predictor.together(demands, candidate, growth=max(1.0, growth))
        if all(served[d.model].p99_ms <= d.slo_ms for d in demands if d.model in found.kept):
            target = candidate
    return target
