"""What no plan can do without, in GPUs or money an hour: the least share of every workload with no
neighbour at all, however it is split, added up.

On one kind of GPU the least share is a knapsack (:mod:`igniterd.planner.kernels.lower_bound`). On
several, a workload may also be split over kinds. Workloads of a model with about the same SLO share
a *curve* then: the largest rate that each number of units serves alone. A part of rate r needs u(r)
units alone, the fewest that serve r on the curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.planner.kernels import lower_bound as kernels
from igniterd.planner.kernels.shares import Items
from igniterd.planner.problem import Problem
from igniterd.queueing.kernels.lookup import Tables

_ALIKE = 1.02
"""SLOs within this factor are one where workloads are split over kinds of GPU."""
LET_OFF = (0, 1, 2, 3, 4, 6, 8)
"""Units, times two, that each part may be let off on one kind of GPU (for the proof of
:mod:`bench.bound`). On several kinds nothing is let off."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves by cell: what workloads of one model, arrival process and about one SLO, the loosest
    of theirs, serve."""

    of: I64  # (W,) cell of each workload
    model: I64  # (C,)
    queue: I64  # (C,)
    goal_ms: F64  # (C,)
    rates: list[F64]  # by kind (C, U + 1), requests/ms


def curves(t: Tables, whole: Items, alike: float) -> Curves:
    """The curves; SLOs within a factor ``alike`` are taken for the largest of them: so there are no
    more for more workloads."""
    rank = np.ceil(np.log(whole.goal_ms) / math.log(alike) - 1e-9).astype(np.int64)
    keys, of = np.unique(
        np.stack([whole.model, whole.queue, rank], axis=1), axis=0, return_inverse=True
    )
    of = np.asarray(of, dtype=np.int64).ravel()
    goals, starts = np.zeros(keys.shape[0]), np.full(keys.shape[0], np.inf)
    np.maximum.at(goals, of, whole.goal_ms)
    np.minimum.at(starts, of, whole.rate)
    rates = []
    for kind, units in enumerate(t.units.tolist()):
        table = np.zeros((keys.shape[0], units + 1))
        for row, (model, queue, _), goal, start in zip(
            table, keys.tolist(), goals.tolist(), starts.tolist(), strict=True
        ):
            kernels.rates_by_units(t, kind, queue, model, goal, start, row)
        rates.append(table)
    return Curves(of, keys[:, 0], keys[:, 1], goals, rates)


def least_weights(found: Curves, rate: F64, prices: Sequence[float]) -> F64:
    """(W, S) least weight of two parts or more that serve each rate together, for each of
    ``LET_OFF``; 0 where that is too much.

    ``prices``: of one GPU of each kind. On one kind a knapsack, solved exactly. On several, and
    only for s = 0, the least of those, of the best rate for its cost anywhere, and at least of one
    least part on each of two kinds.
    """
    unit = [price / (rates.shape[1] - 1) for price, rates in zip(prices, found.rates, strict=True)]
    out = np.zeros((rate.size, len(LET_OFF) if len(prices) == 1 else 1))
    for w, (cell, wanted) in enumerate(zip(found.of.tolist(), rate.tolist(), strict=True)):
        served = [rates[cell] for rates in found.rates]
        able = [k for k, rates in enumerate(served) if rates[-1] > 0.0]
        fewest = {k: int(np.argmax(served[k] > 0.0)) for k in able}
        for place, off in enumerate(LET_OFF[: out.shape[1]]):
            if all(off < 2 * fewest[k] for k in able):
                out[w, place] = min(
                    (0.5 * unit[k] * kernels.split_weight(served[k], wanted, off) for k in able),
                    default=math.inf,
                )
        if len(able) > 1:
            best = min(_per_rate(served[k]) * unit[k] for k in able)
            least = sorted(unit[k] * fewest[k] for k in able)
            out[w, 0] = min(out[w, 0], max(best * wanted, least[0] + least[1]))
    return out


def _per_rate(rates: F64) -> float:
    """Fewest units for each request/ms, over all sizes of a part."""
    units = np.flatnonzero(rates > 0.0)
    return float((units / rates[units]).min())


def lower_bounds(problem: Problem) -> tuple[float, float | None]:
    """(GPUs, cost an hour) that no plan can do without: least shares with no neighbours at all,
    added up, on the best kind for each."""
    if not problem.workloads:
        return 0.0, 0.0
    gpus = least(problem, [1.0] * len(problem.gpus))
    prices = [gpu.price_per_hour for gpu in problem.gpus]
    known = [price for price in prices if price is not None]
    return gpus, least(problem, known) if len(known) == len(prices) else None


def least(problem: Problem, prices: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """The least shares at these prices of a whole GPU, ``counts`` times each workload's (once); a
    workload may also be split over kinds, each of which serves a part."""
    found = (problem.bound / problem.tables.units[:, None] * np.array(prices)[:, None]).min(axis=0)
    if len(prices) > 1:
        mixed = least_weights(
            curves(problem.tables, problem.whole, _ALIKE), problem.whole.rate, prices
        )[:, 0]
        found = np.minimum(found, mixed)
    return float(found.sum() if counts is None else found @ np.array(counts))
