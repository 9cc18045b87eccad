import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.model.arrivals import LONG_S, Rate, updated


def fed(counts: list[int], rate: Rate | None = None, start_s: float = 0.0) -> Rate:
    rate = rate or Rate()
    for i, n in enumerate(counts):
        rate = updated(rate, start_s + i + 1.0, 1.0, n)
    return rate


def test_mean_and_upper_by_hand() -> None:
    rate = Rate(((1.0, 1.0, 10), (2.0, 1.0, 14)))
    assert rate.per_s == 12.0
    assert rate.upper_per_s(0.5) == pytest.approx(12.0)
    assert rate.upper_per_s(0.841344746) == pytest.approx(12.0 + 24**0.5 / 2)
    assert Rate().per_s == Rate().upper_per_s(0.9) == 0.0


def test_only_the_recent_past_counts() -> None:
    rate = fed([100] * 40)
    assert rate.span_s <= LONG_S
    assert rate.per_s == pytest.approx(100.0)


def test_a_step_is_believed_within_three_seconds() -> None:
    rng = np.random.default_rng(1)
    rate = fed([int(n) for n in rng.poisson(100, 30)])
    rate = fed([int(n) for n in rng.poisson(160, 3)], rate, 30.0)
    assert rate.per_s == pytest.approx(160, rel=0.15)


def test_noise_alone_rarely_resets() -> None:
    rng = np.random.default_rng(2)
    rate, resets = Rate(), 0
    for i, n in enumerate(rng.poisson(75, 1000)):
        before = len(rate.samples)
        rate = updated(rate, i + 1.0, 1.0, int(n))
        resets += len(rate.samples) < before - 1
    assert resets <= 5  # of 1000 tests at 3.5 sigma on overlapping sums


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_upper_is_above_mean_and_nothing_is_negative(counts: list[int]) -> None:
    rate = fed(counts)
    assert 0 <= rate.per_s <= rate.upper_per_s(0.9)
