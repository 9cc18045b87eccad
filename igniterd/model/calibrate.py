"""How much slower than predicted a model really is, learnt from live traffic. Pure.

The logarithm of measured over predicted service time is tracked by a scalar Kalman filter: a random walk (the bias may drift) seen
through noise that falls with the number of executions behind a measurement, down to a floor. Innovations are clipped, so that one
odd window cannot carry the estimate away; when clipped innovations keep coming from one side the variance is opened, because then
it is the model that has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

PRIOR_SD = 0.05  # of the log bias, before anything is measured
DRIFT_SD_PER_SQRT_S = 0.002
SERVICE_CV = 0.1  # dispersion of one execution
FLOOR_SD = 0.015  # of a window's mean, however many executions: neighbours' mix differs from the one assumed
CLIP_SIGMA = 3.0
STREAK = 5  # clipped innovations in a row on one side that mean a change


@dataclass(frozen=True, slots=True)
class Bias:
    """Belief about the log of measured / predicted service time."""

    log_mean: float = 0.0
    log_var: float = PRIOR_SD**2
    at_s: float | None = None
    streak: int = 0  # clipped innovations in a row, signed

    @property
    def mean(self) -> float:
        return math.exp(self.log_mean)

    def upper(self, level: float) -> float:
        """Upper bound of the bias at ``level``."""
        return math.exp(self.log_mean + NormalDist().inv_cdf(level) * math.sqrt(self.log_var))


def learnt(bias: Bias, at_s: float, ratio: float, executions: int) -> Bias:
    """``bias`` after a window in which ``executions`` took ``ratio`` (> 0) times what was predicted."""
    if not (ratio > 0 and math.isfinite(ratio)) or executions < 1:
        return bias
    span_s = 0.0 if bias.at_s is None else max(0.0, at_s - bias.at_s)
    prior_var = min(bias.log_var + DRIFT_SD_PER_SQRT_S**2 * span_s, PRIOR_SD**2 * 4)
    noise_var = SERVICE_CV**2 / executions + FLOOR_SD**2
    innovation = math.log(ratio) - bias.log_mean
    limit = CLIP_SIGMA * math.sqrt(prior_var + noise_var)
    streak = 0
    if abs(innovation) > limit:
        side = 1 if innovation > 0 else -1
        streak = bias.streak + side if bias.streak * side >= 0 else side
        if abs(streak) >= STREAK:  # not outliers any more: believe them
            return Bias(math.log(ratio), PRIOR_SD**2, at_s)
        innovation = side * limit
    gain = prior_var / (prior_var + noise_var)
    return Bias(bias.log_mean + gain * innovation, (1 - gain) * prior_var, at_s, streak)
