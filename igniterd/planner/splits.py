"""What the parts of a split workload are worth: what limits how much splitting can help any plan.

Workloads of a model with about the same SLO share a *curve*: the largest rate that each number of
units serves alone. A part of rate r needs u(r) units alone, the fewest that serve r on the curve.
Let g be what of the workload's worth a part has; a bound on plans that may split needs sum g >= 1
for the parts, two or more, of every split. Two such g are mixed here. One is r / rate: parts serve
the whole together. The other is w (u - s) / D, at most 1, with w the cost of a unit, s what each
part is let off (a part costs units whatever its rate), and D the least that the parts of any split
come to. The first is better for large parts, the second where units are coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.planner.kernels import pricing
from igniterd.planner.kernels.shares import Items
from igniterd.queueing.kernels.lookup import Tables

_MIXED = (0.0, 0.25, 0.5, 0.75, 1.0)
LET_OFF = (0, 1, 2, 3, 4, 6, 8)
"""Twice the s that are tried, of one kind of GPU. Of several kinds s is 0."""


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
            pricing.rates_by_units(t, kind, queue, model, goal, start, row)
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
                    (0.5 * unit[k] * pricing.split_weight(served[k], wanted, off) for k in able),
                    default=math.inf,
                )
        if len(able) > 1:
            best = min(_per_rate(served[k]) * unit[k] for k in able)
            least = sorted(unit[k] * fewest[k] for k in able)
            out[w, 0] = min(out[w, 0], max(best * wanted, least[0] + least[1]))
    return out


def part_worth(
    found: Curves, rate: F64, prices: Sequence[float], order: I64, start: I64
) -> list[F64]:
    """By kind (F, U + 1): the most of a workload's worth that a part which needs u units alone has,
    in each family of workloads.

    ``order[start[f] : start[f + 1]]`` are those of family f. Of all mixtures, for
    each family the one whose parts are worth least for their units, on average over sizes.
    """
    weights = np.minimum.reduceat(least_weights(found, rate, prices)[order], start, axis=0)
    shares, densest = [], []
    for kind, rates in enumerate(found.rates):
        units = np.arange(rates.shape[1])
        served = np.maximum.reduceat(
            np.minimum(1.0, rates[found.of[order]] / rate[order, None]), start, axis=0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            # (S, U + 1)
            cost = (
                prices[kind]
                / units[-1]
                * (units - 0.5 * np.array(LET_OFF[: weights.shape[1]])[:, None])
            )
            # (F, S, U + 1)
            by_units = np.where(
                weights[:, :, None] > 0.0, np.clip(cost / weights[:, :, None], 0.0, 1.0), 1.0
            )
        by_units = np.where(served[:, None] > 0.0, by_units, 0.0)
        mixed = np.stack(
            [a * by_units + (1.0 - a) * served[:, None] for a in _MIXED], axis=1
        ).reshape(start.size, -1, units.size)
        dense = mixed[:, :, 1:] / (prices[kind] * units[1:])
        shares.append(mixed)
        densest.append(dense.mean(axis=2))
    best = np.argmin(np.max(densest, axis=0), axis=1)
    return [mixed[np.arange(start.size), best] for mixed in shares]


def _per_rate(rates: F64) -> float:
    """Fewest units for each request/ms, over all sizes of a part."""
    units = np.flatnonzero(rates > 0.0)
    return float((units / rates[units]).min())
