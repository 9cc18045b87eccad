"""What neighbours cost, learnt from co-runs: weights of the interference features for every ordered
pair of models, what an uncapped neighbour costs, and how much more the host takes beside others.

A pair that was never measured together has the weights of the prior: what pairs of models do on
average, and how far they differ from it. Each co-run in the profile narrows its pair. On the V100's
measurements neither L2 nor DRAM use nor power foretold the weights of an unseen pair better than
the average does (``bench/accuracy.py``), so none of them is asked for. How much more the host takes
is one figure a victim: whoever the neighbour is, it hardly differs. What an uncapped neighbour
costs is taken midway between what its co-runs show and what is typical of both, see
``perf.contention``; without a co-run it is what is typical.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from igniterd.arrays import F64, I64
from igniterd.perf.contention import typical
from igniterd.perf.kernels import mean as kernel
from igniterd.perf.pooling import DECISIVE, Pooled, Told
from igniterd.perf.trend import greater

FEATURES = kernel.FEATURES
NOISE_SD = 0.012  # of one measured slowdown: the features' own misfit, and the measurement
_SURFACE_GAIN = 1.2  # an error of the solo time carries into the slowdown by about 1 + the slowdown
_RIDGE = 1e-4  # least variance of a weight, so that a prior of few pairs is not taken for certain
_ROUNDS = 5
_MISSED = 0.1  # of the time alone: a co-run that is fitted no better is odd
CONTENTION = (0.65, 0.3)
"""Mean and standard deviation over pairs of what an uncapped neighbour costs, in terms of how long
its kernels are. Chosen on the uncapped pairs of ``bench/foreign.py`` (V100, KACE, SoCC 2024)."""
_UNCAPPED_SD = 0.02  # what a slowdown beside uncapped tenants is off by on top
_CONTENTION_MISFIT = 0.15  # of what one co-run shows of it, relative
_CONTENTION_ELSEWHERE = 0.3
"""How far it is off at other batches (relative, one standard deviation), however well co-runs are
known; see ``kernels.bound.MEETING_SD``."""
_CONTENTION_UNSEEN = 0.1
"""Standard deviation of it in a pair that no co-run tells of, where others say what is typical. The
bound then covers 95 % of KACE's pairs with training that were left out, and all of inference."""
RISE = (0.2, 0.2)
"""Mean and standard deviation over models of how much more the host takes beside others. Chosen so
that the bound admits what the pairs of ``bench/foreign.py`` on an A100 show (gpu-lets)."""
_RISE_MISFIT = 0.03
_BLOCK = FEATURES + 1  # the weights of one neighbour, and its contention


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another tenant of a co-run. ``load`` is its GPU time over that of batch 1 with the whole GPU,
    ``busy`` the fraction of its time that it executes on the GPU."""

    model: int
    batch: float
    share: float
    load: float = 1.0
    busy: float = 1.0


@dataclass(frozen=True, slots=True)
class CoRunSample:
    """One tenant of a co-run: what it took (``time_ms``, without transfers), and what is predicted
    of it alone: the GPU's part and the host's (ms), and the ``variance`` of the logarithm of the
    time. ``floor_ms`` is its GPU time of batch 1 with the whole GPU."""

    victim: int
    time_ms: float
    gpu_ms: float
    variance: float
    floor_ms: float
    neighbours: tuple[Neighbour, ...]
    host_ms: float = 0.0
    share: float = 0.0

    @property
    def alone_ms(self) -> float:
        return float(greater(self.host_ms, self.gpu_ms))

    @property
    def slowdown(self) -> float:
        """Measured slowdown (ratio above 1)."""
        return self.time_ms / self.alone_ms - 1.0

    @property
    def capped(self) -> bool:
        """Whether nobody's kernels run on another's SMs."""
        return all(kernel.contended(self.share, n.share) == 0 for n in self.neighbours)

    def features(self, neighbour: Neighbour) -> F64:
        """Shape (5,): see ``kernels.mean``; the last one is of what is contended for."""
        crowd = float(kernel.crowding(neighbour.batch, neighbour.share))
        both = float(kernel.contended(self.share, neighbour.share))
        x = self.floor_ms / self.gpu_ms
        apart = np.array([1.0, x, neighbour.share, crowd])
        return neighbour.busy * np.append(apart, both * neighbour.load * x)


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

    Runs beside a copy, co-runs of more than two, of uncapped tenants and of what waits for its host
    are left out.

    Raises ``ValueError`` with fewer than two ordered pairs that have four observations.
    """
    pairs: dict[tuple[int, int], list[CoRunSample]] = {}
    for seen in observations:
        apart = seen.capped and seen.host_ms <= 0
        if apart and len(seen.neighbours) == 1 and seen.neighbours[0].model != seen.victim:
            pairs.setdefault((seen.victim, seen.neighbours[0].model), []).append(seen)
    fits = [_least_squares(group) for group in pairs.values() if len(group) >= FEATURES]
    if len(fits) < 2:
        raise ValueError(
            f"a prior needs two ordered pairs with {FEATURES} co-runs each; there are {len(fits)}"
        )
    weights = np.array(fits)
    return Prior(weights.mean(axis=0), np.cov(weights.T) + _RIDGE * np.eye(FEATURES))


@dataclass(frozen=True, slots=True)
class Interference:
    """Posterior, victim first: ``weights`` (models, models, 4) with their covariances ``spreads``
    (models, models, 4, 4); ``contention`` (models, models, 2) and ``rises`` (models, 2), each a
    mean and a variance."""

    weights: F64
    spreads: F64
    contention: F64
    rises: F64


def learn(models: int, observations: Sequence[CoRunSample], prior: Prior) -> Interference:
    """What the co-runs say of every ordered pair of ``models`` models.

    Whether pairs have more in common than the prior is asked of the co-runs, see ``perf.pooling``.
    Linear in the weights but for which neighbour of a larger co-run is the worst and for whether
    the host is waited for; that is settled in five rounds.
    """
    start, spread = _nothing_known(models, prior)
    by_victim = [[o for o in observations if o.victim == victim] for victim in range(models)]
    said = [_said(victim, start, spread, seen) for victim, seen in enumerate(by_victim)]
    pooled, weights = Pooled(said, prior.mean, prior.covariance), _weights(models)
    common = pooled.gain > DECISIVE
    flat, after = np.tile(start, (models, 1)), np.empty((models, models + 1, _BLOCK, _BLOCK))
    for victim, seen in enumerate(by_victim):
        unsure = spread.copy()
        if common:
            flat[victim, weights], unsure[np.ix_(weights, weights)] = pooled.prior_of(victim)
        if seen:
            flat[victim], unsure = _posterior(flat[victim], unsure, seen)
        after[victim, :-1] = [unsure[_block(j), _block(j)] for j in range(models)]
        after[victim, -1] = unsure[-1, -1]
    return _parted(models, flat, after, _tells(by_victim))


def _tells(by_victim: Sequence[Sequence[CoRunSample]]) -> NDArray[np.bool_]:
    """Of which ordered pairs (models, models) an uncapped co-run tells what contention costs."""
    told = np.zeros((len(by_victim), len(by_victim)), dtype=np.bool_)
    for victim, seen in enumerate(by_victim):
        for o in seen:
            told[victim, [n.model for n in o.neighbours if kernel.contended(o.share, n.share)]] = 1
    return told


def _nothing_known(models: int, prior: Prior) -> tuple[F64, F64]:
    """What to think of one victim before any co-run, (models * 5 + 1,) and its covariance."""
    start = np.append(np.tile(np.append(prior.mean, CONTENTION[0]), models), RISE[0])
    spread = np.zeros((start.shape[0], start.shape[0]))
    for model in range(models):
        at = _block(model)
        spread[at, at][:FEATURES, :FEATURES] = prior.covariance
        spread[at, at][FEATURES, FEATURES] = CONTENTION[1] ** 2
    spread[-1, -1] = RISE[1] ** 2
    return start, spread


def _weights(models: int) -> I64:
    """Where the weights of one victim lie, flat: (models * 4,)."""
    return np.asarray(np.add.outer(_BLOCK * np.arange(models), np.arange(FEATURES)).ravel())


def _said(victim: int, start: F64, spread: F64, seen: Sequence[CoRunSample]) -> Told:
    """What the co-runs of one victim say of pairs of different models, against the prior."""
    kept = [o for o in seen if o.capped and all(n.model != victim for n in o.neighbours)]
    predicted, slope, _ = _linearised(start, kept)
    at = _weights(start.shape[0] // _BLOCK)
    rest = np.delete(np.arange(start.shape[0]), at)
    measured, own = _measured(kept)
    noise = slope[:, rest] @ spread[np.ix_(rest, rest)] @ slope[:, rest].T + np.diag(own)
    return Told(slope[:, at], measured - predicted, noise)


def _parted(models: int, flat: F64, after: F64, told: NDArray[np.bool_]) -> Interference:
    """``flat`` (models, models * 5 + 1) as what it is of. ``after`` (models, models + 1, 5, 5): its
    covariances beside each model, and the variance of the rise. ``told`` (models, models): of which
    pairs an uncapped co-run tells."""
    blocks = flat[:, :-1].reshape(models, models, _BLOCK)
    spreads = (after[:, :-1] + after[:, :-1].transpose(0, 1, 3, 2)) / 2
    weights, weighed = blocks[..., :FEATURES], spreads[..., :FEATURES, :FEATURES]
    return Interference(
        np.ascontiguousarray(_non_negative(weights, weighed)),
        np.ascontiguousarray(weighed),
        _contention(blocks[..., FEATURES], spreads[..., FEATURES, FEATURES], told),
        np.stack([np.maximum(flat[:, -1], 0.0), after[:, -1, 0, 0] + _RISE_MISFIT**2], axis=-1),
    )


def _contention(cost: F64, unsure: F64, told: NDArray[np.bool_]) -> F64:
    """Mean and variance (models, models, 2) of contention, given what co-runs say of it and its
    variance, each (models, models): midway to what is typical, or that alone where none ``told``.
    Two readings, each as likely."""
    cost = np.maximum(cost, 0.0)
    usual, follows = typical(cost, told)
    apart = (usual - cost) / np.where(told, 2.0, 1.0)
    unsure = np.where(follows & ~told, _CONTENTION_UNSEEN**2, unsure)
    unsure = unsure + np.where(told, apart**2, 0.0)
    cost = cost + apart
    return np.stack([cost, unsure + (_CONTENTION_ELSEWHERE * cost) ** 2], axis=-1)


def _least_squares(group: Sequence[CoRunSample]) -> F64:
    features = np.array([o.features(o.neighbours[0])[:FEATURES] for o in group])
    return np.asarray(
        np.linalg.lstsq(features, np.array([o.slowdown for o in group]), rcond=None)[0]
    )


def _measured(seen: Sequence[CoRunSample]) -> tuple[F64, F64]:
    """Slowdowns (n,) and their variances (n,)."""
    own = [
        _SURFACE_GAIN**2 * o.variance + NOISE_SD**2 + (0.0 if o.capped else _UNCAPPED_SD**2)
        for o in seen
    ]
    return np.array([o.slowdown for o in seen]), np.array(own)


def _posterior(start: F64, spread: F64, seen: Sequence[CoRunSample]) -> tuple[F64, F64]:
    """What is known of one victim, (models * 5 + 1,) and its covariance.

    No part of a slowdown is below 0. Where that leaves capped co-runs that contradict each other,
    those slowest against the prior are left to it, one after another, until the rest agree; how
    slow they were is what the cost of a batch may still be.
    """
    doubt = np.zeros_like(start)
    measured, own = _measured(seen)
    capped, gpus = np.array([(o.capped, o.host_ms <= 0) for o in seen]).T
    odd = np.where(capped, np.maximum(measured - _linearised(start, seen)[0], 0.0), 0.0)
    while True:
        flat, after = _conditioned(start, spread, seen, measured, own)
        missed = np.abs(measured - _predicted(flat, seen)) > np.maximum(_MISSED, 3 * np.sqrt(own))
        # what waits for its host is slow for another reason, unless that leaves it unexplained
        left = np.where(missed | gpus, odd, 0.0)
        worst = int(left.argmax())
        if left[worst] <= 0 or not (missed & capped).any():
            return flat, after + np.diag(doubt)
        own[worst] += odd[worst] ** 2
        doubt[_cost_of_a_batch(seen[worst])] += _still_so(seen[worst], odd[worst])
        odd[worst] = 0.0


def _cost_of_a_batch(o: CoRunSample) -> int:
    """Where its weight lies for the neighbour that was felt most."""
    most = max(o.neighbours, key=lambda n: float(np.sum(o.features(n))))
    return _BLOCK * most.model + 1


def _still_so(o: CoRunSample, excess: float) -> float:
    """Variance of that weight when the ``excess`` over the prior is two standard deviations."""
    return (excess / (2.0 * o.floor_ms / o.gpu_ms)) ** 2


def _conditioned(
    start: F64, spread: F64, seen: Sequence[CoRunSample], measured: F64, own: F64
) -> tuple[F64, F64]:
    """Posterior by Gauss-Newton from the prior, given slowdowns ``measured`` (n,) and their
    variances ``own`` (n,)."""
    flat = start
    for _ in range(_ROUNDS):
        predicted, slope, contended = _linearised(flat, seen)
        noise = np.diag(own + (_CONTENTION_MISFIT * contended) ** 2)
        gain = spread @ slope.T @ np.linalg.inv(slope @ spread @ slope.T + noise)
        flat = start + gain @ (measured - predicted - slope @ (start - flat))
    return flat, spread - gain @ slope @ spread


def _predicted(flat: F64, seen: Sequence[CoRunSample]) -> F64:
    """Slowdowns (n,) as the kernel has them: no part of them is below 0."""
    bounded = flat.copy()
    bounded[1:-1:_BLOCK] = np.maximum(bounded[1:-1:_BLOCK], 0.0)
    predicted = _linearised(bounded, seen)[0]
    for row, o in enumerate(seen):
        phi = [(o.features(n), bounded[_block(n.model)]) for n in o.neighbours]
        below = sum(min(float(f[[0, 2, 3]] @ w[[0, 2, 3]]), 0.0) for f, w in phi)
        predicted[row] -= below if o.host_ms <= 0 else 0.0
    return predicted


def _linearised(flat: F64, seen: Sequence[CoRunSample]) -> tuple[F64, F64, F64]:
    """Predicted slowdowns (n,) at ``flat`` (m,), their derivatives (n, m), and what part of them is
    contention (n,)."""
    predicted, slope = np.zeros(len(seen)), np.zeros((len(seen), flat.shape[0]))
    contended = np.zeros(len(seen))
    for row, o in enumerate(seen):
        phi = [o.features(n) for n in o.neighbours]
        at = [flat[_block(n.model)] for n in o.neighbours]
        parts = np.array([f[:-1] @ w[:-1] for f, w in zip(phi, at, strict=True)])
        both = np.array([float(kernel.contended(o.share, n.share)) for n in o.neighbours])
        worst = int(((1.0 - both) * parts).argmax())
        counted = np.where(np.arange(len(parts)) == worst, 1.0, kernel.OVERLAP)
        counted *= 1.0 - both
        queued = sum(float(f[-1] * w[-1]) for f, w in zip(phi, at, strict=True))
        slow = float(counted @ parts) + queued
        for f, n, part in zip(phi, o.neighbours, counted, strict=True):
            slope[row, _block(n.model)] += f * np.append(np.full(FEATURES, part), 1.0)
        predicted[row], follows = _waited_for(o, slow, float(flat[-1]))
        slope[row] *= follows[0]
        slope[row, -1] = follows[1]
        contended[row] = follows[0] * queued
    return predicted, slope, contended


def _waited_for(o: CoRunSample, slow: float, rise: float) -> tuple[float, tuple[float, float]]:
    """Slowdown of the whole where that of the GPU part is ``slow``, and its derivatives over that
    and over the ``rise`` of the host."""
    gpu = o.gpu_ms * max(1.0 + slow, 0.05)
    if o.host_ms <= 0:
        return slow, (1.0, 0.0)
    host, alone = o.host_ms * max(1.0 + rise, 0.05), o.alone_ms
    time = float(greater(host, gpu))
    by_gpu, by_host = (float(kernel.sharp(part / time) * time / part) for part in (gpu, host))
    return time / alone - 1.0, (by_gpu * o.gpu_ms / alone, by_host * o.host_ms / alone)


def _block(model: int) -> slice:
    """Where what is known beside ``model`` lies in that of one victim, flat."""
    return slice(_BLOCK * model, _BLOCK * (model + 1))


def _non_negative(weights: F64, spreads: F64) -> F64:
    """The posterior mean given that the cost per batch is not below 0, where it came out so."""
    fixed: NDArray[np.bool_] = weights[..., 1] < 0
    pull = np.where(fixed, weights[..., 1] / spreads[..., 1, 1], 0.0)
    return np.asarray(weights - pull[..., None] * spreads[..., :, 1])
