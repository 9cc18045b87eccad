r"""The solo surface: time of one batch alone, for every batch and share, from a handful of
measurements.

The time of a batch depends on the work per SM far more than on batch and share apart: an SM runs
its part of every layer in whole waves of thread blocks, so at equal u = batch / share the times
agree to a percent or two, and between them they climb in steps that no formula in batch and share
can follow. Hence the GPU part of the trend (:mod:`igniterd.perf.trend`) times one plus a Gaussian
process: steps in log u, whose part of the time falls as u grows, and a small free deviation in
(log b, log s). Coefficients and process are conditioned on the measurements together, so that the
variance is known everywhere. The result is tabulated and made monotone: the mean of the envelopes
from below and above.

Whether the host sets a floor, how the terms of the trend combine and how noisy the measurements are
is asked of the measurements: every hypothesis has the likelihood of what was measured. The plainest
one (no floor, terms that add, the V100's noise) is taken alone where none is likelier; else all of
them, each by its probability, and where they differ the variance says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.process import (
    NOISE_SD,
    Hypothesis,
    Process,
    prior_covariance,
)
from igniterd.perf.trend import fit, greater

__all__ = ["NOISE_SD", "Grid", "Parts", "Surface", "make_grid", "prior_covariance"]

POWERS = (1.0, 1.5, 2.0, 3.0, 6.0)
FLOORS = (0.85, 0.9, 0.93, 0.96, 0.98, 1.0, 1.02, 1.04)  # over the least time measured
NOISES = (NOISE_SD, 0.02, 0.05, 0.1)
SCALES = (1.0, 2.0, 4.0)  # of the deviations from the trend
# what a hypothesis that is less plain must gain in log likelihood
_FLOOR_COST, _POWER_COST, _NOISE_COST, _SCALE_COST = 6.0, 0.0, 1.0, 2.0
_UNLISTED = 2.0  # how far hypotheses differ counts so often: these are not all there are
# more measurements than a profile has say no more: none of the forms is exactly true
_SAYING = 11
_PLAINER = 3.0  # the plainest is taken alone where none is likelier by this (log)
_KEPT = 6.0  # a hypothesis this much less likely (log) than the best is left out


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes of a tabulated surface: ``batches`` (n,) ascending from 1, and shares of 1..``units``
    times ``unit``."""

    batches: F64
    unit: float
    units: int

    @property
    def shares(self) -> F64:
        """Shape (units,)."""
        return np.asarray(self.unit * np.arange(1, self.units + 1), dtype=np.float64)


def make_grid(max_batch: int, unit: float) -> Grid:
    """Every batch to 64, then steps of about 5 %, to ``max_batch``; every share unit of the
    board."""
    dense = np.arange(1.0, min(max(max_batch, 2), 64) + 1)
    sparse = (
        np.unique(np.round(np.geomspace(64, max_batch, 2 + int(np.log(max_batch / 64) / 0.05))))
        if max_batch > 64
        else np.empty(0)
    )
    return Grid(np.union1d(dense, sparse), unit, max(1, int(1 / unit + 1e-9)))


class Parts(NamedTuple):
    """What the time of a batch is made of, each array of one shape: ``gpu`` and ``host`` (ms; 0
    where the host is never waited for), ``variance`` of the logarithm of the time."""

    gpu: F64
    host: F64
    variance: F64


@dataclass(frozen=True)
class Surface:
    """Posterior of the solo surface, given ``batch``, ``share`` and ``gpu_ms`` (n,): times (ms)
    measured alone, without transfers.

    ``error`` (n,) is the relative standard error of each mean where it is known; it adds to the
    noise.
    """

    batch: F64
    share: F64
    gpu_ms: F64
    error: F64 | None = None

    @cached_property
    def hypotheses(self) -> tuple[tuple[float, Process], ...]:
        """Those that may be so, each with its probability, the likeliest first."""
        found = sorted(self._tried(), key=lambda h: -h[0])
        best = found[0][0]
        plain = [h for h in found if h[1].plain and h[0] > best - _PLAINER]
        kept = plain or [h for h in found if h[0] > best - _KEPT]
        total = sum(np.exp(each - best) for each, _ in kept)
        return tuple(
            (
                float(np.exp(each - best) / total),
                Process(h, self.batch, self.share, self.gpu_ms, self._error),
            )
            for each, h in kept
        )

    @property
    def plain(self) -> bool:
        """Whether the plainest hypothesis explains what was measured."""
        return self.hypotheses[0][1].of.plain

    @property
    def floored(self) -> bool:
        """Whether a floor that the host sets is likelier than none."""
        return sum(weight for weight, p in self.hypotheses if p.of.trend.host_ms > 0) > 0.5

    def at(self, batch: F64, share: F64) -> tuple[F64, F64]:
        """Mean (ms) and variance of its logarithm at (batch, share), each (m,)."""
        gpu, host, variance = self.parts(batch, share)
        return (greater(host, gpu) if self.floored else gpu), variance

    def parts(self, batch: F64, share: F64) -> Parts:
        """The same, in its parts."""
        floored = self.floored
        found = [(w, p, p.at(batch, share)) for w, p in self.hypotheses]
        alike = [(w, each) for w, p, each in found if (p.of.trend.host_ms > 0) == floored]
        total = sum(w for w, _ in alike)
        gpu = np.exp(sum(w * np.log(each.gpu) for w, each in alike) / total)
        host = np.zeros_like(gpu)
        if floored:
            host = np.exp(sum(w * np.log(each.host) for w, each in alike) / total)
        mean = np.log(greater(host, gpu) if floored else gpu)
        variance = sum(
            w * (each.variance + _UNLISTED * (np.log(each.time()) - mean) ** 2)
            for w, _, each in found
        )
        return Parts(gpu, host, np.asarray(variance))

    def covariance_left(self, batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
        """Covariance (n, m) of the relative times at (batch, share) with those at (batch2, share2)
        that the measurements leave, under the likeliest hypothesis."""
        return self.hypotheses[0][1].covariance_left(batch, share, batch2, share2)

    def table(self, grid: Grid) -> Parts:
        """Times (ms), monotone, and variances of their logarithms, each (batches, units)."""
        shape = (grid.batches.shape[0], grid.units)
        batch, share = np.repeat(grid.batches, grid.units), np.tile(grid.shares, shape[0])
        gpu, host, variance = (part.reshape(shape) for part in self.parts(batch, share))
        return Parts(_monotone(gpu), _monotone(host), variance)

    @property
    def _error(self) -> F64:
        return np.zeros_like(self.gpu_ms) if self.error is None else self.error

    def _tried(self) -> Iterator[tuple[float, Hypothesis]]:
        """Every hypothesis and its log likelihood, less what it costs to be less plain."""
        least, tempered = float(self.gpu_ms.min()), min(1.0, _SAYING / self.batch.shape[0])
        for power in POWERS:
            for floor in (0.0, *FLOORS):
                trend = fit(self.batch, self.share, self.gpu_ms, floor * least, power)
                likely = Process.likelihoods(
                    trend, self.batch, self.share, self.gpu_ms, self._error, NOISES, SCALES
                )
                cost = _FLOOR_COST * (floor > 0) + _POWER_COST * (power > 1)
                for (i, noise), (j, scale) in (
                    (a, b) for a in enumerate(NOISES) for b in enumerate(SCALES)
                ):
                    gained = tempered * float(likely[i, j]) - cost
                    gained -= _NOISE_COST * (i > 0) + _SCALE_COST * (j > 0)
                    yield gained, Hypothesis(trend, noise, scale)


def _monotone(time: F64) -> F64:
    """Geometric mean of the least monotone table above and the greatest below: rising along axis 0,
    falling along axis 1."""
    eased = time[:, ::-1]  # now rising along both axes
    above = np.maximum.accumulate(np.maximum.accumulate(eased, axis=0), axis=1)
    back = eased[::-1, ::-1]
    below = np.minimum.accumulate(np.minimum.accumulate(back, axis=0), axis=1)[::-1, ::-1]
    return np.ascontiguousarray(np.sqrt(above * below)[:, ::-1])
