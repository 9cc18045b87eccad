import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.arrivals import (
    BURSTS,
    FASTEST_PER_S,
    GAP_S,
    MEMORY_S,
    PEAK_HALF_LIFE_S,
    ForecastTarget,
    Rate,
    WeightedSums,
    update_rate,
)


def fed(counts: object, rate: Rate | None = None, start_s: float = 0.0) -> Rate:
    rate = rate or Rate()
    for i, n in enumerate(counts):  # type: ignore[call-overload]
        rate = update_rate(rate, start_s + i + 1.0, 1.0, int(n))
    return rate


def test_one_and_two_counts_by_hand() -> None:
    one = update_rate(Rate(), 1.0, 1.0, 10)
    assert one.per_s == pytest.approx(10.0)
    # the median and the quantile one deviation up of what a count of ten shows: 10 + 2/3, and 10 +
    # sqrt(11) + 1
    assert update_rate(Rate(), 1.0, 1.0, 10, ForecastTarget(0.5, 0.0)).upper_per_s == pytest.approx(
        10.67, abs=0.05
    )
    assert update_rate(
        Rate(), 1.0, 1.0, 10, ForecastTarget(0.841344746, 0.0)
    ).upper_per_s == pytest.approx(14.32, abs=0.1)
    two = update_rate(one, 2.0, 1.0, 14)
    old, new = math.exp(-1.5 / MEMORY_S), math.exp(-0.5 / MEMORY_S)
    # no slope can be told from noise yet
    assert two.per_s == pytest.approx((old * 10 + new * 14) / (old + new))
    assert Rate().per_s == Rate().upper_per_s == Rate().ahead(5.0).per_s == 0.0


def test_sums_move_with_time_as_if_made_later() -> None:
    line = WeightedSums().plus(-0.5, 1.0, 7).shifted(3.0)
    later = WeightedSums().plus(-3.5, 1.0, 7)
    for name in ("e0", "e1", "e2", "n0", "n1", "v0", "v1", "v2"):
        assert getattr(line, name) == pytest.approx(getattr(later, name))


def test_steady_traffic_is_followed_quietly() -> None:
    rng = np.random.default_rng(4)
    rate, seen = Rate(), []
    for i, n in enumerate(rng.poisson(300, 600)):
        rate = update_rate(rate, i + 1.0, 1.0, int(n))
        seen.append(rate.per_s / 300)
    assert np.std(seen[60:]) < 0.015
    assert np.abs(np.array(seen[60:]) - 1).max() < 0.06


def test_a_large_step_is_believed_within_two_seconds_and_a_small_one_within_ten() -> None:
    rng = np.random.default_rng(1)
    rate = fed(rng.poisson(100, 60))
    assert fed(rng.poisson(160, 2), rate, 60.0).per_s == pytest.approx(160, rel=0.15)
    assert fed(rng.poisson(50, 3), rate, 60.0).per_s == pytest.approx(50, rel=0.2)
    assert fed(rng.poisson(120, 10), rate, 60.0).per_s == pytest.approx(120, rel=0.08)


def test_a_spike_is_forgotten_as_quickly_as_it_was_believed() -> None:
    rng = np.random.default_rng(2)
    rate = fed(rng.poisson(300, 60))
    rate = fed(rng.poisson(900, 3), rate, 60.0)
    assert rate.per_s > 700
    assert fed(rng.poisson(300, 3), rate, 63.0).per_s == pytest.approx(300, rel=0.1)


def test_noise_alone_rarely_forgets() -> None:
    rng = np.random.default_rng(2)
    rate, alarms = Rate(), 0
    for i, n in enumerate(rng.poisson(75, 3000)):
        before, rate = rate, update_rate(rate, i + 1.0, 1.0, int(n))
        alarms += rate.line.e0 < before.line.e0 - 1
    assert alarms <= 3


def test_a_ramp_is_not_lagged_behind_and_is_forecast() -> None:
    rng = np.random.default_rng(5)
    t = np.arange(90)
    rate = fed(rng.poisson(300 * (1 + 0.01 * np.clip(t - 30, 0, None))))
    assert rate.per_s == pytest.approx(300 * 1.6, rel=0.03)
    assert rate.ahead(8.0).per_s == pytest.approx(300 * 1.68, rel=0.04)
    assert rate.upper_per_s > 300 * 1.66


def test_a_fall_is_not_relied_on_before_it_happens() -> None:
    rng = np.random.default_rng(6)
    t = np.arange(60)
    rate = fed(rng.poisson(600 * (1 - 0.01 * t)))
    assert rate.ahead(8.0).per_s < rate.per_s < rate.upper_per_s


def test_the_beginning_of_a_ramp_is_not_taken_for_a_row_of_steps() -> None:
    """75/s rising by 1 % a second: alarms make the line forget; what plans are made for is ready
    for the coming seconds nevertheless."""
    ready = []
    for seed in range(8):
        counts = np.random.default_rng(seed).poisson(
            75 * (1 + 0.01 * np.clip(np.arange(130) - 70, 0, None))
        )
        rate = fed(counts[:90])
        for i, n in enumerate(counts[90:]):
            rate = update_rate(rate, 91.0 + i, 1.0, int(n))
            ready.append(rate.upper_per_s / (75 * (1 + 0.01 * (21 + i + 4))))
    assert np.mean(np.array(ready) >= 1) > 0.6
    assert np.max(ready) < 1.3


def test_one_odd_count_moves_no_plan() -> None:
    rate = fed([100] * 60)
    assert fed([125], rate, 60.0).upper_per_s < 1.02 * rate.upper_per_s


def test_a_step_that_is_past_makes_the_uncertainty_no_larger() -> None:
    rng = np.random.default_rng(3)
    stepped = fed([*rng.poisson(100, 60), *rng.poisson(200, 30)])
    assert stepped.recent[:, 0].sum() < 35
    assert 200 < stepped.upper_per_s < 215


def test_counts_before_a_long_gap_foresee_nothing() -> None:
    rate = fed([100] * 60)
    assert len(update_rate(rate, 62.0, 1.0, 100).recent) == 61
    assert len(update_rate(rate, 61.0 + GAP_S, 1.0, 100).recent) == 1


def test_counts_that_are_seldom_taken_are_remembered_too() -> None:
    rate = Rate()
    for i in range(30):
        rate = update_rate(rate, 20.0 * (i + 1), 20.0, 600)
    assert len(rate.recent) == 12
    assert 30 < rate.upper_per_s < 32


@given(st.integers(1, 400), st.integers(2, 200))
def test_steady_counts_ask_for_little_more_than_they_are(count: int, seconds: int) -> None:
    rate = fed([count] * seconds)
    assert count < rate.upper_per_s < count + 1 + 2.5 * math.sqrt((count + 1) / min(seconds, 20))


def test_a_forecast_grows_no_faster_than_its_limit() -> None:
    rate = fed([10, 10, 10, 10, 10, 200, 800, 2000, 5000])
    assert rate.ahead(8.0).per_s <= rate.per_s * (1 + 8 * FASTEST_PER_S) + 1e-9


def test_dispersion_tells_bursts_from_a_poisson_process_whatever_the_level_does() -> None:
    rng = np.random.default_rng(7)
    smooth = fed(rng.poisson(300 * (1 + 0.3 * np.sin(np.arange(300) / 40))))
    assert smooth.dispersion == pytest.approx(1.0, abs=0.35)
    assert smooth.arrival_scv == 1.0
    clumped = fed(4 * rng.poisson(75, 300))
    assert clumped.dispersion == pytest.approx(4.0, rel=0.35)
    assert clumped.arrival_scv in (3.0, 4.0)


def test_burstiness_holds_still_under_noise() -> None:
    rng = np.random.default_rng(8)
    rate, changes = fed(rng.poisson(200, 100)), 0
    for i, n in enumerate(rng.poisson(200, 2000)):
        before, rate = rate.arrival_scv, update_rate(rate, 101.0 + i, 1.0, int(n))
        changes += rate.arrival_scv != before
    assert changes == 0


def test_constant_arrivals_are_not_taken_for_smooth_ones() -> None:
    assert fed([100] * 200).arrival_scv == 1.0


def test_the_peak_is_remembered_and_fades() -> None:
    rate = fed([100] * 60)
    idle = fed([0] * 60, rate, 60.0)
    assert idle.per_s < 1.0
    assert idle.peak_per_s == pytest.approx(100 * 0.5 ** (60 / PEAK_HALF_LIFE_S), rel=0.05)


def test_a_gap_in_the_counts_is_time_without_knowledge_not_without_traffic() -> None:
    rate = fed([100] * 30)
    after = update_rate(rate, 60.0, 1.0, 100)  # 29 s unseen
    assert after.per_s == pytest.approx(100.0)
    assert after.line.e0 < rate.line.e0


@given(st.lists(st.tuples(st.floats(0.05, 30), st.integers(0, 10_000)), min_size=1, max_size=60))
def test_upper_is_above_the_estimate_of_now_and_everything_is_finite(
    counts: list[tuple[float, int]],
) -> None:
    rate, now = Rate(), 0.0
    for span, n in counts:
        now += span
        rate = update_rate(rate, now, span, n)
        assert math.isfinite(rate.per_s)
        assert rate.per_s >= 0
        assert math.isfinite(rate.upper_per_s)
        assert rate.upper_per_s >= 0
        assert rate.arrival_scv in BURSTS
        assert rate.dispersion >= 0
        assert rate.peak_per_s >= rate.ahead(0.0).per_s - rate.ahead(0.0).error_per_s - 1e-9
