"""What the parts of a split workload are worth: what limits how much splitting can help any plan.

Workloads of a model with about the same SLO share a *curve*
(:class:`igniterd.planner.lower_bound.Curves`). A part of rate r needs u(r) units alone, the fewest
that serve r on the curve. Let g(part) be the fraction of the workload's worth that a part gets. A
bound on plans that may split needs sum g >= 1 over the parts of every split in two or more. Two
such g are mixed here. One is r / rate: the parts serve the whole together. The other is
w (u - s) / D, at most 1. There w is the cost of a unit and s what each part is let off, as a part
costs units whatever its rate. D is the least that the parts of any split come to. The first is
better for large parts, the second where units are coarse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.planner.lower_bound import LET_OFF, Curves, least_weights

_MIXED = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the second g in the mixtures that are tried."""


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
