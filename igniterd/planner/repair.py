"""From what the search found on its tables to placements that hold when evaluated exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import I64
from igniterd.planner.evaluate import Placement, evaluate
from igniterd.planner.fill import best_host, fill_anew, fill_kind
from igniterd.planner.least_shares import Group, Pack, ShareSolver
from igniterd.planner.problem import Problem
from igniterd.planner.progress import report
from igniterd.planner.spare import give, table_p99
from igniterd.queueing.kernels import lookup

_ROUNDS = 8
_TOLERANCE = 1.0 + 1e-9
_CORRECTION = (0.6, 1.15)
"""The tables are believed to be wrong by no more than this."""
CALIBRATED = 200
"""Up to so many items all are evaluated alone before they are packed."""
_LARGE = 0.7
_CALIBRATIONS = 3
_LOWER = 0.97
_TRIES = 6
_ASKED = 64
_BELOW = 0.998
"""A corrected goal aims this far below the SLO, so that rounding does not bring the miss back."""


@dataclass(slots=True)
class Placed:
    """GPUs, and on each the items and their placements, in the same order."""

    problem: Problem
    groups: list[Group]
    placements: list[list[Placement]]
    unplaced: dict[int, str]  # items without a place, and why

    @property
    def missing(self) -> list[int]:
        """GPUs on which somebody misses the SLO."""
        return [
            g
            for g in range(len(self.groups))
            if misses(self.problem, self.groups[g], self.placements[g])
        ]


def check(problem: Problem, solver: ShareSolver, packs: Sequence[Pack], level: float) -> Placed:
    """Solve these GPUs and evaluate every placement exactly."""
    groups = [solver.group(kind, items) for kind, items in packs]
    placements = [place(problem, group) for group in groups]
    evaluate(
        [(problem.gpus[group.kind], p) for group, p in zip(groups, placements, strict=True)],
        level=level,
    )
    return Placed(problem, groups, placements, {})


def calibrate(
    problem: Problem,
    solver: ShareSolver,
    level: float,
    split: bool = True,
    everything: bool = False,
) -> None:
    """Evaluate items exactly, each alone on a GPU, correct their goals, and ``split`` what then
    fits no GPU.

    Of many items only the large ones, unless ``everything`` is asked for: an error of the tables
    costs the others a unit, but these a second GPU.
    """
    t = problem.tables
    everything = everything or problem.parent.size <= CALIBRATED
    pending = [
        i
        for i in range(problem.parent.size)
        if everything or (problem.alone[:, i] >= _LARGE * t.units).any()
    ]
    for _ in range(_CALIBRATIONS):
        groups = [
            solver.group(_cheapest_kind(problem, i), [i])
            for i in pending
            if _fits_somewhere(problem, i)
        ]
        placements = [place(problem, group, spare=0.0) for group in groups]
        evaluate(
            [(problem.gpus[g.kind], p) for g, p in zip(groups, placements, strict=True)],
            level=level,
        )
        pending = []
        for group, placement in zip(groups, placements, strict=True):
            correct(problem, group, placement)
            if misses(problem, group, placement):
                pending += group.items
        before = problem.parent.size
        if split:
            problem.split_unfit()
        pending += range(before, problem.parent.size)
        if not pending:
            return


def _fits_somewhere(problem: Problem, item: int) -> bool:
    return bool((problem.alone[:, item] <= problem.tables.units).any())


def misses(problem: Problem, group: Group, placements: Sequence[Placement]) -> bool:
    """Whether a tenant's P99 is above its SLO, or the shares are more than the GPU."""
    if group.total > int(problem.tables.units[group.kind]):
        return True
    return any(
        not holds(p, slo_ms(problem, i)) for i, p in zip(group.items, placements, strict=True)
    )


def holds(placement: Placement, slo_ms: float) -> bool:
    """Whether the P99 predicted is within the SLO, up to rounding."""
    return placement.p99_ms <= slo_ms * _TOLERANCE


def slo_ms(problem: Problem, item: int) -> float:
    """The SLO of the workload an item is a replica of."""
    return problem.workloads[int(problem.parent[item])].slo_p99_ms


def correct(
    problem: Problem,
    group: Group,
    placements: Sequence[Placement],
    factor: float = 1.0,
    lower: float = math.inf,
) -> None:
    """Set the goals of a GPU's tenants so that the tables say what was found exactly; ``factor``
    below 1 aims lower still.

    With ``lower`` no goal rises, and that of a tenant who misses falls to ``lower`` of what it was
    at most: near saturation the tables may be wrong by something else each time, and goals that
    followed them would go in circles.
    """
    top = int(problem.tables.units[group.kind])
    for k, (item, placement) in enumerate(zip(group.items, placements, strict=True)):
        slo = slo_ms(problem, item)
        by_table = table_p99(problem, group, k, round(placement.share * top))
        ratio = (
            by_table / placement.p99_ms
            if math.isfinite(placement.p99_ms)
            else 0.9 * float(problem.items.goal_ms[item]) / slo
        )
        goal = slo * _BELOW * factor * min(_CORRECTION[1], max(_CORRECTION[0], ratio))
        missed = not holds(placement, slo)
        problem.set_item(
            item,
            goal_ms=min(
                goal, float(problem.items.goal_ms[item]) * (lower if missed else max(1.0, lower))
            ),
        )


class Moves:
    """How many tenants may still be moved off the GPU they are on; items in ``free`` move for
    nothing (they are on none yet)."""

    def __init__(self, most: float = math.inf, free: Sequence[int] = ()) -> None:
        self.left, self.free = most, set(free)

    def allow(self, item: int) -> bool:
        """Count a move of this item; false, and nothing counted, when none is left."""
        if item in self.free:
            return True
        if self.left < 1:
            return False
        self.left -= 1
        return True


NO_MOVE_LEFT = "would have to move to another GPU, and the moves allowed are used up"


def repair(placed: Placed, solver: ShareSolver, level: float, moves: Moves | None = None) -> Placed:
    """Correct the goals where a P99 misses and solve the shares again, until nobody misses.

    A tenant that no longer fits moves.

    Who still misses in the end gets a GPU of its own, or replicas on several; who misses even then
    is left ``unplaced``.
    """
    moves = moves or Moves()
    problem, groups, placements = placed.problem, placed.groups, placed.placements
    for turn in range(_ROUNDS):
        missing = [g for g in range(len(groups)) if misses(problem, groups[g], placements[g])]
        if not missing:
            break
        report(f"{len(groups)} GPUs evaluated; on {len(missing)} somebody misses its SLO")
        for g in missing:
            correct(problem, groups[g], placements[g], 0.997**turn, lower=_LOWER)
        changed = move_unfit(problem, solver, groups, missing, moves, placed.unplaced)
        placements += [[] for _ in range(len(groups) - len(placements))]
        for g in changed:
            placements[g] = place(problem, groups[g])
        evaluate([(problem.gpus[groups[g].kind], placements[g]) for g in changed], level=level)
    _isolate(placed, solver, level)
    kept = [g for g, group in enumerate(groups) if group.items]
    return Placed(
        problem, [groups[g] for g in kept], [placements[g] for g in kept], placed.unplaced
    )


def place(problem: Problem, group: Group, spare: float = 0.5) -> list[Placement]:
    """Placements of a GPU: what the search found, and up to a part of the spare units given, see
    :func:`igniterd.planner.spare.give`.

    What is not given is left for a new tenant or a surge.
    """
    t, items, top = problem.tables, problem.items, int(problem.tables.units[group.kind])
    units = give(problem, group, math.ceil(spare * (top - sum(group.units))))
    placements = []
    for k, item in enumerate(group.items):
        model = int(items.model[item])
        rate, c2 = 1e3 * float(items.rate[item]), problem.burstiness_of(item)
        batch = int(t.caps[group.option[k]])
        utilisation, mean = group.utilisation[k], group.mean_batch[k]
        if units[k] != group.units[k]:
            args = (
                group.kind,
                int(items.queue[item]),
                model,
                units[k],
                group.option[k],
                rate / 1e3,
                group.slowdown[k],
            )
            utilisation, mean = lookup.behaviour(t, *args)
        placements.append(
            Placement(
                problem.models[model], units[k] / top, batch, 0.0, rate, c2, utilisation, mean
            )
        )
    return placements


def move_unfit(
    problem: Problem,
    solver: ShareSolver,
    groups: list[Group],
    missing: Sequence[int],
    moves: Moves,
    unplaced: dict[int, str],
    homeless: Sequence[int] = (),
) -> list[int]:
    """Solve these GPUs again; tenants that no longer fit, and the ``homeless``, move to others or
    to new ones. The GPUs that changed."""
    changed = set(missing)
    homeless = list(homeless)
    if math.isinf(moves.left):
        more, left = fill_anew(problem, solver, groups, missing)
        changed.update(more)
        homeless += left
    for g in (g for g in missing if groups[g].items):
        kind, items = groups[g].kind, list(groups[g].items)
        while len(items) > 1 and not solver.fits(kind, items):
            leaver = _leaver(problem, solver, kind, items)
            items.remove(leaver)
            homeless.append(leaver)
        while not solver.fits(kind, items):  # not even alone any more: one replica more
            homeless.append(problem.split(items[0]))
        groups[g] = solver.group(kind, items)
    for item in homeless:  # grows while it is gone through
        if not _fits_somewhere(problem, item):
            homeless += [item, problem.split(item)]
    packs = [(group.kind, group.items) for group in groups]
    spare = np.array(
        [int(problem.tables.units[g.kind]) - g.total if g.items else -1 for g in groups],
        dtype=np.int64,
    )
    kinds = np.array([g.kind for g in groups], dtype=np.int64)
    left = []
    for item in sorted(set(homeless), key=lambda i: -int(problem.alone[:, i].min())):
        if not moves.allow(item):
            unplaced[item] = NO_MOVE_LEFT
            continue
        host = best_host(
            problem, solver, packs, item, _roomy(problem.alone[kinds, item], spare), {}
        )
        if host is None:
            left.append(item)
            continue
        groups[host] = solver.group(groups[host].kind, [*groups[host].items, item])
        packs[host] = (groups[host].kind, groups[host].items)
        spare[host] = int(problem.tables.units[groups[host].kind]) - groups[host].total
        changed.add(host)
    for kind in range(len(problem.gpus)):
        mine = [i for i in left if _cheapest_kind(problem, i) == kind]
        if mine:
            new = [
                solver.group(kind, items)
                for items in fill_kind(problem, kind, np.array(mine, dtype=np.int64))
            ]
            changed.update(range(len(groups), len(groups) + len(new)))
            groups += new
    return sorted(changed)


def _isolate(placed: Placed, solver: ShareSolver, level: float) -> None:
    """The last resort: tenants of GPUs that still miss, each on its own, in as many replicas as it
    takes."""
    problem, groups, placements = placed.problem, placed.groups, placed.placements
    queue: list[tuple[int, int, int]] = []  # kind, item, tries
    for g in placed.missing:
        queue += [(groups[g].kind, item, 0) for item in groups[g].items]
        groups[g], placements[g] = Group(groups[g].kind, []), []
    while queue:
        kind, item, tries = queue.pop()
        if tries > _TRIES:
            placed.unplaced[item] = (
                "no placement was found whose P99 holds when it is evaluated exactly"
            )
        elif tries == _TRIES // 2 or problem.alone[kind, item] > problem.tables.units[kind]:
            queue += [(kind, item, tries + 1), (kind, problem.split(item), tries + 1)]
        else:
            alone = solver.group(kind, [item])
            placement = place(problem, alone)
            evaluate([(problem.gpus[kind], placement)], level=level)
            if misses(problem, alone, placement):
                correct(problem, alone, placement, 0.985 ** (tries + 1))
                queue.append((kind, item, tries + 1))
            else:
                groups.append(alone)
                placements.append(placement)


def _roomy(wanted: I64, spare: I64) -> list[int]:
    """GPUs whose spare units are enough for what an item needs alone on each, fullest first, a
    bounded number of them."""
    enough = np.flatnonzero((spare >= wanted) & (spare >= 0))
    return [int(g) for g in enough[np.argsort(spare[enough], kind="stable")][:_ASKED]]


def _leaver(problem: Problem, solver: ShareSolver, kind: int, items: Sequence[int]) -> int:
    """The tenant to go: the smallest whose going is enough, else the largest."""
    sizes = sorted(items, key=lambda i: int(problem.alone[kind, i]))
    for item in sizes:
        if solver.fits(kind, [i for i in items if i != item]):
            return item
    return sizes[-1]


def _cheapest_kind(problem: Problem, item: int) -> int:
    """The kind of GPU on which what the item needs alone costs least."""
    t = problem.tables
    cost = [
        problem.alone[k, item] / t.units[k] * (gpu.price_per_hour or 1.0)
        if problem.alone[k, item] <= t.units[k]
        else math.inf
        for k, gpu in enumerate(problem.gpus)
    ]
    return int(np.argmin(cost))
