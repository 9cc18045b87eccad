"""Which solo points to measure: those after which least is left unknown.

The solo surface's prior says how the times of a model hang together before any is measured
(:mod:`igniterd.perf.surface`). The points are exchanged one by one until the variance left over the
region of use, averaged, falls no further. No latency is looked at, so a profile chosen this way can
be judged on everything it did not measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.surface import NOISE_SD, prior_covariance

Point = tuple[int, float]
_ROUNDS = 50


def solo_design(candidates: Sequence[Point], count: int = 11) -> tuple[Point, ...]:
    """``count`` of the ``candidates``, each (batch, share), to measure alone; the corners of the
    range are always among them.

    The region of use is every batch to the largest, each weighed by 1 / batch because small ones
    are run more, at ten shares from the least to the greatest. Deterministic. Raises ``ValueError``
    when there are fewer candidates than points to choose.
    """
    points = sorted(set(candidates))
    corners = _corners(points)
    if not len(corners) <= count <= len(points):
        raise ValueError(
            f"cannot choose {count} points of {len(points)} candidates, {len(corners)} of which "
            "are corners"
        )
    left = _Variance(points)
    chosen = [points.index(c) for c in corners]
    while len(chosen) < count:
        chosen.append(left.best(chosen))
    for _ in range(_ROUNDS):
        if not _exchange(chosen, len(corners), left):
            break
    return tuple(sorted((points[i] for i in chosen), key=lambda p: (p[0] / p[1], p[0])))


def _corners(points: Sequence[Point]) -> list[Point]:
    """Largest and smallest share of the smallest batch, smallest share of the largest."""
    small = [p for p in points if p[0] == points[0][0]]
    large = [p for p in points if p[0] == points[-1][0]]
    return list(dict.fromkeys([small[-1], small[0], large[0]]))


def _exchange(chosen: list[int], fixed: int, left: _Variance) -> bool:
    """Replace the first point that another improves on; whether there was one."""
    now = left.of(chosen)
    for place in range(fixed, len(chosen)):
        rest = chosen[:place] + chosen[place + 1 :]
        better = left.best(rest)
        if better != chosen[place] and left.of([*rest, better]) < now * (1 - 1e-9):
            chosen[place] = better
            return True
    return False


class _Variance:
    """Mean variance left over the region of use once some candidates are measured."""

    def __init__(self, points: Sequence[Point]) -> None:
        batch = np.array([p[0] for p in points], dtype=np.float64)
        share = np.array([p[1] for p in points])
        self._among = prior_covariance(batch, share, batch, share) + NOISE_SD**2 * np.eye(
            len(points)
        )
        use_b, use_s = (
            np.arange(batch.min(), batch.max() + 1),
            np.linspace(share.min(), share.max(), 10),
        )
        region_b, region_s = np.repeat(use_b, use_s.shape[0]), np.tile(use_s, use_b.shape[0])
        weight = np.sqrt((1 / region_b) / (1 / region_b).sum())
        self._across = prior_covariance(region_b, region_s, batch, share) * weight[:, None]

    def of(self, chosen: Sequence[int]) -> float:
        """Minus what measuring ``chosen`` explains; lower is better."""
        cross: F64 = self._across[:, list(chosen)]
        known = self._among[np.ix_(list(chosen), list(chosen))]
        return -float(np.einsum("ij,ji->", cross, np.linalg.solve(known, cross.T)))

    def best(self, chosen: Sequence[int]) -> int:
        """The candidate that, added to ``chosen``, leaves least."""
        others = [i for i in range(self._among.shape[0]) if i not in chosen]
        return min(others, key=lambda i: self.of([*chosen, i]))
