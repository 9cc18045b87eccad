"""What uncapped neighbours typically cost: how readily a victim is kept waiting, times how long a
neighbour keeps others waiting.

A co-run of uncapped tenants may tell too little (a neighbour that was still loading, failed or
ended early) or too much. It is alone with that: the victim's other neighbours and the neighbour's
other victims then say otherwise. Pairs of KACE that were left out of the profile are predicted by
the product almost as well as with their co-runs (``bench/foreign.py``, never co-run). A neighbour
that is seldom on the GPU, as it waits for its own host, has a small factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from igniterd.arrays import F64

_ROUNDS = 20
_MAJORITY = 3
"""Of fewer, none is in the minority."""


def typical(costs: F64, told: NDArray[np.bool_]) -> tuple[F64, NDArray[np.bool_]]:
    """The product of a factor a victim and a factor a neighbour that is nearest to ``costs``
    (models, models) where ``told``, by the sum of absolute differences, each over the root of the
    other factor: what is far off moves it no further than what is near, and neither the largest
    nor the smallest decide alone.

    Also of a pair that no co-run tells of. Where the victim or the neighbour has fewer than three
    that tell, what ``costs`` says. And of which pairs (models, models) it is the product.
    """
    models = costs.shape[0]
    waits, keeps = np.ones(models), np.zeros(models)
    for _ in range(_ROUNDS):
        for j in range(models):
            keeps[j] = _factor(costs[told[:, j], j], waits[told[:, j]])
        for i in range(models):
            if keeps[told[i]].any():
                waits[i] = _factor(costs[i, told[i]], keeps[told[i]])
        waits /= waits.max() or 1.0
    enough = np.outer(told.sum(axis=1) >= _MAJORITY, told.sum(axis=0) >= _MAJORITY)
    return np.where(enough, np.outer(waits, keeps), costs), enough


def _factor(costs: F64, others: F64) -> float:
    """The f for which f times ``others`` is nearest to ``costs``, by the same measure: the weighted
    median of their ratios. 0 of nothing."""
    there = others > 0
    if not there.any():
        return 0.0
    ratios, weights = costs[there] / others[there], np.sqrt(others[there])
    order = np.argsort(ratios, kind="stable")
    total = np.cumsum(weights[order])
    return float(ratios[order][np.searchsorted(total, total[-1] / 2.0)])
