"""The process of a solo surface: what was measured is known, what is far is not, and every
hypothesis has the likelihood that its covariance says."""

import numpy as np
import pytest

from igniterd.perf.process import NOISE_SD, Hypothesis, Process
from igniterd.perf.trend import Trend

K = np.array([0.5, 0.4, 1.0, 0.1])
BATCH = np.array([1.0, 1, 1, 4, 16, 64])
SHARE = np.array([0.2, 0.5, 1.0, 0.4, 0.4, 1.0])
NONE = np.zeros(6)
FLOORED = Trend(K, host_ms=6.0)


def process(of: Hypothesis, off: float = 0.0) -> Process:
    time = of.trend.at(BATCH, SHARE)[0] * (1 + off * np.array([1, -1, 1, -1, 1, -1]))
    return Process(of, BATCH, SHARE, time, NONE)


@pytest.mark.parametrize("trend", [Trend(K), FLOORED, Trend(K, 0.0, 3.0)])
def test_the_trend_comes_back_where_nothing_deviates_from_it(trend: Trend) -> None:
    found = process(Hypothesis(trend)).at(BATCH, SHARE)
    assert found.time() == pytest.approx(trend.at(BATCH, SHARE)[0])
    assert np.sqrt(found.variance).max() < 0.04


def test_what_is_far_from_all_that_was_measured_is_less_sure() -> None:
    known = process(Hypothesis(Trend(K)))
    near, far = known.at(np.array([16.0, 64.0]), np.array([0.4, 0.05])).variance
    assert far > 10 * near


def test_of_times_on_the_floor_the_gpu_is_not_known() -> None:
    """At batch 1 on half the GPU a GPU time of 2.9 ms hides behind 6 ms of the host."""
    known = process(Hypothesis(FLOORED), off=0.02)
    found = known.at(np.array([1.0]), np.array([0.5]))
    assert found.gpu == pytest.approx(FLOORED.gpu_ms(np.array([1.0]), np.array([0.5])), rel=0.1)
    assert found.host == pytest.approx(6.0, rel=0.03)


def test_the_likelihood_is_that_of_the_covariance() -> None:
    of = Hypothesis(FLOORED, 0.02, 2.0)
    known = process(of, off=0.01)
    (found,) = Process.likelihoods(
        of.trend, BATCH, SHARE, known.time_ms, NONE, (0.02,), (2.0,)
    ).ravel()
    covariance, _, missed = known._known
    _, width = np.linalg.slogdet(covariance)
    by_hand = -0.5 * (missed @ np.linalg.solve(covariance, missed) + width)
    assert found == pytest.approx(by_hand - np.log(of.trend.at(BATCH, SHARE)[0]).sum())


def test_a_noisier_hypothesis_bounds_a_new_measurement_by_its_noise() -> None:
    plain, noisy = (process(Hypothesis(Trend(K), n)) for n in (NOISE_SD, 0.1))
    at = np.array([4.0]), np.array([0.4])
    more = noisy.at(*at).variance - plain.at(*at).variance
    assert more > 0.1**2 - NOISE_SD**2


def test_what_is_measured_takes_away_of_what_is_left() -> None:
    known = process(Hypothesis(Trend(K)))
    left = known.covariance_left(BATCH, SHARE, BATCH, SHARE)
    assert np.diag(left) == pytest.approx(known.at(BATCH, SHARE).variance, abs=1e-9)
