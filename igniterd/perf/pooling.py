r"""What the pairs of one profile have in common: partial pooling of the interference weights.

The prior is of pairs of other models on another board. Two hypotheses are asked of the capped
co-runs of different models. *Apart*: every ordered pair is drawn from the prior on its own.
*Pooled*:

.. math:: w_{ij} = (1 + \kappa) \mu + v_i + n_j + e_{ij}

with the prior's mean μ scaled for the whole profile (κ: how much its models feel of each other at
all), what a victim i always feels more, what a neighbour j always costs more, and what is the
pair's own, which varies as much as the prior says. Pooled is taken only where it is far likelier;
else nothing changes. A model beside a copy of itself is apart under both: a copy contends for just
the same, and costs more than others for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from igniterd.arrays import F64

SCALE_SD = 1.0  # of 1 + κ: from nothing to twice what the prior's pairs feel
SHARED = 0.5  # variance of v, and that of n, over the prior's
SCALES_SD = 0.3  # of what v and n scale the mean by, beside that
"""Chosen on KACE's co-runs (V100) by what is predicted of capped pairs from a profile without the
co-runs of their victim, or of their neighbour: 4.9 and 3.7 % off beside whisper and wav2vec, 5.7
and 5.2 % among inference, 6.7 and 6.3 % with training, where pairs apart are 8.9, 9.4 and 9.2 % off
(``bench/foreign_choices.py``)."""
DECISIVE = 10.0
"""What pooled must gain (log likelihood). KACE's co-runs gain 114. Those of iGniter's V100, which
the shipped prior is of, lose 6. gpu-lets' (A100) gain 3 and are left apart: pooled, their pairs are
predicted a little better, and the odd session of vgg19 worse by 1.5 points."""
_ODD = 3.0  # a co-run this many standard deviations off says little of the others


class Told(NamedTuple):
    """The capped co-runs of one victim beside other models: ``slope`` (n, models * 4) of their
    slowdowns over the weights beside each, how far they are from what the prior's mean gives,
    ``missed`` (n,), and the covariance ``noise`` (n, n) of what is not the weights'."""

    slope: F64
    missed: F64
    noise: F64

    def tempered(self, covariance: F64) -> Told:
        """With what is odd under ``covariance`` of the weights taken for that much noisier."""
        variance = np.diag(self.slope @ covariance @ self.slope.T + self.noise)
        odd = self.missed**2 > _ODD**2 * variance
        return self._replace(noise=self.noise + np.diag(np.where(odd, self.missed**2, 0.0)))

    def likelihood(self, covariance: F64) -> float:
        """Logarithm, of ``missed`` where the weights have this covariance around the prior's
        mean; without its constant."""
        root = np.linalg.cholesky(self.slope @ covariance @ self.slope.T + self.noise)
        whitened = np.linalg.solve(root, self.missed)
        return -0.5 * float(whitened @ whitened) - float(np.log(np.diag(root)).sum())


class Pooled:
    """The second hypothesis, given what was ``told`` of every model as a victim, and ``mean`` (4,)
    and ``covariance`` (4, 4) of the prior."""

    def __init__(self, told: Sequence[Told], mean: F64, covariance: F64) -> None:
        self._mean, self._models = mean, len(told)
        models = self._models
        self._shared = SHARED * covariance + SCALES_SD**2 * np.outer(mean, mean)
        # of what victims have in common: the scale, then what each neighbour costs
        width = 1 + models * mean.shape[0]
        self._common = np.zeros((width, width))
        self._common[0, 0] = SCALE_SD**2
        self._common[1:, 1:] = np.kron(np.eye(models), self._shared)
        self._apart: F64 = np.asarray(np.kron(np.eye(models), covariance), dtype=np.float64)
        self._told = {v: t.tempered(self._apart) for v, t in enumerate(told) if t.missed.size}
        self._says = {victim: self._said(victim, t) for victim, t in self._told.items()}

    @property
    def gain(self) -> float:
        """Log likelihood of all that was measured, over that of every pair apart."""
        found = 0.0
        for victim, told in self._told.items():
            found += told.likelihood(self._of_victim(victim)) - told.likelihood(self._apart)
        known, pull = self._all_but(None)
        grown = np.eye(known.shape[0]) + self._common @ known
        found += 0.5 * float(pull @ np.linalg.solve(grown, self._common @ pull))
        return found - 0.5 * float(np.linalg.slogdet(grown)[1])

    def prior_of(self, victim: int) -> tuple[F64, F64]:
        """Mean (models * 4,) and covariance of the weights of one victim beside each, given the
        co-runs of all others."""
        known, pull = self._all_but(victim)
        left = np.linalg.solve(np.eye(known.shape[0]) + self._common @ known, self._common)
        among = self._reaches(victim)
        mean = np.tile(self._mean, self._models) + among @ left @ pull
        return mean, self._of_victim(victim) + among @ left @ among.T

    def _of_victim(self, victim: int) -> F64:
        """Covariance (models * 4, models * 4) of its weights, but for what is common to victims."""
        others = np.ones(self._models)
        others[victim] = 0.0
        return np.asarray(self._apart + np.kron(np.outer(others, others), self._shared))

    def _reaches(self, victim: int) -> F64:
        """What moves its weights with what is common: (models * 4, 1 + models * 4)."""
        others = np.ones(self._models)
        others[victim] = 0.0
        costs = np.kron(np.diag(others), np.eye(self._mean.shape[0]))
        return np.column_stack([np.kron(others, self._mean), costs])

    def _said(self, victim: int, told: Told) -> tuple[F64, F64]:
        """Information on what is common, and its pull."""
        slope = told.slope @ self._reaches(victim)
        within = told.slope @ self._of_victim(victim) @ told.slope.T + told.noise
        solved = np.linalg.solve(within, np.column_stack([slope, told.missed]))
        return slope.T @ solved[:, :-1], slope.T @ solved[:, -1]

    def _all_but(self, victim: int | None) -> tuple[F64, F64]:
        """The information of all victims, or of all others."""
        known, pull = np.zeros_like(self._common), np.zeros(self._common.shape[0])
        for other, (j, h) in self._says.items():
            if other != victim:
                known += j
                pull += h
        return known, pull
