"""What may have happened of late, as a straightforward reading of the same model says it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.kernels import trends


def counts(*arrivals: float, span_s: float = 1.0) -> np.ndarray:
    return np.array([[span_s, n] for n in arrivals], dtype=float)


def by_least_squares(
    recent: np.ndarray, dispersion: float, deviations: float, horizon_s: float
) -> float:
    """:func:`trends.foreseen` with every line fitted on its own, from counts of one second each."""
    y, n = recent[:, 1], len(recent)
    t = np.arange(n) - n + 0.5
    rate = (y.sum() + 1) / n
    noise = rate * dispersion
    log, mean, variance = (
        [math.log(1 - trends.STEP - trends.BEND - trends.END)],
        [y.mean()],
        [noise / n],
    )
    width = 0.0

    def found(prior: float, fitted: float, v: float, sd: float, at: float, reach: float) -> None:
        u = (sd * rate) ** 2
        log.append(
            math.log(prior * width / max(n, trends.KEEP_S))
            + (fitted**2 / v - fitted**2 / (v + u) + math.log(v / (v + u))) / 2
        )
        mean.append(at + u / (u + v) * fitted * reach)
        variance.append(noise / n + u * v / (u + v) * reach**2)

    for age in range(1, n + 1):
        width += 1
        if age > trends.NEAR and age % trends.STRIDE:
            continue
        before, after = y[: n - age], y[n - age :]
        if age < n:
            jump, v = after.mean() - before.mean(), noise * (1 / age + 1 / len(before))
            found(trends.STEP, jump, v, trends.JUMP, before.mean(), 1.0)
            known = (trends.JUMP * rate) ** 2 / ((trends.JUMP * rate) ** 2 + v)
            variance[-1] = (
                known * max(mean[-1], 1 / age) * dispersion / age + (1 - known) * noise / n
            )
        shapes = (
            [(trends.BEND, np.clip(t + age, 0, None), float(age))] if age >= trends.LEAST_S else []
        )
        shapes += (
            [(trends.END, np.clip(t + age, None, 0), 0.0)] if n - age >= trends.LEAST_S else []
        )
        for prior, x, end in shapes:
            own = 1 / 12 * ((x != 0).sum())  # of a count that lasts a second, around its middle
            spread = ((x - x.mean()) ** 2).sum() + own
            slope = ((x - x.mean()) * y).sum() / spread
            reach = end - x.mean() + (horizon_s if prior == trends.BEND and slope > 0 else 0.0)
            found(prior, slope, noise / spread, trends.SLOPE, y.mean(), reach)
        width = 0.0
    weight = np.exp(np.array(log) - max(log))
    weight /= weight.sum()
    first = float((weight * mean).sum())
    second = float((weight * (np.array(variance) + np.array(mean) ** 2)).sum())
    return max(
        0.0,
        first
        + deviations * math.sqrt(second - first**2)
        + trends.skew(deviations) * dispersion / n,
    )


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=80),
    st.floats(1, 5),
    st.floats(0, 2.5),
    st.floats(0, 20),
)
def test_as_least_squares_says(
    arrivals: list[int], dispersion: float, deviations: float, horizon_s: float
) -> None:
    recent = counts(*arrivals)
    high, since = trends.foreseen(recent, dispersion, deviations, horizon_s)
    assert high == pytest.approx(
        by_least_squares(recent, dispersion, deviations, horizon_s), rel=1e-6, abs=1e-6
    )
    assert 0 <= since < len(recent)


def test_a_ramp_is_carried_on_and_a_fall_is_not() -> None:
    rising = counts(*[300.0] * 30, *(300 + 5 * i for i in range(30)))
    assert trends.foreseen(rising, 1.0, 0.0, 8.0)[0] == pytest.approx(300 + 5 * 37.5, rel=0.03)
    falling = counts(*[300.0] * 30, *(300 - 5 * i for i in range(30)))
    assert trends.foreseen(falling, 1.0, 0.0, 8.0)[0] == pytest.approx(300 - 5 * 29.5, rel=0.06)


def test_a_ramp_that_ended_is_not_carried_on() -> None:
    ended = counts(*(200 + 5 * i for i in range(30)), *[350.0] * 20)
    assert trends.foreseen(ended, 1.0, 0.0, 8.0)[0] == pytest.approx(350, rel=0.02)


def test_what_came_before_a_certain_step_is_not_worth_keeping() -> None:
    assert trends.foreseen(counts(*[100.0] * 30, *[200.0] * 5), 1.0, 0.0, 8.0)[1] == 30
    assert trends.foreseen(counts(*[100.0] * 30, *[104.0] * 5), 1.0, 0.0, 8.0)[1] == 0


def test_old_counts_are_left_out_but_never_the_last_few() -> None:
    recent = np.empty((0, 2))
    for i in range(200):
        recent = trends.remembered(recent, 1.0, float(i))
    assert recent[:, 1].tolist() == [float(i) for i in range(200 - int(trends.KEEP_S), 200)]
    for i in range(20):
        recent = trends.remembered(recent, 60.0, float(i))
    assert recent[:, 1].tolist() == [float(i) for i in range(20 - trends.KEEP, 20)]
