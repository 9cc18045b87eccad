"""What there is to give of each GPU that is planned together, and whether allocations are within
it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from igniterd.predict import Demand
from igniterd.records import ROUNDING, Allocation

ONE = ""
"""The only GPU, where demands name none."""

Reserved = float | Mapping[str, float]
"""The part of a GPU that others hold: of every GPU, or by GPU."""


def grown(now: Reserved, before: Reserved) -> bool:
    """Whether others hold more of any GPU than before."""
    if isinstance(now, float | int) or isinstance(before, float | int):
        return _largest(now) > _largest(before) + ROUNDING
    return any(held > before.get(gpu, 0.0) + ROUNDING for gpu, held in now.items())


def by_gpu(reserved: Reserved, gpu: str) -> Mapping[str, float]:
    """``reserved`` by GPU; ``gpu`` is the only one where it names none."""
    return {gpu: reserved} if isinstance(reserved, float | int) else reserved


def named(found: Mapping[str, float], gpu: str) -> dict[str, float]:
    """``found`` by UUID, where it is by :data:`ONE`: that one is ``gpu``."""
    return {each or gpu: value for each, value in found.items()}


def _largest(reserved: Reserved) -> float:
    return reserved if isinstance(reserved, float | int) else max(reserved.values(), default=0.0)


def granted_on(demand: Demand, allocation: Allocation, gpu: str) -> float:
    """The part of ``gpu`` that the instances there may use by their share; 0 without one."""
    return (allocation.share or 0.0) * demand.instances_on(gpu)


@dataclass(frozen=True, slots=True)
class Room:
    """``capacity``: by GPU, the part of it that there is to give."""

    demands: tuple[Demand, ...]
    capacity: Mapping[str, float]

    @classmethod
    def of(cls, demands: Sequence[Demand], reserved: Reserved = 0.0) -> Room:
        """Room for ``demands`` beside what others hold, and beside what they may hold without
        being planned with."""
        capacity = {}
        for gpu in sorted({gpu for demand in demands for gpu in demand.gpus} or {ONE}):
            others = reserved if isinstance(reserved, float | int) else reserved.get(gpu, 0.0)
            held = sum(d.reserved for d in demands if d.instances_on(gpu))
            capacity[gpu] = 1.0 - others - held
        return cls(tuple(demands), capacity)

    def granted(self, gpu: str, allocations: Mapping[str, Allocation]) -> float:
        """What ``allocations`` (by model) grant of ``gpu``."""
        return sum(granted_on(d, allocations[d.model], gpu) for d in self.demands)

    def overfull(
        self, allocations: Mapping[str, Allocation], *, over: float = ROUNDING
    ) -> frozenset[str]:
        """The GPUs of which more is granted than there is, by more than ``over``."""
        return frozenset(
            gpu
            for gpu, capacity in self.capacity.items()
            if self.granted(gpu, allocations) > capacity + over
        )

    def holds(self, allocations: Mapping[str, Allocation], *, over: float = ROUNDING) -> bool:
        return not self.overfull(allocations, over=over)
