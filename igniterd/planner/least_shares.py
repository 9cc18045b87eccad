"""What items need together on one GPU, asked of the kernel and remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from igniterd.arrays import I64
from igniterd.planner.kernels import shares as packing
from igniterd.planner.kernels import sketch as sketches
from igniterd.planner.kernels.shares import MAX_TENANTS, Items
from igniterd.planner.kernels.sketch import Sketch
from igniterd.planner.problem import Problem, pick
from igniterd.queueing.kernels.lookup import Tables
from igniterd.queueing.parallel import map_threads

Pack = tuple[int, list[int]]
"""A GPU in the search: the number of its kind, the items on it."""


_CHUNK = 25
"""Items one thread sketches at a time."""
_Key = tuple[int, frozenset[tuple[int, int]]]
"""A kind of GPU; items with their stamps."""


@dataclass(slots=True)
class Group:
    """One GPU: its kind and the items on it, with what they need there."""

    kind: int
    items: list[int]
    units: list[int] = field(default_factory=list)
    option: list[int] = field(default_factory=list)
    utilisation: list[float] = field(default_factory=list)
    mean_batch: list[float] = field(default_factory=list)
    slowdown: list[float] = field(default_factory=list)
    total: int = 0


class ShareSolver:
    """Asks the kernel what items need together, and remembers the answers."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._shares = packing.empty_shares()
        self._totals: dict[_Key, int] = {}
        self._unfit: set[_Key] = set()

    def total(self, kind: int, items: list[int]) -> int:
        """Units the items need together on a GPU of this kind; above its units when they do not fit
        (by how much is a guide)."""
        key = self._key(kind, items)
        if key not in self._totals:
            self._totals[key] = self._ask(kind, items, 3)
        return self._totals[key]

    def _key(self, kind: int, items: list[int]) -> _Key:
        stamp = self.problem.stamp
        return kind, frozenset((item, stamp[item]) for item in items)

    def group(self, kind: int, items: list[int]) -> Group:
        """The GPU with what everybody needs there."""
        items = sorted(items)
        # with a ceiling at the GPU's units the kernel would give up before it has written anything
        total = self._ask(kind, items, 3) if items else 0
        n = len(items)
        units, option, utilisation, mean_batch, slowdown = (
            column[:n].tolist() for column in self._shares
        )
        return Group(kind, items, units, option, utilisation, mean_batch, slowdown, total)

    def fits(self, kind: int, items: list[int]) -> bool:
        """Whether the items hold together on one GPU, by shares and by memory; two replicas of one
        workload never do."""
        parents = self.problem.parent[items]
        if (
            len(items) > MAX_TENANTS
            or np.unique(parents).size < len(items)
            or not self.problem.fits_memory(kind, items)
        ):
            return False
        top, key = int(self.problem.tables.units[kind]), self._key(kind, items)
        if key not in self._totals and key not in self._unfit:
            total = self._ask(kind, items, 1)  # gives up as soon as it is above the GPU's units
            if total > top:
                self._unfit.add(key)
            else:
                self._totals[key] = total
        return key not in self._unfit and self._totals[key] <= top

    def alone(self, kind: int, item: int) -> int:
        """Units the item needs alone."""
        return int(self.problem.alone[kind, item])

    def _ask(self, kind: int, items: list[int], slack: int) -> int:
        # where the kernel ends may depend on the order by a unit
        who = np.array(sorted(items), dtype=np.int64)
        t = self.problem.tables
        if len(items) > MAX_TENANTS:
            return len(items) * int(t.units[kind])
        ceiling = slack * int(t.units[kind])
        args = (t, self.problem.items, kind, who, who.size, ceiling, self._shares)
        return int(packing.least_shares(*args))


def sketched(t: Tables, items: Items, kind: int) -> Sketch:
    """The items on GPUs of one kind as searches see them; found on all processors."""
    n = items.model.size

    def part(which: I64) -> Sketch:
        out = Sketch(
            alone=np.zeros(which.size, np.int64),
            slowdown_limit=np.zeros((which.size, sketches.EXTRA_UNITS)),
            size=np.zeros(which.size, np.int64),
            interference=np.zeros((which.size, t.curve_ms.shape[1], t.gain_units.size)),
        )
        sketches.sketch(t, pick(items, which), kind, out)
        return out

    chunks = [np.arange(first, min(first + _CHUNK, n)) for first in range(0, n, _CHUNK)]
    parts = map_threads(part, chunks or [np.arange(0)])
    return Sketch(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def copied(sketch: Sketch) -> Sketch:
    """The same in arrays of its own."""
    return Sketch(
        sketch.alone.copy(),
        sketch.slowdown_limit.copy(),
        sketch.size.copy(),
        sketch.interference.copy(),
    )
