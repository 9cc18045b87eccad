"""Response times: closed forms, an event-by-event simulation, properties, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.model.tail import TailStatus, response_time, response_times


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8, 0.9])
def test_exponential_service_one_at_a_time_is_m_m_1(load: float) -> None:
    """The response of M/M/1 is exponential with mean s / (1 - load)."""
    r = response_time(1000.0 * load / 4.0, [4.0], service_cv=1.0)
    mean = 4.0 / (1.0 - load)
    assert r.success
    assert r.mean_ms == pytest.approx(mean, rel=0.01)
    assert r.p50_ms == pytest.approx(mean * math.log(2), rel=0.02)
    assert r.p99_ms == pytest.approx(mean * math.log(100), rel=0.015)
    assert r.utilisation == pytest.approx(load, rel=1e-3)


@pytest.mark.parametrize("cv", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("load", [0.3, 0.85])
def test_mean_of_one_at_a_time_is_pollaczek_khinchine(cv: float, load: float) -> None:
    r = response_time(1000.0 * load / 4.0, [4.0], service_cv=cv)
    assert r.mean_ms == pytest.approx(4.0 + load * 4.0 * (1 + cv * cv) / (2 * (1 - load)), rel=0.01)


def test_overload_is_said() -> None:
    r = response_time(900.0, [4.0, 5.0, 6.0, 7.0])
    assert r.status is TailStatus.OVERLOAD
    assert "571" in r.message
    assert math.isnan(r.p99_ms)
    assert math.isnan(r.quantile(0.5))
    assert response_time(4000.0 / 7.0, [4.0, 5.0, 6.0, 7.0]).status is TailStatus.OVERLOAD


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s is 0"),
        ({"rate_per_s": math.nan}, "rate_per_s is nan"),
        ({"service_ms": []}, "service_ms has shape"),
        ({"service_ms": [1.0, -2.0]}, "batch 2 is -2"),
        ({"service_cv": 1.5}, "service_cv is 1.5"),
        ({"max_queue_delay_ms": -1.0}, "max_queue_delay_ms is -1"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], word: str) -> None:
    arguments: dict[str, object] = {"rate_per_s": 100.0, "service_ms": [4.0, 5.0]} | change
    r = response_time(arguments.pop("rate_per_s"), arguments.pop("service_ms"), **arguments)  # type: ignore[arg-type]
    assert r.status is TailStatus.BAD_INPUT
    assert word in r.message


curves = st.builds(
    lambda largest, a, b: a + b * np.arange(1.0, largest + 1), st.integers(1, 16), st.floats(0.5, 20.0), st.floats(0.05, 5.0)
)


@settings(max_examples=60, deadline=None)
@given(curves, st.floats(0.05, 0.9), st.floats(0.0, 1.0), st.floats(0.0, 10.0))
def test_percentiles_are_ordered_and_above_the_service(curve: np.ndarray, load: float, cv: float, delay: float) -> None:
    rate = 1000.0 * load * curve.size / curve[-1]
    r = response_time(rate, curve, service_cv=cv, max_queue_delay_ms=delay)
    assert r.success
    assert r.p50_ms <= r.p95_ms <= r.p99_ms
    assert r.p99_ms >= curve[0]
    assert 0.0 < r.utilisation <= 1.0
    assert 1.0 - 1e-9 <= r.mean_batch <= curve.size + 1e-9
    assert r.attainment(r.p99_ms) == pytest.approx(0.99, abs=0.002)


@settings(max_examples=30, deadline=None)
@given(curves, st.floats(0.05, 0.85))
def test_more_load_never_shortens_the_tail(curve: np.ndarray, load: float) -> None:
    rate = 1000.0 * load * curve.size / curve[-1]
    less, more = response_time(rate, curve), response_time(rate * 1.05, curve)
    assert more.p99_ms >= less.p99_ms * 0.999
    assert more.mean_ms >= less.mean_ms * 0.999


def test_rows_are_the_single_evaluations() -> None:
    curve = 3.0 + 0.7 * np.arange(1.0, 9.0)
    rows = response_times([200.0, 400.0, 5000.0], curve, batches=[4, 8, 8], max_queue_delay_ms=[0.0, 2.0, 0.0])
    assert rows.ok.tolist() == [True, True, False]
    assert rows.p99_ms[0] == response_time(200.0, curve[:4]).p99_ms
    assert rows.p99_ms[1] == response_time(400.0, curve, max_queue_delay_ms=2.0).p99_ms
    assert np.isnan(rows.p99_ms[2])
