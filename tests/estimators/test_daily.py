import math

import pytest

from igniterd.estimators.daily import (
    BIN_S,
    BINS,
    DAY_S,
    SURE_DAYS,
    WEEK,
    Daily,
    from_plain,
    to_plain,
    update_daily,
)

NINE = 9 * 3600.0


def job_at_nine(wall_s: float) -> float:
    """50/s, and 200/s from nine to a quarter past."""
    return 200.0 if NINE <= wall_s % DAY_S < NINE + BIN_S else 50.0


def days(
    count: float,
    rate: object = job_at_nine,
    step_s: float = 5.0,
    daily: Daily | None = None,
    since_s: float = 0.0,
) -> Daily:
    daily = daily or Daily()
    for i in range(int(count * DAY_S / step_s)):
        at_s = since_s + (i + 1) * step_s
        daily = update_daily(daily, at_s, step_s, rate(at_s - step_s / 2))  # type: ignore[operator]
    return daily


def test_nothing_is_known_at_first() -> None:
    assert Daily().usual_per_s(NINE) == 0.0
    assert Daily().foreseen_per_s(1.0, NINE - 5, 8.0) == 1.0


def test_a_day_is_known_after_it() -> None:
    daily = days(1.1)
    assert daily.usual_per_s(DAY_S + NINE + 60) == 200.0
    assert daily.usual_per_s(DAY_S + NINE - 60) == 50.0
    assert daily.bins[36] is not None
    assert daily.bins[36].mean_per_s == pytest.approx(200.0, rel=0.01)


def test_a_jump_is_forecast_once_it_has_come_several_days_and_only_right_before_it() -> None:
    daily = days(SURE_DAYS - 0.7)
    before = (SURE_DAYS - 1) * DAY_S + NINE - 5
    assert daily.foreseen_per_s(1.0, before, 8.0) == 1.0
    daily = days(1.0, daily=daily, since_s=(SURE_DAYS - 0.7) * DAY_S)
    assert daily.foreseen_per_s(1.0, before + DAY_S, 8.0) == pytest.approx(4.0, rel=0.01)
    assert daily.foreseen_per_s(1.0, before + DAY_S - 10, 8.0) == 1.0
    # this day's nine has not been reached
    assert daily.foreseen_per_s(1.0, before + DAY_S + 6, 8.0) == 1.0
    assert daily.foreseen_per_s(1.0, before + DAY_S + BIN_S, 8.0) == 1.0  # its end is no jump up


def test_a_jump_that_is_due_is_waited_for_until_the_rate_shows_whether_it_came() -> None:
    nine = 5 * DAY_S + NINE
    daily = days((NINE + 1) / DAY_S, step_s=1.0, daily=days(5.0), since_s=5 * DAY_S)
    assert daily.foreseen_per_s(60.0, nine + 1, 8.0) == pytest.approx(200.0, rel=0.01)
    assert daily.foreseen_per_s(230.0, nine + 1, 8.0) == 230.0
    for came in (200.0, 50.0):
        settled = daily
        for s in range(2, 13):
            settled = update_daily(settled, nine + s, 1.0, came)
        assert settled.foreseen_per_s(came, nine + 12, 8.0) == came


def test_a_day_without_the_jump_ends_the_forecast() -> None:
    daily = days(1.0, rate=lambda _: 50.0, daily=days(5.0), since_s=5 * DAY_S)
    assert daily.foreseen_per_s(1.0, 6 * DAY_S + NINE - 5, 8.0) == 1.0


def a_jump(daily: Daily, day: int) -> float:
    """The factor foreseen five seconds before nine o'clock of ``day``, of which nothing was
    seen."""
    return daily.foreseen_per_s(1.0, day * DAY_S + NINE - 5, 8.0)


def workdays(
    count: int, work: tuple[int, ...] = (0, 1, 2, 3, 4), off: tuple[int, ...] = ()
) -> Daily:
    """``count`` days, with the job on the days ``work`` of each week but not on the days ``off`` of
    them all."""

    def rate(wall_s: float) -> float:
        day = int(wall_s // DAY_S)
        return job_at_nine(wall_s) if day % WEEK in work and day not in off else 50.0

    return days(count, rate=rate, step_s=30.0)


def test_a_job_of_workdays_is_not_expected_on_the_weekend_and_is_on_the_monday_after() -> None:
    # after one week, a Monday: only that there was none on Sunday is known
    assert a_jump(workdays(7), 7) == 1.0
    assert a_jump(workdays(5), 5) == pytest.approx(4.0, rel=0.01)  # the first Saturday
    daily = workdays(14)
    assert [round(a_jump(daily, 14 + day), 1) for day in range(7)] == [4.0] * 5 + [1.0] * 2


def test_a_holiday_makes_the_same_day_of_the_next_week_uncertain_and_no_other() -> None:
    daily = workdays(21, off=(16,))
    assert [round(a_jump(daily, 21 + day), 1) for day in range(5)] == [4.0, 4.0, 1.0, 4.0, 4.0]


def test_highs_fade_over_days() -> None:
    daily = days(3.0, rate=lambda _: 50.0, daily=days(1.0), since_s=DAY_S)
    assert 50 < daily.usual_per_s(4 * DAY_S + NINE) < 120


def test_half_seen_bins_do_not_count() -> None:
    daily = update_daily(update_daily(Daily(), 10.0, 5.0, 100.0), BIN_S + 10, 5.0, 100.0)
    assert daily.bins == (None,) * BINS


def test_kept_and_taken_up_again() -> None:
    daily = days(1.5)
    before, after = daily.bins[36], from_plain(to_plain(daily)).bins[36]
    assert before is not None
    assert after is not None
    assert after.mean_per_s == pytest.approx(before.mean_per_s, rel=1e-3)
    assert after.jump == pytest.approx(before.jump, abs=1e-3)
    assert (after.high_per_s, after.days) == (before.high_per_s, before.days)
    assert [weeks for _, weeks in after.weekly] == [1, 1, 0, 0, 0, 0, 0]
    assert after.weekly[0][0] == pytest.approx(before.weekly[0][0], abs=1e-3)
    without_weeks = [b and b[:4] for b in to_plain(daily)]
    assert from_plain(without_weeks).usual_per_s(NINE) == daily.usual_per_s(NINE)
    assert from_plain(to_plain(Daily())) == Daily()


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        [None] * 95,
        [[-1, 0, 0, 1]] + [None] * 95,
        [[1, math.inf, 0, 1]] + [None] * 95,
        [[1, 1, 0, 1, 9, 1] + [0] * 12] + [None] * 95,
        [[1, 1, 0, 1, 0, 1]] + [None] * 95,
    ],
)
def test_nonsense_is_not_taken_up(plain: object) -> None:
    with pytest.raises(ValueError):
        from_plain(plain)
