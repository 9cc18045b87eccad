"""Workloads that are alike, as types with counts: many copies of few are a small problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from igniterd.planner.workloads import Workload

ALIKE = 0.01
"""SLOs and rates within this fraction are one type. It is priced in: a type has the least SLO and
the largest rate of its workloads."""


@dataclass(frozen=True, slots=True)
class WorkloadType:
    """Workloads of one model and arrival process, with about one SLO and rate.

    ``workload`` is as hard as the hardest of them in each respect. ``members`` are their numbers.
    """

    workload: Workload
    members: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.members)


def alike(workloads: Sequence[Workload], within: float = ALIKE) -> list[WorkloadType]:
    """The types of these workloads. ``within`` 0 puts together only equals."""

    served: dict[tuple[str, float], list[int]] = {}
    for n, w in enumerate(workloads):
        process = -1.0 if w.arrival_scv is None else w.arrival_scv
        served.setdefault((w.model, process), []).append(n)
    found = []
    for _, same in sorted(served.items()):
        slo = {n: workloads[n].slo_p99_ms for n in same}
        for near in _near(slo, within):
            for members in _near({n: 1.0 / workloads[n].rate_per_s for n in near}, within):
                hardest = replace(
                    workloads[members[0]],
                    slo_p99_ms=min(workloads[n].slo_p99_ms for n in members),
                    rate_per_s=max(workloads[n].rate_per_s for n in members),
                )
                found.append(WorkloadType(hardest, tuple(members)))
    return found


def _near(value: dict[int, float], within: float) -> Iterator[list[int]]:
    """The keys, by values that are within a fraction of the least among them."""
    least, near = 0.0, list[int]()
    for one, key in sorted((one, key) for key, one in value.items()):
        if near and one > least * (1.0 + within) * (1.0 + 1e-12):
            yield near
            near = []
        if not near:
            least = one
        near.append(key)
    if near:
        yield near
