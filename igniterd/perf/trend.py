r"""The trend of a solo surface: what the time of a batch alone follows from, before any deviation.

.. math:: t = (h^n + g^n)^{1/n}, \qquad
          g = \left((k_1 b / s)^p + (k_2 / s)^p + (k_3 + k_4 b)^p\right)^{1/p}

The GPU part g has the work and the weights fetched per batch, which more SMs speed up, and a fixed
cost and memory traffic, which they do not. These follow each other (p = 1: layers of all kinds) or
hide behind each other (large p: every layer is bound by the greatest, as in LLMs). The host part h
is what launching kernels takes: with a large n the time is the greater of both. All k are at least
0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.kernels.mean import SHARPNESS

# k over k_1: where the measurements leave a coefficient open
TYPICAL = np.array([1.0, 0.2, 1.0, 0.05])
BEHIND_HOST = np.array([1.0, 1.0, 1.0, 0.05])
"""The same where the host hides the small batches that would tell k_2. Chosen on points alone of
the A100s (``bench/foreign_choices.py``): gpu-lets' are 2.9 % off (from 0.2: 3.1 %), ParvaGPU's 5.2
% (from 0.2: 5.3 %); 0.7 to 1.5 do as well."""
_FLOOR = np.array([0.0, 0.3, 0.5, 0.03])  # least standard deviation of k, over k_1
_OPENNESS = 3.0  # the typical k may be wrong by this factor before it weighs on the fit
_MISFIT = 0.03
# terms that may hide behind each other: the work, the weights fetched, and what more SMs do not
# speed up
_APART = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
_ROUNDS = 10
_ABOVE = 1.1  # a time above the host's by this factor is the GPU's


@dataclass(frozen=True, slots=True)
class Trend:
    """``k`` (4,), ``host_ms`` (0: the host is never what a batch waits for), ``power`` p."""

    k: F64
    host_ms: float = 0.0
    power: float = 1.0

    def gpu_ms(self, batch: F64, share: F64) -> F64:
        """Shape (n,), of batches and shares (n,)."""
        return self._with_slope(_basis(batch, share))[0]

    def at(self, batch: F64, share: F64) -> tuple[F64, F64, F64]:
        """Time (n,), what part of a relative change of g it follows (n,), and the relative change
        of g with one standard deviation of each k (n, 4)."""
        gpu, slope = self._with_slope(_basis(batch, share))
        moved = slope * np.maximum(self.k, _FLOOR * self.k[0]) / gpu[:, None]
        if self.host_ms <= 0:
            return gpu, np.ones_like(gpu), moved
        time = greater(self.host_ms, gpu)
        return time, (gpu / time) ** SHARPNESS, moved

    def _with_slope(self, basis: F64) -> tuple[F64, F64]:
        """g (n,) and its derivatives (n, 4)."""
        if self.power == 1:
            return np.asarray(basis @ self.k), basis
        parts = np.stack([basis @ (self.k * own) for own in _APART])
        most = parts.max(axis=0)
        gpu = most * ((parts / most) ** self.power).sum(axis=0) ** (1 / self.power)
        slopes = (parts / gpu) ** (self.power - 1)
        return gpu, np.asarray(basis * (slopes.T @ _APART))


def fit(batch: F64, share: F64, time_ms: F64, host_ms: float, power: float) -> Trend:
    """Least squares of the relative error with non-negative k, drawn weakly to the typical
    proportions; by Gauss-Newton where the form is not linear."""
    basis = _basis(batch, share)
    gpus = time_ms > _ABOVE * host_ms
    if not gpus.any():
        gpus[:] = True
    relative = basis / time_ms[:, None]
    typical = BEHIND_HOST if host_ms > 0 else TYPICAL
    typical = typical / np.mean(relative[gpus] @ typical)
    pull = _MISFIT / (_OPENNESS * typical)

    def solved(slope: F64, wanted: F64) -> F64:
        # 80 MB that only a fit needs: a process that is given a fitted model does without
        from scipy.optimize import nnls

        k, _ = nnls(np.vstack([slope, np.diag(pull)]), np.concatenate([wanted, pull * typical]))
        return np.asarray(np.maximum(k, 1e-9 * typical))

    k = solved(relative[gpus], np.ones(int(gpus.sum())))
    if host_ms <= 0 and power == 1:
        return Trend(k)
    found, least = Trend(k, host_ms, power), np.inf
    for _ in range(_ROUNDS):
        tried = Trend(k, host_ms, power)
        gpu, slope = tried._with_slope(basis)
        time = greater(host_ms, gpu) if host_ms > 0 else gpu
        missed = 1.0 - time / time_ms
        cost = float(missed @ missed + np.sum((pull * (k - typical)) ** 2))
        if cost < least:
            found, least = tried, cost
        follows = (gpu / time) ** (SHARPNESS - 1) / time_ms
        step = follows[:, None] * slope
        k = 0.5 * (k + solved(step, missed + step @ k))
    return found


def greater(host_ms: float | F64, gpu_ms: float | F64) -> F64:
    """The time of a batch from its two parts, each (n,) or a number, the GPU's above 0: a smooth
    maximum."""
    most = np.maximum(host_ms, gpu_ms)
    sharp = (host_ms / most) ** SHARPNESS + (gpu_ms / most) ** SHARPNESS
    return np.asarray(most * sharp ** (1 / SHARPNESS))


def _basis(batch: F64, share: F64) -> F64:
    return np.stack([batch / share, 1 / share, np.ones_like(batch), batch], axis=1)
