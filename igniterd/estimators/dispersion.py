"""How much the service times of a model differ among themselves, learnt from the means of live
windows. Pure.

A window gives the mean of n executions of a batch size. From one window to the next its logarithm
moves by chance, with the variance cv² (1/n + 1/n'), and by what happens to every batch size alike:
neighbours, a level that wanders. Contrasts between batch sizes are free of the second, and what a
size is slower by on its own is in both windows. One size alone tells what is left of its move
beside the scatter of windows. Each move counts for the squared part of its variance that is chance
of the model's own: many executions say nothing of one, as the mean of a size wobbles by itself, and
neighbours that spread the times hide how the model does.

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
LEAST_CV, MOST_CV = 0.005, 10.0
OWN_SD = 0.003
"""What the mean of one batch size moves by from window to window, apart from the others, whatever
its executions: a neighbour that is now busier, now idler, slows some sizes more. Not measured."""
_USUAL_AT_LEAST = 0.05  # for weights
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
        return min(MOST_CV, math.sqrt(max(LEAST_CV**2, square)))

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
            (1 / window[b].executions + 1 / was.executions, window[b].log_mean - was.log_mean)
            for b, was in self.last.items()
            if b in window
        ]
        square, freedom = self._evidence(moves, met_cv**2, 2 * scatter) if moves else (0.0, 0.0)
        if freedom <= 0:
            return replace(self, last=window)
        total = min(FREEDOM, self.freedom + freedom)
        variance = self.variance + (square - freedom * self.variance) / total
        variance = min(MOST_CV**2, max(0.0, variance))
        return Dispersion(self.usual, variance, total, window)

    def _evidence(
        self, moves: Sequence[tuple[float, float]], met: float, common: float
    ) -> tuple[float, float]:
        """Sum of squares, and degrees of freedom, that ``moves`` give for the variance of one
        service time. A move: 1/n + 1/n', and its size.

        ``met``: variance that is known to come on top; ``common``: what all moves share.
        """
        usual = max(self.usual, _USUAL_AT_LEAST) ** 2
        # where it is believed far too low not every move is odd
        odd = CLIP_SIGMA**2 * max(0.25, self.cv**2 / usual)
        own, alone = 2 * OWN_SD**2, len(moves) == 1
        common = common if alone else 0.0
        spreads = [(usual + met) * a + own + common for a, _ in moves]
        of_mean = [0.0] if alone else _parts([1 / v for v in spreads])
        mean = sum(h * move for h, (_, move) in zip(of_mean, moves, strict=True))
        # the variance of the mean: of chance, in units of one execution's, and of each size's own
        chance_of_mean = sum(h * h * a for h, (a, _) in zip(of_mean, moves, strict=True))
        own_of_mean = own * sum(h * h for h in of_mean)
        square = freedom = 0.0
        for h, (a, move), spread in zip(of_mean, moves, spreads, strict=True):
            by_chance = a * (1 - 2 * h) + chance_of_mean
            other = own * (1 - 2 * h) + own_of_mean + common + met * by_chance
            # by what is usual: weights that followed what is believed would bear it out
            weight = (usual * a / spread) ** 2 / a
            square += weight * (min((move - mean) ** 2, odd * spread) - other)
            freedom += weight * by_chance
        return square, freedom

    def plain(self) -> dict[str, float]:
        """For JSON."""
        return {"usual": self.usual, "variance": self.variance, "freedom": self.freedom}


class Kept(Document):
    """What :meth:`Dispersion.plain` gave."""

    usual: Annotated[float, Field(ge=0, le=MOST_CV)] = SERVICE_CV
    variance: Annotated[float, Field(ge=0, le=MOST_CV**2)] = 0.0
    freedom: Annotated[float, Field(ge=0, le=FREEDOM)] = 0.0

    def recalled(self) -> Dispersion:
        """What was believed then; nothing is forgotten over time."""
        return Dispersion(self.usual, self.variance, self.freedom)


def _parts(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [w / total for w in weights]
