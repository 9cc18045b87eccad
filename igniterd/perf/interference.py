"""What neighbours cost: weights of the interference features for every ordered pair of models,
learnt from co-runs.

A pair that was never measured together has the weights of the prior: what pairs of models do on
average, and how far they differ from it. Each co-run in the profile narrows its pair. On the V100's
measurements neither L2 nor DRAM use nor power foretold the weights of an unseen pair better than
the average does (``bench/accuracy.py``), so none of them is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from igniterd.arrays import F64
from igniterd.perf.kernels import mean as kernel

FEATURES = kernel.FEATURES
NOISE_SD = 0.012  # of one measured slowdown: the features' own misfit, and the measurement
_SURFACE_GAIN = 1.2  # an error of the solo time carries into the slowdown by about 1 + the slowdown
_RIDGE = 1e-4  # least variance of a weight, so that a prior of few pairs is not taken for certain


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another tenant of a co-run."""

    model: int
    batch: float
    share: float


@dataclass(frozen=True, slots=True)
class CoRunSample:
    """One tenant's latency in a co-run. ``alone_ms`` is the predicted GPU time alone, ``variance``
    that of its logarithm."""

    victim: int
    gpu_ms: float
    alone_ms: float
    variance: float
    floor_ms: float
    neighbours: tuple[Neighbour, ...]

    @property
    def slowdown(self) -> float:
        """Measured slowdown (ratio above 1)."""
        return self.gpu_ms / self.alone_ms - 1.0

    def features(self, neighbour: Neighbour) -> F64:
        """Shape (4,): see ``kernels.mean``."""
        crowd = float(kernel.crowding(neighbour.batch, neighbour.share))
        return np.array([1.0, self.floor_ms / self.alone_ms, neighbour.share, crowd])


@dataclass(frozen=True, slots=True)
class Prior:
    """Mean (4,) and covariance (4, 4) of the weights of an ordered pair of models nothing is known
    of."""

    mean: F64
    covariance: F64


@cache
def shipped_prior() -> Prior:
    """The prior estimated from all pairs of the V100's measurements (``python -m
    igniterd.data.v100.build``)."""
    data = json.loads(
        resources.files("igniterd")
        .joinpath("data", "interference_prior.json")
        .read_text(encoding="utf-8")
    )
    return Prior(np.array(data["mean"]), np.array(data["covariance"]))


def estimate_prior(observations: Sequence[CoRunSample]) -> Prior:
    """Mean and covariance over ordered pairs of the least-squares weights of each.

    Runs beside a copy and co-runs of more than two are left out.

    Raises ``ValueError`` with fewer than two ordered pairs that have four observations.
    """
    pairs: dict[tuple[int, int], list[CoRunSample]] = {}
    for seen in observations:
        if len(seen.neighbours) == 1 and seen.neighbours[0].model != seen.victim:
            pairs.setdefault((seen.victim, seen.neighbours[0].model), []).append(seen)
    fits = [_least_squares(group) for group in pairs.values() if len(group) >= FEATURES]
    if len(fits) < 2:
        raise ValueError(
            f"a prior needs two ordered pairs with {FEATURES} co-runs each; there are {len(fits)}"
        )
    weights = np.array(fits)
    return Prior(weights.mean(axis=0), np.cov(weights.T) + _RIDGE * np.eye(FEATURES))


def learn(models: int, observations: Sequence[CoRunSample], prior: Prior) -> tuple[F64, F64]:
    """Posterior weights (models, models, 4), victim first, and their covariances (models, models,
    4, 4).

    Linear in the weights but for which neighbour of a larger co-run is the worst; that is settled
    in three rounds.
    """
    weights = np.broadcast_to(prior.mean, (models, models, FEATURES)).copy()
    spreads = np.broadcast_to(prior.covariance, (models, models, FEATURES, FEATURES)).copy()
    for victim in range(models):
        seen = [o for o in observations if o.victim == victim]
        if seen:
            weights[victim], spreads[victim] = _posterior(models, seen, prior)
    return _non_negative(weights, spreads), spreads


def _least_squares(group: Sequence[CoRunSample]) -> F64:
    features = np.array([o.features(o.neighbours[0]) for o in group])
    return np.asarray(
        np.linalg.lstsq(features, np.array([o.slowdown for o in group]), rcond=None)[0]
    )


def _posterior(models: int, seen: Sequence[CoRunSample], prior: Prior) -> tuple[F64, F64]:
    """Weights (models, 4) and covariances (models, 4, 4) of one victim, by Gauss-Newton from the
    prior."""
    start = np.tile(prior.mean, models)
    spread = np.kron(np.eye(models), prior.covariance)
    noise = np.diag([_SURFACE_GAIN**2 * o.variance + NOISE_SD**2 for o in seen])
    measured = np.array([o.slowdown for o in seen])
    flat = start
    for _ in range(3):
        predicted, slope = _linearised(flat, seen)
        gain = spread @ slope.T @ np.linalg.inv(slope @ spread @ slope.T + noise)
        flat = start + gain @ (measured - predicted - slope @ (start - flat))
    after = spread - gain @ slope @ spread
    blocks = np.array([after[_span(j), _span(j)] for j in range(models)])
    return flat.reshape(models, FEATURES), (blocks + blocks.transpose(0, 2, 1)) / 2


def _linearised(flat: F64, seen: Sequence[CoRunSample]) -> tuple[F64, F64]:
    """Predicted slowdowns (n,) at the weights ``flat`` (models * 4,) and their derivatives (n,
    models * 4)."""
    predicted, slope = np.zeros(len(seen)), np.zeros((len(seen), flat.shape[0]))
    for row, o in enumerate(seen):
        phi = [o.features(n) for n in o.neighbours]
        parts = np.array(
            [float(f @ flat[_span(n.model)]) for f, n in zip(phi, o.neighbours, strict=True)]
        )
        worst = int(parts.argmax())
        counted = np.where(np.arange(len(parts)) == worst, 1.0, kernel.OVERLAP)
        predicted[row] = float(counted @ parts)
        for f, n, part in zip(phi, o.neighbours, counted, strict=True):
            slope[row, _span(n.model)] += part * f
    return predicted, slope


def _span(model: int) -> slice:
    """Where the weights beside ``model`` lie in those of one victim, flat."""
    return slice(FEATURES * model, FEATURES * (model + 1))


def _non_negative(weights: F64, spreads: F64) -> F64:
    """The posterior mean given that the cost per batch is not below 0, where it came out so."""
    fixed: NDArray[np.bool_] = weights[..., 1] < 0
    pull = np.where(fixed, weights[..., 1] / spreads[..., 1, 1], 0.0)
    return np.asarray(weights - pull[..., None] * spreads[..., :, 1])
