"""Fewer GPUs after repairs: what repairs scattered is gathered again, every step evaluated
exactly."""

from __future__ import annotations

import numpy as np

from igniterd.planner.evaluate import evaluate
from igniterd.planner.fill import relocate
from igniterd.planner.least_shares import Pack, ShareSolver
from igniterd.planner.progress import report
from igniterd.planner.repair import Placed, misses, place

TRIES = 12
"""GPUs that could not be emptied before no more are tried."""
_HOSTS = 200
"""Tenants go to one of so many GPUs with most to spare, so that a GPU's turn costs the same however
many there are."""
_GONE = -(2**31)


def consolidate(placed: Placed, solver: ShareSolver, level: float, tries: int = TRIES) -> Placed:
    """Empty the GPUs with least on them into the others, one after the other, as long as every P99
    holds where the tenants go.

    Plans with a tenant that misses or has no place are left as they are.
    """
    problem = placed.problem
    if placed.missing or placed.unplaced:
        return placed
    groups, placements = list(placed.groups), list(placed.placements)
    packs: list[Pack] = [(group.kind, list(group.items)) for group in groups]

    def weight(g: int) -> float:
        kind = groups[g].kind
        return (
            groups[g].total
            / int(problem.tables.units[kind])
            / (problem.gpus[kind].price_per_hour or 1.0)
        )

    spare = np.array(
        [int(problem.tables.units[group.kind]) - group.total for group in groups], dtype=np.int64
    )
    failed = 0
    for g in sorted(range(len(groups)), key=lambda g: (weight(g), g)):
        if failed >= tries:
            break
        report(f"emptying one of {len(groups)} GPUs into the others")
        hosts = [
            h
            for h in np.argsort(-spare, kind="stable")[: _HOSTS + 1].tolist()
            if h != g and spare[h] >= 0
        ]
        moved = relocate(problem, solver, packs, packs[g][1], hosts)
        new = (
            {}
            if moved is None
            else {h: solver.group(groups[h].kind, items) for h, items in moved.items()}
        )
        held = {h: place(problem, group) for h, group in new.items()}
        evaluate([(problem.gpus[new[h].kind], held[h]) for h in new], level=level)
        if not new or any(misses(problem, new[h], held[h]) for h in new):
            failed += 1
            continue
        spare[g] = _GONE
        for h, group in new.items():
            groups[h], placements[h], packs[h] = group, held[h], (group.kind, group.items)
            spare[h] = int(problem.tables.units[group.kind]) - group.total
    keep = np.flatnonzero(spare > _GONE).tolist()
    return Placed(
        problem, [groups[g] for g in keep], [placements[g] for g in keep], placed.unplaced
    )
