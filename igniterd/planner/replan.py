"""From a running plan to one that holds for today's workloads, with few moves.

A move takes a tenant off the GPU it is on (a load somewhere else, a cold start, a new route); a new
share or batch on the same GPU is none. So everybody stays where it is as long as it fits: a GPU
whose tenants no longer fit together gives up the smallest tenant that is enough. Beyond that a move
has to pay: a GPU is emptied only for at most ``MOVES_PER_GPU`` moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from igniterd.errors import ConfigError
from igniterd.perf.api import UNCAPPED
from igniterd.planner.evaluate import LEVEL
from igniterd.planner.fill import empty_worst
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.least_shares import Group, Pack, ShareSolver
from igniterd.planner.plan import PlannedGpu, ProvisionPlan
from igniterd.planner.problem import Problem, pose
from igniterd.planner.repair import Moves, calibrate, check, move_unfit, repair
from igniterd.planner.single_type import to_plan, within_stock
from igniterd.planner.workloads import Workload

MOVES_PER_GPU = 6
"""A GPU saved is worth so many moves."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where the tenants of the running plan are: by GPU its kind and the workloads on it; rates of
    the replicas by workload."""

    kinds: tuple[int, ...]
    tenants: tuple[tuple[str, ...], ...]
    parts: dict[str, list[float]]


def replan(
    start: ProvisionPlan,
    workloads: Sequence[Workload],
    gpus: tuple[GpuType, ...],
    arrival_scv: float,
    *,
    max_moves: int | None = None,
    level: float = LEVEL,
) -> ProvisionPlan:
    """The plan for ``workloads`` nearest to ``start``. GPUs of ``start`` keep their order; new ones
    come after, emptied ones go.

    Workloads that are no longer asked for leave, new ones are placed, changed ones keep their GPUs
    as far as they fit. Everybody is planned with a share, and the notes say who had none. Raises
    :class:`ConfigError` when ``start`` has a kind of GPU that is not offered.
    """
    running = _running(start, workloads, gpus)
    problem = pose(workloads, gpus, arrival_scv, level=level, parts=running.parts)
    solver = ShareSolver(problem)
    # as when the running plan was made, or tables a hair off would move tenants that fit
    calibrate(problem, solver, level, split=False)
    packs, new = _assigned(problem, running)
    moves = Moves(math.inf if max_moves is None else max_moves, new)
    groups = [solver.group(kind, items) for kind, items in packs]
    unplaced: dict[int, str] = {}
    crowded = [g for g, (kind, items) in enumerate(packs) if items and not solver.fits(kind, items)]
    move_unfit(problem, solver, groups, crowded, moves, unplaced, new)
    groups = _fewer(problem, solver, groups, moves)
    placed = check(problem, solver, [(g.kind, g.items) for g in groups], level)
    placed.unplaced.update(unplaced)
    placed = repair(placed, solver, level, moves)
    answer = to_plan(within_stock(placed), arrival_scv)
    return replace(
        answer,
        moves=describe_moves(start, _ordered(start, answer)),
        notes=(*answer.notes, *first_shares(start, answer)),
    )


def first_shares(start: ProvisionPlan, answer: ProvisionPlan) -> tuple[str, ...]:
    """A note on the workloads of ``start`` without a share that ``answer`` gives one; none when
    there are none."""
    given = {s.workload for gpu in answer.gpus for s in gpu.tenants if s.share < UNCAPPED}
    names = [name for name in start.uncapped if name in given]
    if not names:
        return ()
    return (
        f"had no share in the running plan and get one here: {', '.join(names)} (a share needs a "
        "process of its own: igniterd adopt)",
    )


def _running(
    start: ProvisionPlan, workloads: Sequence[Workload], gpus: tuple[GpuType, ...]
) -> Running:
    names = [gpu.name for gpu in gpus]
    strange = sorted({gpu.gpu for gpu in start.gpus} - set(names))
    if strange:
        problems = [f"the plan has GPUs of kind {kind}; offer that kind too" for kind in strange]
        raise ConfigError("running plan", problems)
    wanted = {w.name: w for w in workloads}
    before: dict[str, float] = {}
    for gpu in start.gpus:
        for seat in gpu.tenants:
            before[seat.workload] = before.get(seat.workload, 0.0) + seat.rate_per_s
    tenants: list[tuple[str, ...]] = []
    parts: dict[str, list[float]] = {}
    for gpu in start.gpus:
        stays = [
            s for s in gpu.tenants if s.workload in wanted and wanted[s.workload].model == s.model
        ]
        for seat in stays:  # replicas keep their part of the rate
            parts.setdefault(seat.workload, []).append(
                wanted[seat.workload].rate_per_s * seat.rate_per_s / before[seat.workload]
            )
        tenants.append(tuple(seat.workload for seat in stays))
    return Running(tuple(names.index(gpu.gpu) for gpu in start.gpus), tuple(tenants), parts)


def _assigned(problem: Problem, running: Running) -> tuple[list[Pack], list[int]]:
    """The running GPUs with the items on them, and the items that are on none."""
    waiting: dict[str, list[int]] = {}
    for item, w in enumerate(problem.parent.tolist()):
        waiting.setdefault(problem.workloads[w].name, []).append(item)
    packs: list[Pack] = []
    for kind, names in zip(running.kinds, running.tenants, strict=True):
        packs.append((kind, [waiting[name].pop(0) for name in names if waiting.get(name)]))
    return packs, [item for items in waiting.values() for item in items]


def _fewer(problem: Problem, solver: ShareSolver, groups: list[Group], moves: Moves) -> list[Group]:
    """Empty GPUs for which few enough moves are needed, while moves are left."""
    while True:
        room = min(moves.left, MOVES_PER_GPU)
        packs: list[Pack] = [(g.kind, g.items) for g in groups if g.items]
        fewer = empty_worst(problem, solver, packs, tries=4, most_tenants=int(room), once=True)
        if len(fewer) == len(packs):
            return [g for g in groups if g.items]
        homes = {item: n for n, (_, items) in enumerate(packs) for item in items}
        # a host's own tenants come first
        moves.left -= sum(homes[i] != homes[items[0]] for _, items in fewer for i in items)
        groups = [solver.group(kind, items) for kind, items in fewer]


def _ordered(start: ProvisionPlan, answer: ProvisionPlan) -> list[PlannedGpu | None]:
    """For every GPU of ``start`` the GPU of ``answer`` that continues it (most tenants in common),
    then the new ones."""
    left = list(range(len(answer.gpus)))
    result: list[PlannedGpu | None] = []
    for gpu in start.gpus:
        before = {seat.workload for seat in gpu.tenants}
        same = [
            (len(before & {s.workload for s in answer.gpus[g].tenants}), -g)
            for g in left
            if answer.gpus[g].gpu == gpu.gpu
        ]
        common, g = max(same, default=(0, 0))
        if common:
            left.remove(-g)
            result.append(answer.gpus[-g])
        else:
            result.append(None)
    return result + [answer.gpus[g] for g in left]


def describe_moves(start: ProvisionPlan, now: Sequence[PlannedGpu | None]) -> tuple[str, ...]:
    """What changes place between two plans whose GPUs are in the same order: one line a tenant that
    arrives, moves or leaves."""
    old = [{seat.workload for seat in gpu.tenants} for gpu in start.gpus] + [set()] * max(
        0, len(now) - len(start.gpus)
    )
    new = [{seat.workload for seat in gpu.tenants} if gpu else set() for gpu in now]
    known = set().union(*old) if old else set()
    lines = []
    for name in sorted(known | (set().union(*new) if new else set())):
        left = [g for g in range(len(old)) if name in old[g] and name not in new[g]]
        came = [g for g in range(len(old)) if name in new[g] and name not in old[g]]
        for n in range(max(len(left), len(came))):
            source = (
                f"GPU {left[n]}" if n < len(left) else "a new replica" if name in known else "new"
            )
            target = f"GPU {came[n]}" if n < len(came) else "nowhere"
            lines.append(f"{name}: {source} -> {target}")
    return tuple(lines)
