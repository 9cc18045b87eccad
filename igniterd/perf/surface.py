r"""The solo surface: GPU time of one batch alone, for every batch and share, from a handful of
measurements.

The time of a batch depends on the work per SM far more than on batch and share apart: an SM runs
its part of every layer in whole waves of thread blocks, so at equal u = batch / share the times
agree to a percent or two, and between them they climb in steps that no formula in batch and share
can follow. Hence

.. math:: t(b, s) = (k_1 b + k_2) / s + k_3 + k_4 b

with non-negative k (work, weights fetched per batch, fixed cost, memory traffic that more SMs do
not speed up), times one plus a Gaussian process: steps in log u, whose part of the time falls as u
grows, and a small free deviation in (log b, log s). Coefficients and process are conditioned on the
measurements together, so that the variance is known everywhere. The result is tabulated and made
monotone: the mean of the envelopes from below and above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64

STEP_SD = 0.07  # of the steps, relative to the time, at little work per SM
STEP_WORK = 10.0  # items per GPU at which the steps have halved
STEP_LENGTH = 0.2  # correlation length in log u
FREE_SD = 0.008
FREE_LENGTH = 0.5
NOISE_SD = 0.006  # of one measured mean, relative
# k over k_1: where the measurements leave a coefficient open
_TYPICAL = np.array([1.0, 0.2, 1.0, 0.05])
_FLOOR = np.array([0.0, 0.3, 0.5, 0.03])  # least standard deviation of k, over k_1
_OPENNESS = 3.0  # the typical k may be wrong by this factor before it weighs on the fit
_MISFIT = 0.03


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


@dataclass(frozen=True, slots=True)
class Surface:
    """Posterior of the solo surface, given ``batch``, ``share`` and ``gpu_ms`` (n,): GPU times (ms)
    measured alone, without transfers.

    ``error`` (n,) is the relative standard error of each mean where it is known; it adds to
    ``NOISE_SD``.
    """

    batch: F64
    share: F64
    gpu_ms: F64
    error: F64 | None = None

    def at(self, batch: F64, share: F64) -> tuple[F64, F64]:
        """Mean (ms) and variance of its logarithm at (batch, share), each (m,)."""
        k = _coefficients(self.batch, self.share, self.gpu_ms)
        known = _covariance(k, self.batch, self.share, self.batch, self.share) + self._noise()
        cross = _covariance(k, batch, share, self.batch, self.share)
        solved = np.linalg.solve(
            known, np.column_stack([self.gpu_ms / _trend(k, self.batch, self.share) - 1.0, cross.T])
        )
        deviation = cross @ solved[:, 0]
        variance = _prior_variance(k, batch, share) - np.einsum("ij,ji->i", cross, solved[:, 1:])
        return _trend(k, batch, share) * np.maximum(1.0 + deviation, 0.05), np.maximum(
            variance, 0.0
        )

    def covariance_left(self, batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
        """Covariance (n, m) of the relative times at (batch, share) with those at (batch2, share2)
        that the measurements leave."""
        k = _coefficients(self.batch, self.share, self.gpu_ms)
        known = _covariance(k, self.batch, self.share, self.batch, self.share) + self._noise()
        one, other = (
            _covariance(k, b, s, self.batch, self.share)
            for b, s in ((batch, share), (batch2, share2))
        )
        return np.asarray(
            _covariance(k, batch, share, batch2, share2) - one @ np.linalg.solve(known, other.T)
        )

    def table(self, grid: Grid) -> tuple[F64, F64]:
        """Times (ms), monotone, and variances of their logarithms, each (batches, units)."""
        shape = (grid.batches.shape[0], grid.units)
        batch, share = np.repeat(grid.batches, grid.units), np.tile(grid.shares, shape[0])
        time, variance = self.at(batch, share)
        return _monotone(time.reshape(shape)), variance.reshape(shape)

    def _noise(self) -> F64:
        """Covariance (n, n) of the measurements' own errors."""
        error = np.zeros_like(self.gpu_ms) if self.error is None else self.error
        return np.diag(NOISE_SD**2 + error**2)


def prior_covariance(batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    """Covariance (n, m) of the relative times of a model nothing is known of yet; for choosing what
    to measure."""
    return _covariance(_TYPICAL, batch, share, batch2, share2)


def _basis(batch: F64, share: F64) -> F64:
    return np.stack([batch / share, 1 / share, np.ones_like(batch), batch], axis=1)


def _trend(k: F64, batch: F64, share: F64) -> F64:
    return np.asarray(_basis(batch, share) @ k)


def _coefficients(batch: F64, share: F64, gpu_ms: F64) -> F64:
    """Non-negative least squares of the relative error, drawn weakly to the typical proportions."""
    relative = _basis(batch, share) / gpu_ms[:, None]
    typical = _TYPICAL / np.mean(relative @ _TYPICAL)
    pull = _MISFIT / (_OPENNESS * typical)
    # 80 MB that only a fit needs: a process that is given a fitted model does without
    from scipy.optimize import nnls

    k, _ = nnls(
        np.vstack([relative, np.diag(pull)]), np.concatenate([np.ones_like(gpu_ms), pull * typical])
    )
    return np.asarray(np.maximum(k, 1e-9 * typical))


def _scaled_basis(k: F64, batch: F64, share: F64) -> F64:
    spread = np.maximum(k, _FLOOR * k[0])
    return np.asarray(_basis(batch, share) * spread / _trend(k, batch, share)[:, None])


def _step_sd(batch: F64, share: F64) -> F64:
    return np.asarray(STEP_SD / (1.0 + batch / share / STEP_WORK))


def _covariance(k: F64, batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    log_b, log_s, log_b2, log_s2 = np.log(batch), np.log(share), np.log(batch2), np.log(share2)
    work = np.abs((log_b - log_s)[:, None] - (log_b2 - log_s2)[None, :])
    apart = np.hypot(log_b[:, None] - log_b2[None, :], log_s[:, None] - log_s2[None, :])
    steps = (
        _step_sd(batch, share)[:, None]
        * _step_sd(batch2, share2)[None, :]
        * np.exp(-work / STEP_LENGTH)
    )
    trend = _scaled_basis(k, batch, share) @ _scaled_basis(k, batch2, share2).T
    return np.asarray(trend + steps + FREE_SD**2 * np.exp(-apart / FREE_LENGTH))


def _prior_variance(k: F64, batch: F64, share: F64) -> F64:
    return np.asarray(
        (_scaled_basis(k, batch, share) ** 2).sum(axis=1) + _step_sd(batch, share) ** 2 + FREE_SD**2
    )


def _monotone(time: F64) -> F64:
    """Geometric mean of the least monotone table above and the greatest below: rising along axis 0,
    falling along axis 1."""
    eased = time[:, ::-1]  # now rising along both axes
    above = np.maximum.accumulate(np.maximum.accumulate(eased, axis=0), axis=1)
    back = eased[::-1, ::-1]
    below = np.minimum.accumulate(np.minimum.accumulate(back, axis=0), axis=1)[::-1, ::-1]
    return np.ascontiguousarray(np.sqrt(above * below)[:, ::-1])
