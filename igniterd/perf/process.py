"""The Gaussian process of a solo surface: how far times deviate from the trend, and how their
deviations hang together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.trend import TYPICAL, Trend, greater

STEP_SD = 0.07  # of the steps, relative to the time, at little work per SM
STEP_WORK = 10.0  # items per GPU at which the steps have halved
STEP_LENGTH = 0.2  # correlation length in log u
FREE_SD = 0.008
FREE_LENGTH = 0.5
NOISE_SD = 0.006  # of one measured mean, relative
HOST_SD = 0.02  # of the host's part: how far off the floor is as a whole,
HOST_FREE_SD = 0.03  # how far it drifts with batch and share,
HOST_NOISE_SD = 0.03  # and how far one measured mean is from the next


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way the times of a model may come about: the trend, the noise of one measured mean
    (relative), and how many times the usual the deviations from the trend are."""

    trend: Trend
    noise: float = NOISE_SD
    scale: float = 1.0

    @property
    def plain(self) -> bool:
        usual = self.noise == NOISE_SD and self.scale == 1
        return usual and self.trend.host_ms <= 0 and self.trend.power == 1


class Conditioned(NamedTuple):
    """Parts of a time (ms) and the variance of its logarithm, each (m,)."""

    gpu: F64
    host: F64
    variance: F64

    def time(self) -> F64:
        """Shape (m,)."""
        return greater(self.host, self.gpu)


@dataclass(frozen=True)
class Process:
    """The process under one hypothesis, conditioned on ``time_ms`` (n,) with relative standard
    errors ``error`` (n,) at ``batch`` and ``share`` (n,)."""

    of: Hypothesis
    batch: F64
    share: F64
    time_ms: F64
    error: F64

    def at(self, batch: F64, share: F64) -> Conditioned:
        """Parts at (batch, share) of m points, and how certain they are."""
        trend, (known, follows, missed) = self.of.trend, self._known
        _, here, moved = trend.at(batch, share)
        gpus, hosts = self._apart(batch, share, moved)
        gpus, hosts = gpus * follows, hosts * (1.0 - follows)
        cross = here[:, None] * gpus + (1.0 - here)[:, None] * hosts
        solved = np.linalg.solve(known, np.column_stack([missed, cross.T]))
        left = self._prior(batch, share, here, moved) - np.einsum("ij,ji->i", cross, solved[:, 1:])
        # what a new measurement is off by on top of the usual noise
        noisier = self.of.noise**2 - NOISE_SD**2
        gpu = trend.gpu_ms(batch, share) * np.maximum(1.0 + gpus @ solved[:, 0], 0.05)
        host = trend.host_ms * np.maximum(1.0 + hosts @ solved[:, 0], 0.05)
        return Conditioned(gpu, host, np.maximum(left, 0.0) + noisier)

    def covariance_left(self, batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
        """Covariance (n, m) of the relative times at (batch, share) with those at (batch2, share2)
        that the measurements leave."""
        here = (batch, share), (batch2, share2)
        one, other = (self._covariance(*at, self.batch, self.share) for at in here)
        left = one @ np.linalg.solve(self._known[0], other.T)
        return np.asarray(self._covariance(*here[0], *here[1]) - left)

    @staticmethod
    def likelihoods(
        trend: Trend,
        batch: F64,
        share: F64,
        time_ms: F64,
        error: F64,
        noises: Sequence[float],
        scales: Sequence[float],
    ) -> F64:
        """Log likelihood of ``time_ms`` under ``trend`` for every noise and every scale of the
        deviations, shape (noises, scales)."""
        time, follows, moved = trend.at(batch, share)
        gpus = np.outer(follows, follows)
        fixed = gpus * (moved @ moved.T) + _of_host(trend, batch, share, batch, share, follows)
        fixed += np.diag(error**2 + _jitter(trend, follows))
        scaled = gpus * _deviations(batch, share, batch, share)
        noise, scale = np.square(noises)[:, None], np.square(scales)[None, :]
        known = fixed + scale[..., None, None] * scaled
        known = known + noise[..., None, None] * np.eye(batch.shape[0])
        root = np.linalg.cholesky(known)
        missed = np.broadcast_to((time_ms / time - 1.0)[:, None], (*root.shape[:-1], 1))
        whitened = np.linalg.solve(root, missed)[..., 0]
        widths = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
        found = -0.5 * (whitened**2).sum(axis=-1) - widths - np.log(time).sum()
        return np.asarray(found)

    @cached_property
    def _known(self) -> tuple[F64, F64, F64]:
        """Covariance (n, n) of what was measured, what part of it follows the GPU (n,), and its
        relative deviations from the trend (n,)."""
        trend = self.of.trend
        time, follows, _ = trend.at(self.batch, self.share)
        own = self.of.noise**2 + self.error**2 + _jitter(trend, follows)
        among = self._covariance(self.batch, self.share, self.batch, self.share)
        return among + np.diag(own), follows, self.time_ms / time - 1.0

    def _apart(self, batch: F64, share: F64, moved: F64) -> tuple[F64, F64]:
        """Covariances (m, n) of the GPU's part and of the host's with those that were measured."""
        trend, scale = self.of.trend, self.of.scale
        there = trend.at(self.batch, self.share)[2]
        steps = _deviations(batch, share, self.batch, self.share)
        gpus = moved @ there.T + scale**2 * steps
        if trend.host_ms <= 0:
            return gpus, np.zeros_like(gpus)
        return gpus, _drift(batch, share, self.batch, self.share)

    def _covariance(self, batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
        trend = self.of.trend
        (_, one, moved), (_, other, moved2) = trend.at(batch, share), trend.at(batch2, share2)
        steps = _deviations(batch, share, batch2, share2)
        gpus = np.outer(one, other) * (moved @ moved2.T + self.of.scale**2 * steps)
        return np.asarray(gpus + _of_host(trend, batch, share, batch2, share2, one, other))

    def _prior(self, batch: F64, share: F64, here: F64, moved: F64) -> F64:
        """Variance (m,) of the relative times before anything is measured, with the jitter of a new
        measurement where the host is waited for."""
        steps = self.of.scale**2 * (_step_sd(batch, share) ** 2 + FREE_SD**2)
        gpus = here**2 * ((moved**2).sum(axis=1) + steps)
        if self.of.trend.host_ms <= 0:
            return np.asarray(gpus)
        hosts = (1.0 - here) ** 2 * (HOST_SD**2 + HOST_FREE_SD**2)
        return np.asarray(gpus + hosts + _jitter(self.of.trend, here))


def prior_covariance(batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    """Covariance (n, m) of the relative times of a model nothing is known of yet; for choosing what
    to measure."""
    trend = Trend(TYPICAL)
    moved, moved2 = trend.at(batch, share)[2], trend.at(batch2, share2)[2]
    return np.asarray(moved @ moved2.T + _deviations(batch, share, batch2, share2))


def _deviations(batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    """Covariance (n, m) of the usual deviations of the GPU's part from its trend."""
    log_u, log_u2 = np.log(batch / share), np.log(batch2 / share2)
    work = np.abs(log_u[:, None] - log_u2[None, :])
    steps = np.outer(_step_sd(batch, share), _step_sd(batch2, share2)) * np.exp(-work / STEP_LENGTH)
    return np.asarray(steps + FREE_SD**2 * _near(batch, share, batch2, share2))


def _of_host(
    trend: Trend,
    batch: F64,
    share: F64,
    batch2: F64,
    share2: F64,
    one: F64,
    other: F64 | None = None,
) -> F64:
    """What the host's part adds to a covariance (n, m), of times that follow the GPU by ``one``
    and ``other``."""
    if trend.host_ms <= 0:
        return np.zeros((batch.shape[0], batch2.shape[0]))
    hosts = np.outer(1.0 - one, 1.0 - (one if other is None else other))
    return np.asarray(hosts * _drift(batch, share, batch2, share2))


def _drift(batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    return np.asarray(HOST_SD**2 + HOST_FREE_SD**2 * _near(batch, share, batch2, share2))


def _jitter(trend: Trend, follows: F64) -> F64:
    """Variance (n,) of one measurement where the host is waited for."""
    return np.asarray((1.0 - follows) ** 2 * HOST_NOISE_SD**2 * (trend.host_ms > 0))


def _near(batch: F64, share: F64, batch2: F64, share2: F64) -> F64:
    log_b, log_s, log_b2, log_s2 = np.log(batch), np.log(share), np.log(batch2), np.log(share2)
    apart = np.hypot(log_b[:, None] - log_b2[None, :], log_s[:, None] - log_s2[None, :])
    return np.asarray(np.exp(-apart / FREE_LENGTH))


def _step_sd(batch: F64, share: F64) -> F64:
    return np.asarray(STEP_SD / (1.0 + batch / share / STEP_WORK))
