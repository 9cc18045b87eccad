"""The arrival rate, from differenced counters: quick on a step, quiet on noise. Pure.

Counts of the last ``LONG_S`` seconds give a quiet mean. When the counts of the last ``SHORT_S`` seconds cannot be the same Poisson
process (a two-sided test at about ``STEP_SIGMA`` standard deviations), what came before them is forgotten. The upper quantile takes
the uncertainty of a mean of counts whose variance is ``dispersion`` times the mean (1 for a Poisson process).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LONG_S = 15.0
SHORT_S = 2.5
STEP_SIGMA = 3.5


@dataclass(frozen=True, slots=True)
class Rate:
    """Counts of the recent past, oldest first: ``(end_s, span_s, arrivals)``."""

    samples: tuple[tuple[float, float, int], ...] = ()

    @property
    def span_s(self) -> float:
        return sum(span for _, span, _ in self.samples)

    @property
    def count(self) -> int:
        return sum(n for _, _, n in self.samples)

    @property
    def per_s(self) -> float:
        """Mean rate, requests/s; 0 before the first sample."""
        return self.count / self.span_s if self.samples else 0.0

    @property
    def dispersion(self) -> float:
        """Variance over mean of the counts (1 for Poisson), never below 1: a short sample says little about smoothness."""
        if len(self.samples) < 6 or self.count < 20:
            return 1.0
        rate = self.per_s
        chi2 = sum((n - rate * span) ** 2 / (rate * span) for _, span, n in self.samples)
        return max(1.0, chi2 / (len(self.samples) - 1))

    def upper_per_s(self, level: float) -> float:
        """Upper quantile of the mean rate, requests/s."""
        if not self.samples:
            return 0.0
        z = NormalDist().inv_cdf(level)
        return self.per_s + z * math.sqrt(max(self.count, 1) * self.dispersion) / self.span_s


def updated(rate: Rate, end_s: float, span_s: float, arrivals: int) -> Rate:
    """``rate`` with one more count of ``arrivals`` in the ``span_s`` seconds up to ``end_s``."""
    samples = (*(s for s in rate.samples if s[0] > end_s - LONG_S), (end_s, span_s, arrivals))
    recent = tuple(s for s in samples if s[0] > end_s - SHORT_S)
    older = samples[: len(samples) - len(recent)]
    if older and recent:
        old, new = Rate(older), Rate(recent)
        expected = old.per_s * new.span_s
        spread = math.sqrt(max(expected, 1.0) * old.dispersion * (1 + new.span_s / old.span_s))
        if abs(new.count - expected) > STEP_SIGMA * spread:
            samples = recent
    return Rate(samples)
