"""The planning problem in arrays: workloads as items with least shares, what cannot be planned and
why, and the lower bound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from igniterd.arrays import F64, I64
from igniterd.planner.evaluate import LEVEL
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.kernels import shares as packing
from igniterd.planner.kernels.lower_bound import bound_units
from igniterd.planner.kernels.shares import Items
from igniterd.planner.tables import build_tables
from igniterd.planner.workloads import Infeasible, Workload
from igniterd.queueing.kernels import lookup
from igniterd.queueing.kernels.lookup import Tables
from igniterd.queueing.parallel import map_threads

OUT_OF_STOCK = "needs a GPU beyond the"
"""How the reason begins that a workload lost for want of GPUs is given."""
MAX_REPLICAS = 256
"""A workload is split over at most so many GPUs: beyond that, something else is wrong."""
_CHUNK = 25
"""Workloads whose bounds one thread finds at a time."""
_TABLE_MARGIN = 0.01
"""The search aims this far below the SLO: what the tables' interpolation errs by, so that few
placements have to be repaired."""


@dataclass(slots=True)
class Problem:
    """Workloads that can be planned, their replicas as items, and what the kernels read.

    ``parent[i]`` is the workload item i is a replica of. ``alone[k, i]``: units item i needs alone
    on kind k, above the GPU's units where no share is enough.
    """

    gpus: tuple[GpuType, ...]
    models: tuple[str, ...]
    workloads: list[Workload]
    arrival_scv: list[float]  # by workload
    rejected: list[Infeasible]
    tables: Tables
    items: Items
    parent: I64
    alone: I64
    bound: F64  # (K, W) fewest units each workload takes, however it is split
    shifts: bool = True  # whether rate may be shifted between replicas
    # by item; never the same again once the item has changed
    stamp: list[int] = field(default_factory=list)
    _stamps: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def burstiness_of(self, item: int) -> float:
        """Arrival process of an item: its workload's. A part of Poisson arrivals is Poisson, of
        constant ones taken in turn constant."""
        return self.arrival_scv[int(self.parent[item])]

    @property
    def whole(self) -> Items:
        """The workloads unsplit and at their SLO, without the margin that the search keeps: for
        whoever has to err on the other side."""
        first = np.unique(self.parent, return_index=True)[1]
        slo = np.array([w.slo_p99_ms for w in self.workloads], dtype=np.float64)
        rate = np.array([w.rate_per_s / 1e3 for w in self.workloads], dtype=np.float64)
        return pick(self.items, first)._replace(goal_ms=slo, rate=rate)

    def memory(self, kind: int) -> I64:
        """Bytes one instance of each item takes on a kind of GPU; 0 where the profile does not
        say."""
        each = np.array([_memory(self.gpus[kind], m) for m in self.models], dtype=np.int64)
        return each[self.items.model]

    def room(self, kind: int) -> int:
        """Bytes a GPU of this kind has for instances."""
        total = self.gpus[kind].profile.board.memory_bytes
        return total or int(np.iinfo(np.int64).max)

    def fits_memory(self, kind: int, items: Sequence[int]) -> bool:
        """Whether one instance of each item fits the memory of one GPU."""
        return sum(
            _memory(self.gpus[kind], self.models[int(self.items.model[i])]) for i in items
        ) <= self.room(kind)

    def split(self, item: int) -> int:
        """Halve an item's rate and append a replica with the other half; the replica's number."""
        which = np.append(np.arange(self.items.model.size), item)
        self.items = pick(self.items, which)
        self.parent, self.alone = self.parent[which], self.alone[:, which]
        self.stamp.append(0)
        half = int(which.size) - 1
        rate = float(self.items.rate[item]) / 2.0
        self.set_item(item, rate=rate)
        self.set_item(half, rate=rate)
        return half

    def set_item(
        self, item: int, *, rate: float | None = None, goal_ms: float | None = None
    ) -> None:
        """Change an item's rate (requests/ms) or goal, and find again what it needs alone."""
        if rate is not None:
            self.items.rate[item] = rate
        if goal_ms is not None:
            self.items.goal_ms[item] = goal_ms
        self.stamp[item] = next(self._stamps)
        self.alone[:, item] = needs(self.tables, pick(self.items, np.array([item])))[:, 0]

    def set_items(self, parent: I64, rate: F64) -> None:
        """Replace all items: of each its workload and its rate (requests/ms)."""
        first = np.unique(self.parent, return_index=True)[1]
        goal = np.array([w.slo_p99_ms * (1.0 - _TABLE_MARGIN) for w in self.workloads])
        self.items = pick(self.items, first[parent])._replace(rate=rate, goal_ms=goal[parent])
        self.parent, self.alone = parent, needs(self.tables, self.items)
        self.stamp = [next(self._stamps) for _ in parent]

    def without_idle(self, groups: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
        """Drop the items without a rate; the groups with the numbers the others have then."""
        keep = np.flatnonzero(self.items.rate > 0)
        if keep.size == self.items.rate.size:
            return groups
        number = {int(item): new for new, item in enumerate(keep)}
        self.items, self.parent, self.alone = (
            pick(self.items, keep),
            self.parent[keep],
            self.alone[:, keep],
        )
        self.stamp = [next(self._stamps) for _ in keep]
        return [(kind, [number[i] for i in members]) for kind, members in groups]

    def split_unfit(self) -> None:
        """Halve what fits no GPU alone until everything does."""
        while True:
            unfit = np.flatnonzero((self.alone > self.tables.units[:, None]).all(axis=0))
            if not unfit.size:
                return
            for item in unfit.tolist():
                self.split(item)

    def snapshot(self) -> tuple[Items, I64, I64, list[int]]:
        """What :meth:`split` and :meth:`set_item` change."""
        copy = pick(self.items, np.arange(self.items.model.size))
        return copy, self.parent.copy(), self.alone.copy(), list(self.stamp)

    def restore(self, state: tuple[Items, I64, I64, list[int]]) -> None:
        """Undo everything since :meth:`snapshot`."""
        self.items, self.parent, self.alone, self.stamp = state


def _memory(gpu: GpuType, model: str) -> int:
    return (gpu.memory_bytes(model) or 0) if model in gpu.profile.models else 0


def pose(
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    *,
    level: float = LEVEL,
    parts: Mapping[str, Sequence[float]] | None = None,
) -> Problem:
    """Set the problem up; workloads that cannot be planned go to ``rejected`` with what would be
    possible.

    ``parts``: rates (requests/s) of the replicas that workloads, by name, have already; others get
    as many as they need.
    """
    known = sorted({name for gpu in gpus for name in gpu.model.models})
    rejected = [
        Infeasible(w.name, _unknown(w.model, known)) for w in workloads if w.model not in known
    ]
    large = {
        m: why for m in {w.model for w in workloads} & set(known) if (why := _too_large(gpus, m))
    }
    rejected += [Infeasible(w.name, large[w.model]) for w in workloads if w.model in large]
    kept = [w for w in workloads if w.model in known and w.model not in large]
    c2 = [arrival_scv if w.arrival_scv is None else w.arrival_scv for w in kept]
    queues = sorted(set(c2)) or [arrival_scv]
    models = tuple(sorted({w.model for w in kept})) or tuple(known[:1])
    cv = max(gpu.service_cv(m) for gpu in gpus for m in models if m in gpu.model.models)
    tables = build_tables(gpus, models, queues, level=level, service_cv=cv)
    items = Items(
        np.array([models.index(w.model) for w in kept], dtype=np.int64),
        np.array([queues.index(c) for c in c2], dtype=np.int64),
        np.array([w.slo_p99_ms * (1.0 - _TABLE_MARGIN) for w in kept], dtype=np.float64),
        np.array([w.rate_per_s / 1e3 for w in kept], dtype=np.float64),
    )
    alone = needs(tables, items)
    problem = Problem(
        gpus,
        models,
        kept,
        c2,
        rejected,
        tables,
        items,
        np.arange(len(kept), dtype=np.int64),
        alone,
        np.empty((len(gpus), len(kept))),
    )
    # no margin where the other side is to be erred on
    at_slo = items._replace(goal_ms=items.goal_ms / (1.0 - _TABLE_MARGIN))
    alone_at_slo = needs(tables, at_slo)
    _bound(problem, at_slo, alone_at_slo)
    _reject_hopeless(problem)
    _split_large(problem, parts or {})
    problem.stamp = [0] * problem.parent.size
    return problem


def _bound(problem: Problem, items: Items, alone: I64) -> None:
    """Fill ``problem.bound``, on all processors."""
    chunks = [
        (kind, np.arange(first, min(first + _CHUNK, items.model.size)))
        for kind in range(len(problem.gpus))
        for first in range(0, items.model.size, _CHUNK)
    ]

    def part(chunk: tuple[int, I64]) -> F64:
        kind, which = chunk
        out = np.empty(which.size)
        bound_units(problem.tables, pick(items, which), kind, alone[kind, which], out)
        return out

    for (kind, which), found in zip(chunks, map_threads(part, chunks), strict=True):
        problem.bound[kind, which] = found


def needs(tables: Tables, items: Items) -> I64:
    """Units each item needs alone, (K, n)."""
    out = np.zeros((tables.units.size, items.model.size), dtype=np.int64)
    for kind in range(tables.units.size):
        packing.needs(tables, items, kind, out[kind])
    return out


def pick(items: Items, which: I64) -> Items:
    """Some of the items, in that order."""
    return Items(items.model[which], items.queue[which], items.goal_ms[which], items.rate[which])


def _too_large(gpus: Sequence[GpuType], model: str) -> str:
    """Why one instance fits the memory of no GPU, or an empty string; what a profile does not say
    fits."""
    rooms = [
        (_memory(gpu, model), gpu.profile.board.memory_bytes)
        for gpu in gpus
        if model in gpu.profile.models
    ]
    if any(room is None or need <= room for need, room in rooms):
        return ""
    need, room = min((need, room or 0) for need, room in rooms)
    return (
        f"one instance of {model} takes {need / 2**30:.3g} GiB, and the GPU has "
        f"{room / 2**30:.3g} GiB"
    )


def _unknown(model: str, known: Sequence[str]) -> str:
    return f"model {model!r} is not profiled on any of these GPUs; profiled: {', '.join(known)}"


def _reject_hopeless(problem: Problem) -> None:
    """Drop workloads that no number of replicas can serve: even the lightest load misses the SLO,
    or too many would be needed."""
    t, items = problem.tables, problem.items
    hopeless: list[int] = []
    for w in np.flatnonzero((problem.alone > t.units[:, None]).all(axis=0)).tolist():
        workload = problem.workloads[w]
        most = max(largest_rate(problem, kind, w) for kind in range(len(problem.gpus)))
        if most * MAX_REPLICAS < workload.rate_per_s:
            hopeless.append(w)
            problem.rejected.append(_why(problem, w, most))
    keep = np.setdiff1d(np.arange(len(problem.workloads)), hopeless)
    problem.workloads = [problem.workloads[w] for w in keep.tolist()]
    problem.arrival_scv = [problem.arrival_scv[w] for w in keep.tolist()]
    problem.items, problem.alone, problem.bound = (
        pick(items, keep),
        problem.alone[:, keep],
        problem.bound[:, keep],
    )
    problem.parent = np.arange(keep.size, dtype=np.int64)


def largest_rate(problem: Problem, kind: int, item: int) -> float:
    """Requests a second one whole GPU serves within the item's SLO."""
    t, i = problem.tables, problem.items
    units = int(t.units[kind])
    return 1e3 * float(
        lookup.largest_rate(
            t,
            kind,
            int(i.queue[item]),
            int(i.model[item]),
            float(i.goal_ms[item]),
            units,
            1.0,
            1e-6,
        )
    )


def _why(problem: Problem, w: int, most: float) -> Infeasible:
    """In words why a workload cannot be planned, with the least SLO that could be held at its
    rate."""
    workload = problem.workloads[w]
    if most > 0:
        asked = f"{workload.rate_per_s:g}/s within {workload.slo_p99_ms:g} ms"
        reason = f"{asked} needs more than {MAX_REPLICAS} replicas, at most {most:.1f}/s each"
        return Infeasible(
            workload.name,
            f"{reason}; possible: {most * MAX_REPLICAS:.0f}/s",
            None,
            most * MAX_REPLICAS,
        )
    t, items = problem.tables, problem.items

    def p99(rate: float) -> float:
        kinds = range(len(problem.gpus))
        found = (
            lookup.best_option(
                t,
                k,
                int(items.queue[w]),
                int(items.model[w]),
                int(t.units[k]),
                0.0,
                rate,
                1.0,
                False,
            )[1]
            for k in kinds
        )
        return min(float(value) for value in found) / (1.0 - _TABLE_MARGIN)

    least, at_rate = p99(1e-6 * float(items.rate[w])), p99(float(items.rate[w]))
    reason = (
        f"no share of a GPU, and no number of replicas, brings the P99 of {workload.model} "
        f"to {workload.slo_p99_ms:g} ms"
    )
    reason += f": at the lightest load it is {least:.2f} ms"
    if not math.isfinite(at_rate):
        return Infeasible(workload.name, f"{reason}; the least SLO is above that", least)
    return Infeasible(
        workload.name,
        f"{reason}; the least SLO at {workload.rate_per_s:g}/s on one GPU is {at_rate:.2f} ms",
        at_rate,
    )


def _split_large(problem: Problem, parts: Mapping[str, Sequence[float]]) -> None:
    """Replace every item that fits no GPU alone by the fewest equal replicas that each do, and
    those of ``parts`` by what is given."""
    t = problem.tables
    fits: NDArray[np.bool_] = np.any(problem.alone <= t.units[:, None], axis=0)
    which: list[int] = []
    rates: list[float] = []
    for w, workload in enumerate(problem.workloads):
        given = parts.get(workload.name)
        if given is None and not fits[w]:
            most = max(largest_rate(problem, kind, w) for kind in range(len(problem.gpus)))
            count = max(2, math.ceil(workload.rate_per_s / most - 1e-9))
            given = [workload.rate_per_s / count] * count
        rates += given or [workload.rate_per_s]
        which += [w] * len(given or [0])
    if len(which) == fits.size and not parts:
        return
    items = pick(problem.items, np.array(which, dtype=np.int64))
    problem.items = items._replace(rate=np.array(rates, dtype=np.float64) / 1e3)
    problem.parent = np.array(which, dtype=np.int64)
    problem.alone = needs(t, problem.items)
