"""The sentences of a plan: why it is made, and what each change does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from igniterd.decide.search import GpuPlan
from igniterd.predict import Demand, LatencyPrediction
from igniterd.records import ROUNDING, Allocation, granted_total


def reason(
    found: GpuPlan,
    served: Mapping[str, LatencyPrediction] | None,
    late: Iterable[str],
    shed: Iterable[str],
    here: Mapping[str, Allocation],
    room: float | None,
) -> str:
    """Why the plan ``found`` takes the place of what is applied."""
    if found.reasons:
        return "; ".join(f"{m} is let go: {reason}" for m, reason in found.reasons.items())
    if served is None:
        bare = ", ".join(m for m, a in here.items() if a.share is None)
        if not bare:
            return f"more is granted than {_there_is(here)}: back to a plan"
        return f"taking over: {bare} without a share; {found.least_share:.1%} of the GPU is needed"
    if late:
        room_then = f"rates free to grow by {found.headroom - 1:.0%}"
        return f"{', '.join(late)} would miss; the plan holds every SLO with {room_then}"
    if shed:
        return f"{', '.join(shed)} fits again"
    return f"rates may grow by {found.headroom - 1:.0%} instead of {(room or 1.0) - 1:.0%}"


def _there_is(here: Mapping[str, Allocation]) -> str:
    """What the shares of ``here`` are too much for."""
    whole = granted_total(here.values()) > 1 + ROUNDING
    return "the whole GPU" if whole else "what is not planned with leaves"


def changes(count: int) -> str:
    return f"{count} change" + ("" if count == 1 else "s")


def _share(allocation: Allocation) -> str:
    return "no share" if allocation.share is None else f"{allocation.share:.1%}"


def _p99(service: LatencyPrediction | None) -> str:
    return (
        "unknown"
        if service is None
        else "overload"
        if service.overloaded
        else f"{service.p99_ms:.0f} ms"
    )


def sentence(
    demand: Demand,
    before: Allocation,
    then: Allocation,
    served: Mapping[str, LatencyPrediction] | None,
    found: GpuPlan,
) -> str:
    was = served.get(demand.model) if served is not None else None
    return (
        f"{_share(before)}, batch {before.max_batch_size} -> {_share(then)}, batch "
        f"{then.max_batch_size}: at {demand.rate_per_s:.0f}/s "
        f"P99 {_p99(was)} -> {_p99(found.served[demand.model])} (aim {demand.slo_ms:.0f} ms)"
    )
