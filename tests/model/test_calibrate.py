import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.model.calibrate import STREAK, Bias, learnt


def test_no_measurement_changes_nothing() -> None:
    bias = Bias()
    assert learnt(bias, 1.0, 1.2, 0) == bias
    assert learnt(bias, 1.0, math.nan, 10) == bias
    assert learnt(bias, 1.0, 0.0, 10) == bias


def test_one_update_by_hand() -> None:
    bias = learnt(Bias(), 1.0, math.exp(0.02), 100)
    gain = 0.0025 / (0.0025 + 0.0001 + 0.000225)
    assert bias.log_mean == pytest.approx(gain * 0.02)
    assert bias.log_var == pytest.approx((1 - gain) * 0.0025)


def test_learns_a_constant_bias_and_grows_sure() -> None:
    rng = np.random.default_rng(3)
    bias = Bias()
    for t in range(60):
        bias = learnt(bias, float(t), 1.12 * math.exp(rng.normal(0, 0.02)), 20)
    assert bias.mean == pytest.approx(1.12, rel=0.02)
    assert 1.12 < bias.upper(0.95) < 1.12 * 1.04


def test_one_outlier_moves_little_but_a_changed_model_is_believed() -> None:
    bias = Bias()
    for t in range(60):
        bias = learnt(bias, float(t), 1.0, 20)
    assert learnt(bias, 60.0, 5.0, 20).mean < 1.08
    for t in range(STREAK):
        bias = learnt(bias, 60.0 + t, 2.0, 20)
    assert bias.mean == pytest.approx(2.0, rel=0.01)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 1000)), max_size=50))
def test_stays_finite_and_the_bound_is_above(windows: list[tuple[float, int]]) -> None:
    bias = Bias()
    for t, (ratio, n) in enumerate(windows):
        bias = learnt(bias, float(t), ratio, n)
    assert math.isfinite(bias.log_mean)
    assert bias.log_var > 0
    assert bias.upper(0.95) > bias.mean
