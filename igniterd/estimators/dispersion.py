"""How much the service times of a model differ among themselves, learnt from the means of live
windows. Pure.

A window gives the mean of n executions of a batch size. From one window to the next its logarithm
moves by chance, with the variance cv² (1/n + 1/n'), and by what happens to every batch size alike:
neighbours, a level that wanders. Contrasts between batch sizes are free of the second, and what a
size is slower by on its own is in both windows. Of ``k`` sizes in both, each move weighed by the
inverse of 1/n + 1/n', the squares around their mean are k - 1 degrees of freedom of cv². One size
alone tells what is left of its move beside the scatter of windows: one degree of freedom, times the
squared part of its variance that is chance.

The estimate is the mean of a scaled inverse chi-squared distribution (A. Gelman et al., Bayesian
Data Analysis, 3rd edition, section 2.6) that forgets.

``bench/calibrate.py`` shows what is learnt of made-up models, whose dispersion is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

from pydantic import Field

from igniterd.documents import Document
from igniterd.queueing.tail import SERVICE_CV

USUAL_FREEDOM = 10.0
"""Degrees of freedom that the profile's figure, or the usual one, counts for; always, as chance and
scatter cannot be told apart for long where one batch size alone is executed."""
FREEDOM = 400.0
"""Degrees of freedom that are remembered at most: the estimate is within 4 % then."""
LEAST_CV = 0.005
CLIP_SIGMA = 3.0  # a move that is larger counts as this


class Moments(NamedTuple):
    """Of one batch size in one window: executions, and the logarithm of their mean service time, on
    any scale that the windows have in common."""

    executions: float
    log_mean: float


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Belief about the coefficient of variation of one service time: ``usual`` before anything is
    seen, then ``variance`` as ``freedom`` degrees of freedom tell it. ``last``: the last window, by
    batch size."""

    usual: float = SERVICE_CV
    variance: float = 0.0
    freedom: float = 0.0
    last: Mapping[int, Moments] = field(default_factory=dict)

    @property
    def cv(self) -> float:
        """Its root mean square over what is believed."""
        total = USUAL_FREEDOM + self.freedom
        square = (USUAL_FREEDOM * self.usual**2 + self.freedom * self.variance) / total
        return math.sqrt(max(LEAST_CV**2, square))

    def elsewhere(self) -> Dispersion:
        """The same where windows are not to be compared with those before."""
        return replace(self, last={})

    def after(
        self, window: Mapping[int, Moments], *, scatter: float = 0.0, met_cv: float = 0.0
    ) -> Dispersion:
        """What is believed after one more ``window``.

        ``scatter``: variance that all means of a window have in common. ``met_cv``: dispersion that
        neighbours add and that is known of otherwise; ``cv`` is without it.
        """
        moves = [
            (1 / (1 / now.executions + 1 / was.executions), now.log_mean - was.log_mean)
            for now, was in ((window[b], self.last[b]) for b in window.keys() & self.last.keys())
        ]
        if not moves:
            return replace(self, last=window)
        square, freedom = _evidence(moves, self.cv**2 + met_cv**2, 2 * scatter)
        total = min(FREEDOM, self.freedom + freedom)
        seen = square - freedom * (met_cv**2 + self.variance)
        # below 0 it is as often too low as it is too high
        variance = self.variance + seen / total
        return Dispersion(self.usual, variance, total, window)

    def plain(self) -> dict[str, float]:
        """For JSON."""
        return {"usual": self.usual, "variance": self.variance, "freedom": self.freedom}


class Kept(Document):
    """What :meth:`Dispersion.plain` gave."""

    usual: Annotated[float, Field(ge=0)] = SERVICE_CV
    variance: float = 0.0
    freedom: Annotated[float, Field(ge=0, le=FREEDOM)] = 0.0

    def recalled(self) -> Dispersion:
        """What was believed then; nothing is forgotten over time."""
        return Dispersion(self.usual, self.variance, self.freedom)


def _evidence(
    moves: Sequence[tuple[float, float]], variance: float, common: float
) -> tuple[float, float]:
    """Sum of squares and degrees of freedom of the variance of one service time: ``variance`` is
    what is believed of it, ``common`` what all moves share. ``moves``: weight and size."""
    most = CLIP_SIGMA**2 * variance
    if len(moves) == 1:
        ((weight, move),) = moves
        chance = variance / (variance + weight * common)
        told = min(weight * move**2, most / chance) - weight * common
        return chance**2 * told, chance**2
    weight = sum(w for w, _ in moves)
    mean = sum(w * move for w, move in moves) / weight
    return sum(min(w * (move - mean) ** 2, most) for w, move in moves), len(moves) - 1.0
