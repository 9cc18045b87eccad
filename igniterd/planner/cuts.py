"""The pieces a workload may be cut into, over several GPUs, and the cuts they make up.

Two equal halves of a workload that just exceeds a GPU pair up badly: each is a little above a half.
So uneven cuts are offered too, and whoever plans chooses cuts together with what goes beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64
from igniterd.planner.kernels.shares import Items
from igniterd.planner.problem import Problem, largest_rate
from igniterd.queueing.kernels import lookup

_LEAST_PIECE = 0.1
"""Smaller pieces, in GPUs, are not offered: a replica has a cost that no share shows, and sets of
many small pieces are many."""
_DEAREST = 1.5
"""Cuts whose pieces need more than so many times what those of another need are not offered."""
_TWO = (1 / 2, 1 / 3, 1 / 4, 1 / 6)
_THREE = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, 1 / 4, 1 / 4), (2 / 3, 1 / 6, 1 / 6))
_REST = (1.0, 3 / 4, 2 / 3, 1 / 2, 1 / 3)
"""The last piece of a cut, in what it would be if all were equal."""
_MARGIN = 0.995
"""Of the largest rate one GPU serves: tables are about so close."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Pieces as the items of a problem, and the cuts: which pieces a workload of a type takes.

    P pieces. ``cuts[c]`` is a type, and the pieces of one of its workloads.
    """

    fraction: F64  # (P,) of the workload's rate
    cuts: list[tuple[int, tuple[int, ...]]]


_CUTS = 400
"""Cuts offered altogether, about: with many types there is always something that fits beside."""


def offer_cuts(problem: Problem, even: bool) -> Offer:
    """Replace the problem's items, one or more for each workload, by all pieces offered; a piece's
    ``parent`` is its workload.

    ``even``: only cuts into equal pieces, for balancers that know no weights.
    """
    whole = problem.whole
    most = max(3, _CUTS // max(1, len(problem.workloads)))
    found: dict[tuple[int, int], int] = {}
    fraction: list[float] = []
    cuts = []
    for w in range(len(problem.workloads)):
        for parts in _worthwhile(problem, whole, w, even, most):
            pieces = []
            for part in parts:
                key = (w, round(1e9 * part))
                if key not in found:
                    found[key] = len(fraction)
                    fraction.append(part)
                pieces.append(found[key])
            cuts.append((w, tuple(pieces)))
    parent = np.array([w for w, _ in found], dtype=np.int64)
    problem.set_items(parent, np.array(fraction) * whole.rate[parent])
    return Offer(np.array(fraction), cuts)


def _worthwhile(
    problem: Problem, whole: Items, w: int, even: bool, most: int
) -> list[tuple[float, ...]]:
    """The cuts of a workload that are neither much dearer than another nor into tiny pieces; at
    ``most`` so many, the cheapest."""
    # one cut may be come by in several ways, a rounding apart
    parts = {tuple(round(1e9 * part) for part in cut): cut for cut in _possible(problem, w)}
    if even:
        parts = {key: cut for key, cut in parts.items() if max(cut) - min(cut) < 1e-9}
    need = {part: _need(problem, whole, w, part) for cut in parts.values() for part in cut}
    cost = {cut: sum(need[part] for part in cut) for cut in parts.values()}
    least = min(cost.values())
    kept = [
        cut
        for cut in cost
        if cost[cut] <= _DEAREST * least
        and (len(cut) == 1 or min(need[part] for part in cut) >= _LEAST_PIECE)
    ]
    kept.sort(key=lambda cut: (cost[cut], len(cut), cut))
    fewest = min(cost, key=lambda cut: (cost[cut] == math.inf, len(cut), cost[cut]))
    return sorted({*kept[:most], fewest}, key=lambda cut: (len(cut), cut))


def _possible(problem: Problem, w: int) -> set[tuple[float, ...]]:
    """Cuts of a workload with pieces that each fit a GPU of some kind."""
    rate, item = problem.workloads[w].rate_per_s, int(np.flatnonzero(problem.parent == w)[0])
    cuts: set[tuple[float, ...]] = set()
    for kind in range(len(problem.gpus)):
        most = _MARGIN * largest_rate(problem, kind, item) / rate
        if most <= 0.0:
            continue
        fewest = max(1, math.ceil(1.0 / most - 1e-9))
        cuts |= {(1.0 / n,) * n for n in range(fewest, fewest + 3)}
        if fewest <= 2:
            cuts |= {
                (1.0 - rest, rest) for rest in (*_TWO, 1.0 - most) if most >= 1.0 - rest >= 0.5
            }
            cuts |= {parts for parts in _THREE if parts[0] <= most}
        for n in range(max(2, fewest), fewest + 2):
            rests = {*(q / n for q in _REST), 1.0 - (n - 1) * most}
            sizes = {rest: (1.0 - rest) / (n - 1) for rest in rests if rest > 0.0}
            cuts |= {(size,) * (n - 1) + (r,) for r, size in sizes.items() if r <= size <= most}
    return cuts


def _need(problem: Problem, whole: Items, w: int, part: float) -> float:
    """Least share, in GPUs of the kind on which it is least, that serves a part of a workload
    alone."""
    t = problem.tables
    queue, model = int(whole.queue[w]), int(whole.model[w])
    goal, rate = float(whole.goal_ms[w]), float(whole.rate[w]) * part
    found = (
        (int(lookup.least_units(t, k, queue, model, goal, rate, 1.0, 1)), int(units))
        for k, units in enumerate(t.units)
    )
    return min(need / units if need <= units else math.inf for need, units in found)
