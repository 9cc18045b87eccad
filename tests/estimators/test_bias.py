import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.bias import (
    BATCH_SD,
    LEVEL_SD,
    LOCAL,
    SCATTER_SD,
    Bias,
    Measured,
    Point,
    bound,
    elsewhere,
    from_plain,
    pressure_of,
    to_plain,
)
from igniterd.estimators.bias_filter import update_bias
from igniterd.loads import BiasEstimate
from igniterd.perf.api import Tenant
from igniterd.queueing.tail import SERVICE_CV

HERE = Point(0.5)
SIZES = (1, 2, 3, 4, 6, 8)


def window(
    ratio: float, rng: np.random.Generator | None = None, each: int = 10, tilt: float = 0.0
) -> list[Measured]:
    """A window in which every batch size was executed ``each`` times."""
    noise = (
        np.ones(len(SIZES))
        if rng is None
        else rng.gamma(each / SERVICE_CV**2, SERVICE_CV**2 / each, len(SIZES))
    )
    return [
        Measured(b, each, ratio * math.exp(tilt * (math.log2(b) - 2)) * float(x))
        for b, x in zip(SIZES, noise, strict=True)
    ]


def lived(
    ratio: float, seconds: int = 60, bias: Bias | None = None, start_s: int = 0, tilt: float = 0.0
) -> Bias:
    rng = np.random.default_rng(3)
    bias = bias or Bias()
    for t in range(seconds):
        bias, changed = update_bias(
            bias,
            float(start_s + t),
            window(ratio * math.exp(rng.normal(0, 0.01)), rng, tilt=tilt),
            HERE,
        )
        assert changed is None
    return bias


def test_too_little_and_nonsense_change_nothing_but_the_time() -> None:
    for measured in (
        [],
        [Measured(4, 3, 1.2)],
        [Measured(4, 10, math.nan)],
        [Measured(4, 10, 0.0)],
        [Measured(4, 0, 1.0)],
    ):
        bias, changed = update_bias(Bias(), 1.0, measured, HERE)
        assert bias == Bias(at_s=1.0, point=HERE)
        assert changed is None
        assert bias.estimate is None


def test_one_update_at_the_central_batch_by_hand() -> None:
    bias, _ = update_bias(Bias(), 1.0, [Measured(4, 100, math.exp(0.02))], HERE)
    noise = SERVICE_CV**2 / 100 + SCATTER_SD**2
    gain = LEVEL_SD**2 / (LEVEL_SD**2 + noise)
    # the logarithm of a mean is low by half its variance
    assert bias.level == pytest.approx(gain * (0.02 + SERVICE_CV**2 / 200))
    assert bias.p_level == pytest.approx((1 - gain) * LEVEL_SD**2)
    assert bias.tilt == pytest.approx(0.0)
    assert bias.estimate == BiasEstimate(
        0.5, 0.0, bias.level, 0.0, math.sqrt(bias.sd**2 + BATCH_SD**2), SERVICE_CV
    )


def test_learns_a_constant_bias_and_grows_sure() -> None:
    bias = lived(1.12)
    assert bias.mean == pytest.approx(1.12, rel=0.015)
    assert 1.12 < bias.upper(0.95) < 1.12 * 1.03


def test_learns_that_large_batches_are_slower_than_small_ones() -> None:
    bias = lived(1.1, 120, tilt=0.04)
    assert bias.tilt == pytest.approx(0.04, abs=0.01)
    assert bias.at(8) / bias.at(1) == pytest.approx(math.exp(0.12), rel=0.02)


def test_follows_a_drift() -> None:
    rng, bias = np.random.default_rng(4), Bias()
    for t in range(180):
        bias, changed = update_bias(bias, float(t), window(1 + 0.1 * t / 180, rng), HERE)
        assert changed is None
    assert bias.mean == pytest.approx(1.1, rel=0.015)


def test_a_level_that_moves_is_met_and_one_that_rests_is_left_alone() -> None:
    behind, off = [], []
    for seed in range(10):
        rng, moving = np.random.default_rng(seed), Bias()
        for t in range(120):
            if t >= 60:
                behind.append(0.001 * t - moving.level)
                off.append(0.001 * t - moving.coming)
            moving, _ = update_bias(
                moving, float(t), window(math.exp(0.001 * t + rng.normal(0, 0.01)), rng), HERE
            )
    assert np.mean(behind) > 0.003
    assert abs(np.mean(off)) < 0.5 * np.mean(behind)
    resting = lived(1.1)
    assert abs(resting.coming - resting.level) < 0.002


def test_the_bound_holds_as_often_as_it_says() -> None:
    held = []
    for seed in range(40):
        rng, bias = np.random.default_rng(seed), Bias()
        for t in range(100):
            true = 1.05 * math.exp(rng.normal(0, 0.012))
            if t >= 30:
                held.append(true <= bias.upper(0.95))
            bias, _ = update_bias(bias, float(t), window(true, rng), HERE)
    assert 0.93 < np.mean(held) < 0.97


def test_batch_sizes_that_leave_the_line_widen_the_bound() -> None:
    rng, rough, smooth = np.random.default_rng(6), Bias(), Bias()
    off = dict(zip(SIZES, (0.06, -0.06, 0.06, -0.06, 0.06, -0.06), strict=True))
    for t in range(60):
        true = window(1.0, rng)
        smooth, _ = update_bias(smooth, float(t), true, HERE)
        rough, _ = update_bias(
            rough,
            float(t),
            [replace(m, ratio=m.ratio * math.exp(off[m.batch])) for m in true],
            HERE,
        )
    assert math.sqrt(smooth.across) < BATCH_SD < 0.03 < math.sqrt(rough.across) < 0.07
    assert rough.estimate is not None
    assert rough.estimate.sd > math.sqrt(rough.across)
    assert Bias().across == pytest.approx(BATCH_SD**2)


def test_one_odd_window_moves_little() -> None:
    bias = lived(1.0)
    odd, changed = update_bias(bias, 60.0, window(5.0), HERE)
    assert odd.mean < 1.05
    assert changed is None


def test_odd_batch_sizes_move_little_each() -> None:
    measured = [Measured(m.batch, m.executions, 4.0) if m.batch == 6 else m for m in window(1.0)]
    odd, _ = update_bias(lived(1.0), 60.0, measured, HERE)
    assert odd.mean < 1.03


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.3, 2.0])
def test_a_model_that_has_become_another_is_noticed_once_and_believed(ratio: float) -> None:
    bias, noticed = lived(1.0), []
    rng = np.random.default_rng(5)
    for t in range(60, 100):
        bias, changed = update_bias(bias, float(t), window(ratio, rng), HERE)
        noticed += [changed] if changed else []
    assert len(noticed) == 1
    assert noticed[0] == pytest.approx(ratio, rel=0.12)
    assert bias.mean == pytest.approx(ratio, rel=0.02)


def test_time_without_news_takes_certainty_away_but_never_more_than_there_was_to_begin_with() -> (
    None
):
    bias = lived(1.1)
    assert bias.p_level < bias.aged(60.0).p_level < bias.aged(600.0).p_level
    assert bias.aged(1e9).p_level == pytest.approx(LEVEL_SD**2)
    assert bias.aged(600.0).level == bias.level


def test_a_small_bias_stays_where_it_was_learnt_and_a_large_one_goes_along() -> None:
    small, large = lived(1.03).estimate, lived(1.4).estimate
    assert small is not None
    assert large is not None
    assert elsewhere(small, 0.5, 0.0) == (small.level, small.tilt, small.sd)
    assert abs(elsewhere(small, 0.125, 0.0)[0]) < 0.01
    assert elsewhere(large, 0.125, 0.0)[0] > 0.9 * large.level
    assert small.level < LOCAL


def test_certainty_falls_with_distance() -> None:
    known = lived(1.1).estimate
    assert known is not None
    spreads = [elsewhere(known, share, 0.0)[2] for share in (0.5, 0.45, 0.4, 0.3, 0.1)]
    assert spreads == sorted(spreads)
    assert spreads[-1] < LEVEL_SD * 1.01
    beside = [elsewhere(known, 0.5, pressure)[2] for pressure in (0.0, 0.1, 0.3, 0.5)]
    assert beside == sorted(beside)
    moved, _ = update_bias(lived(1.1), 60.0, [], Point(0.25))
    assert moved.p_level > lived(1.1).p_level
    assert moved.point == Point(0.25)


def test_small_moves_of_the_neighbours_are_no_move() -> None:
    bias, _ = update_bias(lived(1.1), 60.0, [], Point(0.5, 0.05))
    assert bias.point == HERE


def test_pressure_and_bound_by_hand() -> None:
    assert pressure_of([Tenant("a", 1, 0.5, 0.4), Tenant("b", 1, 0.25, 1.0)]) == pytest.approx(0.45)
    assert bound(0.0, 0.5) == 1.0
    assert math.exp(1.6449 * 0.02) < bound(0.02, 0.95) < math.exp(1.68 * 0.02)  # Student's quantile


def test_a_second_uncapped_neighbour_is_another_place() -> None:
    """It slows as much again, so what was learnt beside one says little beside two."""
    one = [Tenant("a", 1)]
    here, there = pressure_of(one), pressure_of(one * 2)
    assert (here, there) == (1.0, 2.0)
    assert Point(0.5, here).like(0.5, there) < 0.02
    bias, _ = update_bias(lived(1.1), 60.0, window(1.1), Point(0.5, there))
    kept = from_plain(to_plain(bias), 0.0)
    assert kept.point == Point(0.5, there) and not kept.is_at(Point(0.5, here))


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 100),
            st.integers(1, 1000),
            st.integers(1, 64),
            st.floats(0.05, 1.0),
            st.floats(0, 1),
            st.floats(0.1, 1000),
        ),
        max_size=50,
    )
)
def test_stays_finite_and_certain_to_a_degree(
    windows: list[tuple[float, int, int, float, float, float]],
) -> None:
    bias, now = Bias(), 0.0
    for ratio, n, batch, share, pressure, span in windows:
        now += span
        bias, _ = update_bias(
            bias, now, [Measured(batch, n, ratio), Measured(1, n, ratio)], Point(share, pressure)
        )
        assert math.isfinite(bias.level)
        assert math.isfinite(bias.tilt)
        assert bias.p_level > 0
        assert bias.p_level * bias.p_tilt - bias.p_both**2 > 0
        assert bias.upper(0.95) > bias.mean
