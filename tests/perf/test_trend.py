"""The trend of a solo surface: by hand, and found again from what it makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.perf.kernels import mean as kernel
from igniterd.perf.trend import Trend, fit, greater

K = np.array([0.5, 0.4, 1.0, 0.1])
BATCH = np.array([1.0, 1, 1, 2, 4, 8, 16, 16, 64, 64])
SHARE = np.array([0.2, 0.5, 1.0, 0.6, 0.4, 0.8, 0.4, 1.0, 0.2, 1.0])


def test_terms_add_up_by_hand() -> None:
    time, follows, _ = Trend(K).at(np.array([4.0]), np.array([0.5]))
    assert time == pytest.approx((0.5 * 4 + 0.4) / 0.5 + 1 + 0.1 * 4)
    assert follows == 1


def test_terms_hide_behind_each_other_by_hand() -> None:
    time = Trend(K, power=2.0).gpu_ms(np.array([4.0]), np.array([0.5]))
    assert time == pytest.approx((4.0**2 + 0.8**2 + 1.4**2) ** 0.5)


def test_the_host_is_waited_for_by_hand() -> None:
    """GPU times of 1.7 and 26 ms: the first follows the host, the second the GPU."""
    trend = Trend(np.array([0.5, 0.0, 0.7, 0.0]), host_ms=6.0)
    time, follows, _ = trend.at(np.array([2.0, 16.0]), np.array([1.0, 0.32]))
    assert time == pytest.approx([6.0, 25.7], rel=1e-3)
    assert follows == pytest.approx([0.0, 1.0], abs=1e-3)
    assert greater(3.0, 3.0) == pytest.approx(3 * 2 ** (1 / 12))
    assert greater(6.0, 5.5) == pytest.approx(kernel.greater(6.0, 5.5))


powers = st.sampled_from([1.0, 1.5, 2.0, 6.0])
terms = st.lists(st.floats(0.01, 5), min_size=4, max_size=4).map(np.array)


@given(terms, st.floats(0, 20), powers, st.floats(1, 64), st.floats(0.05, 1))
def test_more_work_or_fewer_sms_are_never_faster(
    k: np.ndarray, host: float, power: float, batch: float, share: float
) -> None:
    trend = Trend(k, host, power)
    here, more, fewer = trend.at(batch * np.array([1, 1.5, 1]), share * np.array([1, 1, 0.7]))[0]
    assert here <= more * (1 + 1e-12) and here <= fewer * (1 + 1e-12)
    largest = max(k[0] * batch / share, k[1] / share, k[2] + k[3] * batch, host)
    assert largest * (1 - 1e-12) <= here


@settings(deadline=None)
@given(terms, st.sampled_from([0.0, 1.0]), powers)
def test_slopes_are_those_of_the_times(k: np.ndarray, host: float, power: float) -> None:
    trend = Trend(k, host, power)
    gpu, slope = trend._with_slope(
        np.stack([BATCH / SHARE, 1 / SHARE, np.ones_like(BATCH), BATCH], axis=1)
    )
    for i in range(4):
        nudged = k * (1 + 1e-6 * (np.arange(4) == i))
        moved = (Trend(nudged, host, power).gpu_ms(BATCH, SHARE) - gpu) / (1e-6 * k[i])
        assert slope[:, i] == pytest.approx(moved, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("host", "power"), [(0.0, 1.0), (3.0, 1.0), (0.0, 4.0), (3.0, 2.0)])
def test_a_fit_meets_what_the_trend_made(host: float, power: float) -> None:
    made = Trend(K, host, power).at(BATCH, SHARE)[0]
    found = fit(BATCH, SHARE, made, host, power)
    assert found.at(BATCH, SHARE)[0] == pytest.approx(made, rel=0.03)


def test_what_the_host_hides_is_taken_for_as_much_as_one_item() -> None:
    """Batches above the floor at one share only: the cost of a batch that more SMs speed up, and
    that which they do not, are all one there."""
    batch, share = np.array([1.0, 2, 4, 32, 64]), np.ones(5)
    made = Trend(np.array([0.2, 0.2, 0.2, 0.01])).gpu_ms(batch, share)
    hidden = fit(batch, share, np.where(batch < 32, 5.0, made), 5.0, 1.0)
    seen = fit(batch, share, made, 0.0, 1.0)
    assert hidden.k[1] / hidden.k[0] == pytest.approx(1.0, rel=0.3)
    assert seen.k[1] / seen.k[0] < 0.5
