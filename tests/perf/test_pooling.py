"""Pooling: it is the posterior of all weights together; it leaves alone what agrees with the prior
and a model beside its copy, and tells of pairs never co-run what the others have in common."""

import itertools

import numpy as np
import pytest

from igniterd.perf import pooling
from igniterd.perf.interference import (
    FEATURES,
    CoRunSample,
    Interference,
    Neighbour,
    Prior,
    learn,
    shipped_prior,
)
from igniterd.perf.pooling import DECISIVE, Pooled, Told
from igniterd.perf.profile import builtin_profile
from igniterd.perf.surface_model import SurfaceModel, observations

MODELS = 6
UNSEEN = {(0, 1), (1, 0)}


def told(rng: np.random.Generator, models: int, victim: int) -> Told:
    """Three co-runs, each beside another model."""
    slope = np.zeros((3, models, FEATURES))
    for row in slope:
        other = rng.choice([m for m in range(models) if m != victim])
        row[other] = rng.uniform(0.2, 1.0, FEATURES)
    return Told(slope.reshape(3, -1), rng.normal(0, 0.03, 3), np.diag(rng.uniform(1e-4, 1e-3, 3)))


def jointly(models: int, prior: Prior) -> np.ndarray:
    """Covariance of all weights of all victims, as the module's equation has it."""
    mean, shared = prior.mean, pooling.SHARED * prior.covariance
    shared = shared + pooling.SCALES_SD**2 * np.outer(prior.mean, prior.mean)
    pairs = list(itertools.product(range(models), repeat=2))
    blocks = np.zeros((len(pairs), len(pairs), FEATURES, FEATURES))
    for (a, (i, j)), (b, (k, m)) in itertools.product(enumerate(pairs), repeat=2):
        if (i, j) == (k, m):
            blocks[a, b] += prior.covariance
        if i != j and k != m:
            blocks[a, b] += pooling.SCALE_SD**2 * np.outer(mean, mean)
            blocks[a, b] += shared * ((i == k) + (j == m))
    return blocks.transpose(0, 2, 1, 3).reshape(2 * (len(pairs) * FEATURES,))


def everything(found: list[Told]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes over all weights of all victims, what was missed, noise."""
    width = found[0].slope.shape[1]
    slope = np.zeros((3 * len(found), width * len(found)))
    noise = np.zeros((3 * len(found), 3 * len(found)))
    for victim, t in enumerate(found):
        rows = slice(3 * victim, 3 * victim + 3)
        slope[rows, width * victim : width * (victim + 1)] = t.slope
        noise[rows, rows] = t.noise
    return slope, np.concatenate([t.missed for t in found]), noise


def log_density(missed: np.ndarray, covariance: np.ndarray) -> float:
    return float(
        -0.5 * missed @ np.linalg.solve(covariance, missed) - 0.5 * np.linalg.slogdet(covariance)[1]
    )


def test_it_is_the_posterior_and_the_likelihood_of_all_weights_together() -> None:
    rng, prior, models = np.random.default_rng(1), shipped_prior(), 4
    found = [told(rng, models, victim) for victim in range(models)]
    pooled = Pooled(found, prior.mean, prior.covariance)
    joint = jointly(models, prior)
    slope, missed, noise = everything(found)
    apart = np.kron(np.eye(models**2), prior.covariance)
    gain = log_density(missed, slope @ joint @ slope.T + noise)
    gain -= log_density(missed, slope @ apart @ slope.T + noise)
    assert pooled.gain == pytest.approx(gain, abs=1e-8)
    victim, width = 2, models * FEATURES
    others = np.delete(np.arange(3 * models), slice(3 * victim, 3 * victim + 3))
    known = slope[others] @ joint @ slope[others].T + noise[np.ix_(others, others)]
    cross = (joint @ slope[others].T)[width * victim : width * (victim + 1)]
    at = slice(width * victim, width * (victim + 1))
    mean, spread = pooled.prior_of(victim)
    expected = np.tile(prior.mean, models) + cross @ np.linalg.solve(known, missed[others])
    assert mean == pytest.approx(expected, abs=1e-8)
    left = joint[at, at] - cross @ np.linalg.solve(known, cross.T)
    assert spread == pytest.approx(left, abs=1e-8)


def test_a_co_run_that_is_far_off_says_little_of_the_others() -> None:
    rng, prior = np.random.default_rng(2), shipped_prior()
    found = [told(rng, 4, victim) for victim in range(4)]
    usual = Pooled(found, prior.mean, prior.covariance).prior_of(2)[0]
    moved = []
    for odd in (0.3, 3.0):
        missed = found[0].missed.copy()
        missed[0] = odd
        rest = [found[0]._replace(missed=missed), *found[1:]]
        mean = Pooled(rest, prior.mean, prior.covariance).prior_of(2)[0]
        moved.append(float(np.abs(mean - usual).max()))
    assert moved[1] < moved[0] and moved[1] < 0.05


def co_runs(
    weights: dict[tuple[int, int], np.ndarray], unseen: set[tuple[int, int]]
) -> list[CoRunSample]:
    found = []
    for (victim, other), w in weights.items():
        for batch, share in ((2, 0.6), (16, 0.4)):
            beside = Neighbour(other, batch, share)
            blank = CoRunSample(victim, 1.0, 10.0, 1e-5, 3.0, (beside,), share=1 - share)
            slow = float(blank.features(beside)[:FEATURES] @ w)
            if (victim, other) not in unseen:
                found.append(
                    CoRunSample(victim, 10 + 10 * slow, 10.0, 1e-5, 3.0, (beside,), share=1 - share)
                )
    return found


def slowed(found: Interference, victim: int, other: int) -> float:
    """By the neighbour at batch 8 and half of the GPU."""
    blank = CoRunSample(victim, 1.0, 10.0, 1e-5, 3.0, (Neighbour(other, 8, 0.5),), share=0.5)
    return float(blank.features(blank.neighbours[0])[:FEATURES] @ found.weights[victim, other])


PAIRS = list(itertools.permutations(range(MODELS), 2))


def test_pairs_as_the_prior_has_them_stay_apart() -> None:
    rng, prior = np.random.default_rng(3), shipped_prior()
    weights = {p: rng.multivariate_normal(prior.mean, prior.covariance) for p in PAIRS}
    found = learn(MODELS, co_runs(weights, UNSEEN), prior)
    for victim, other in UNSEEN:
        assert (found.weights[victim, other] == prior.mean).all()
        assert (found.spreads[victim, other] == prior.covariance).all()


def test_models_that_hardly_feel_each_other_hardly_feel_one_never_seen_beside_them() -> None:
    rng, prior = np.random.default_rng(4), shipped_prior()
    nothing = 0.05 * prior.mean
    weights = {p: rng.multivariate_normal(nothing, 0.05 * prior.covariance) for p in PAIRS}
    found = learn(MODELS, co_runs(weights, UNSEEN), prior)
    blank = learn(MODELS, [], prior)
    for victim, other in UNSEEN:
        assert abs(slowed(found, victim, other)) < 0.3 * slowed(blank, victim, other)
    # beside its copy each is as the prior has it
    assert (found.weights[0, 0] == prior.mean).all()
    assert found.spreads[0, 0] == pytest.approx(prior.covariance)


def test_what_a_neighbour_costs_everybody_it_costs_one_never_seen_beside_it() -> None:
    prior = shipped_prior()
    weights = {(i, j): (2.5 if j == 1 else 0.3) * prior.mean for i, j in PAIRS}
    found = learn(MODELS, co_runs(weights, {(0, j) for j in range(MODELS)}), prior)
    assert slowed(found, 0, 1) > 1.5 * slowed(found, 0, 2)


def test_the_shipped_co_runs_leave_their_own_prior_as_it_is() -> None:
    profile = builtin_profile("v100")
    model, prior = SurfaceModel(profile), shipped_prior()
    seen = observations(profile, model)
    names = model.models
    for pair in itertools.combinations(range(len(names)), 2):
        kept = [o for o in seen if {o.victim, o.neighbours[0].model} != set(pair)]
        found = learn(len(names), kept, prior)
        assert (found.weights[pair] == prior.mean).all()


def test_nothing_told_gains_nothing() -> None:
    prior = shipped_prior()
    none = Told(np.zeros((0, 3 * FEATURES)), np.zeros(0), np.zeros((0, 0)))
    assert Pooled([none] * 3, prior.mean, prior.covariance).gain == 0 < DECISIVE
