"""Response times: closed forms, an event-by-event simulation, properties, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from igniterd.lab.replay.kernels.batches import replay_gpu
from igniterd.lab.replay.replay import gaps_s
from igniterd.queueing.tail import TailStatus, compiled_before, response_time, response_times


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8, 0.95])
def test_exponential_service_one_at_a_time_is_m_m_1(load: float) -> None:
    """The response of M/M/1 is exponential with mean s / (1 - load)."""
    r = response_time(1000.0 * load / 4.0, [4.0], service_cv=1.0)
    mean = 4.0 / (1.0 - load)
    assert r.success
    assert r.mean_ms == pytest.approx(mean, rel=0.01)
    assert r.p50_ms == pytest.approx(mean * math.log(2), rel=0.01)
    assert r.p99_ms == pytest.approx(mean * math.log(100), rel=0.01)
    assert r.quantile(0.9999) == pytest.approx(mean * math.log(1e4), rel=0.02)
    assert r.attainment(3 * mean) == pytest.approx(1 - math.exp(-3), abs=2e-3)
    assert r.utilisation == pytest.approx(load, rel=1e-3)


@pytest.mark.parametrize("cv", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("load", [0.3, 0.85, 0.99])
def test_mean_of_one_at_a_time_is_pollaczek_khinchine(cv: float, load: float) -> None:
    r = response_time(1000.0 * load / 4.0, [4.0], service_cv=cv)
    assert r.mean_ms == pytest.approx(4.0 + load * 4.0 * (1 + cv * cv) / (2 * (1 - load)), rel=0.01)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_constant_service_one_at_a_time_is_m_d_1(load: float) -> None:
    """P(wait <= t) = (1 - load) sum_(k <= t / s) (rate (k s - t))^k / k! exp(-rate (k s - t)),
    Erlang 1909."""
    r = response_time(1000.0 * load / 4.0, [4.0], service_cv=0.0)
    rate = load / 4.0
    for t in (1.0, 3.0, 6.0, 11.0, 19.0):
        exact = (1 - load) * sum(
            (rate * (4.0 * k - t)) ** k / math.factorial(k) * math.exp(-rate * (4.0 * k - t))
            for k in range(int(t / 4) + 1)
        )
        assert r.attainment(4.0 + t) == pytest.approx(exact, abs=0.006)


@pytest.mark.parametrize("arrival_scv", [0.0, 2.0, 9.0])
@pytest.mark.parametrize("load", [0.4, 0.8])
def test_exponential_service_behind_any_arrivals_is_g_m_1(arrival_scv: float, load: float) -> None:
    """The response of G/M/1 is exponential with rate mu (1 - sigma), sigma the root of sigma =
    A*(mu (1 - sigma))."""
    mu, rate = 0.25, 0.25 * load

    def transform(t: float) -> float:
        if arrival_scv == 0.0:
            return math.exp(-t / rate)
        p = 0.5 * (1 + math.sqrt((arrival_scv - 1) / (arrival_scv + 1)))
        return p * 2 * p * rate / (2 * p * rate + t) + (1 - p) * 2 * (1 - p) * rate / (
            2 * (1 - p) * rate + t
        )

    sigma = brentq(lambda x: transform(mu * (1 - x)) - x, 0.0, 1.0 - 1e-6)
    r = response_time(1000.0 * rate, [4.0], service_cv=1.0, arrival_scv=arrival_scv)
    assert r.mean_ms == pytest.approx(1 / (mu * (1 - sigma)), rel=0.015)
    assert r.p99_ms == pytest.approx(math.log(100) / (mu * (1 - sigma)), rel=0.015)


@pytest.mark.parametrize(("largest", "load"), [(2, 0.5), (4, 0.3), (4, 0.8), (16, 0.6), (16, 0.9)])
def test_exponential_batches_of_one_length_are_m_m_1_b(largest: int, load: float) -> None:
    """M/M(1,B)/1 (Medhi, Recent Developments in Bulk Queueing Models, 1984): with n queued behind a
    busy server p_n = p_0 r^n, where mu r^(B + 1) - (rate + mu) r + rate = 0, and the idle chance is
    mu / rate p_0. Mean response by Little's law."""
    mu = 0.25
    rate = load * largest * mu
    r = brentq(lambda z: mu * z ** (largest + 1) - (rate + mu) * z + rate, 0.0, 1.0 - 1e-9)
    first = 1.0 / (mu / rate + 1.0 / (1.0 - r))
    wait = first * r / (1 - r) ** 2 / rate
    told = response_time(1000.0 * rate, [4.0] * largest, service_cv=1.0)
    assert told.mean_ms == pytest.approx(wait + 4.0, rel=0.01)
    assert told.utilisation == pytest.approx(first / (1 - r), rel=0.005)


def test_constant_everything_below_capacity_waits_for_nothing() -> None:
    r = response_time(240.0, [4.0, 5.0], service_cv=0.0, arrival_scv=0.0)
    assert r.p99_ms == pytest.approx(4.0, rel=0.02)
    assert r.mean_batch == pytest.approx(1.0)
    assert r.utilisation == pytest.approx(0.96, rel=0.01)


CASES = [
    # largest, a, b: service a + b n; load; dispersion; arrival_scv
    (1, 4.0, 0.0, 0.7, 0.1, 0.0),
    (4, 3.0, 1.0, 0.8, 0.1, 0.0),
    (16, 4.0, 0.5, 0.6, 0.2, 0.0),
    # constant arrivals that hardly ever wait, and batches of up to 32 that never form
    (32, 10.5, 31.0, 0.56, 0.1, 0.0),
    (32, 10.5, 31.0, 0.71, 0.1, 0.0),
    (4, 3.0, 1.0, 0.3, 0.05, 1.0),
    (8, 1.0, 2.0, 0.7, 0.1, 1.0),
    (8, 4.0, 0.5, 0.5, 0.3, 1.0),
    (32, 3.0, 1.0, 0.8, 0.1, 1.0),
    (32, 3.0, 1.0, 0.4, 0.1, 1.0),
    (4, 3.0, 1.0, 0.5, 0.1, 4.0),
    (16, 4.0, 0.5, 0.6, 0.1, 4.0),
    (32, 3.0, 1.0, 0.5, 0.1, 2.0),
]


@pytest.mark.parametrize(("largest", "a", "b", "load", "cv", "arrival_scv"), CASES)
def test_it_is_what_events_one_by_one_come_to(
    largest: int, a: float, b: float, load: float, cv: float, arrival_scv: float
) -> None:
    """Median and P99 within 2 % of 1.5 million simulated requests (the simulation itself is good to
    about 0.7 %)."""
    curve = a + b * np.arange(1.0, largest + 1)
    rate = load * largest / curve[-1]
    told = response_time(1000 * rate, curve, service_cv=cv, arrival_scv=arrival_scv)
    seen, busy, batch = simulated(rate, curve, cv, 0.0, arrival_scv, 1_500_000)
    assert told.p50_ms == pytest.approx(np.quantile(seen, 0.5), rel=0.02)
    assert told.p99_ms == pytest.approx(np.quantile(seen, 0.99), rel=0.02)
    assert told.mean_ms == pytest.approx(seen.mean(), rel=0.015)
    assert told.utilisation == pytest.approx(busy, rel=0.01)
    assert told.mean_batch == pytest.approx(batch, rel=0.01)


@pytest.mark.parametrize(
    ("largest", "load", "cv", "delay", "arrival_scv"),
    [
        (4, 0.3, 0.05, 2.0, 1.0),
        (8, 0.5, 0.3, 1.5, 1.0),
        (16, 0.6, 0.1, 1.0, 4.0),
        (16, 0.6, 0.2, 0.5, 0.5),
        (32, 0.8, 0.1, 1.0, 1.0),
    ],
)
def test_with_a_delay_what_is_drawn_is_enough(
    largest: int, load: float, cv: float, delay: float, arrival_scv: float
) -> None:
    """Against many more requests of the same rule, which tests/queueing/test_batcher.py checks."""
    curve = 3.0 + np.arange(1.0, largest + 1)
    rate = load * largest / curve[-1]
    told = response_time(
        1000 * rate,
        curve,
        service_cv=cv,
        max_queue_delay_ms=delay * curve[0],
        arrival_scv=arrival_scv,
    )
    seen, busy, batch = simulated(rate, curve, cv, delay * curve[0], arrival_scv, 1_500_000)
    assert told.p50_ms == pytest.approx(np.quantile(seen, 0.5), rel=0.02)
    assert told.p99_ms == pytest.approx(np.quantile(seen, 0.99), rel=0.04)
    assert told.utilisation == pytest.approx(busy, rel=0.01)
    assert told.mean_batch == pytest.approx(batch, rel=0.02)


def test_one_at_a_time_a_delay_has_no_effect() -> None:
    assert response_time(150.0, [4.0], max_queue_delay_ms=5.0) == response_time(150.0, [4.0])


def simulated(
    rate: float, curve: np.ndarray, cv: float, delay: float, arrival_scv: float, requests: int
) -> tuple[np.ndarray, float, float]:
    """Response times, utilisation and mean batch of an event-by-event simulation; rate per ms."""
    times = np.cumsum(gaps_s(np.random.default_rng(7), requests, rate, arrival_scv))
    solo = np.concatenate([[0.0], curve])[None, :]
    latency, busy, batches = np.empty(requests), np.zeros(1), np.zeros(1, dtype=np.int64)
    offsets, none = np.array([0, requests]), np.zeros((1, 1, curve.size + 1, curve.size + 1))
    dispersion = np.array([[cv, 0.0, 1.0]])
    replay_gpu(
        times,
        offsets,
        np.array([curve.size]),
        np.array([delay]),
        solo,
        none,
        dispersion,
        3,
        times[-1],
        latency,
        busy,
        batches,
    )
    return latency, float(busy[0] / times[-1]), requests / int(batches[0])


@pytest.mark.parametrize("arrival_scv", [0.25, 0.5])
def test_between_constant_and_poisson_it_interpolates(arrival_scv: float) -> None:
    """Smoother than Poisson (gamma gaps): percentiles are interpolated, which is good to a few
    percent."""
    curve = 3.0 + np.arange(1.0, 9.0)
    rate = 0.6 * 8 / curve[-1]
    told = response_time(1000 * rate, curve, arrival_scv=arrival_scv)
    seen, *_ = simulated(rate, curve, 0.1, 0.0, arrival_scv, 500_000)
    assert told.p50_ms == pytest.approx(np.quantile(seen, 0.5), rel=0.04)
    assert told.p99_ms == pytest.approx(np.quantile(seen, 0.99), rel=0.06)


@pytest.mark.parametrize(
    ("instances", "arrival_scv", "delay"), [(2, 1.0, 0.0), (3, 0.5, 4.0), (4, 4.0, 0.0)]
)
def test_one_instance_is_not_several_in_one(
    instances: int, arrival_scv: float, delay: float
) -> None:
    """Several instances share a queue: better than each with its part of the load, worse than one
    that many times faster."""
    curve = 4.0 + 0.5 * np.arange(1.0, 9.0)
    rate = 0.7 * instances * 8 / curve[-1] * 1000
    together = response_time(
        rate, curve, instances=instances, arrival_scv=arrival_scv, max_queue_delay_ms=delay
    )
    apart = response_time(
        rate / instances, curve, arrival_scv=arrival_scv, max_queue_delay_ms=delay
    )
    faster = response_time(
        rate, curve / instances, arrival_scv=arrival_scv, max_queue_delay_ms=delay / instances
    )
    assert faster.p99_ms < together.p99_ms < apart.p99_ms
    assert together.quantile(0.5) == together.p50_ms
    assert together.attainment(together.p99_ms) == pytest.approx(0.99, abs=0.002)
    assert 0.0 < together.utilisation <= 1.0


def test_two_exponential_instances_are_m_m_2() -> None:
    """Mean response of M/M/2: s / (1 - load^2)."""
    r = response_time(350.0, [4.0], service_cv=1.0, instances=2)
    assert r.mean_ms == pytest.approx(4.0 / (1 - 0.7**2), rel=0.02)
    assert r.utilisation == pytest.approx(0.7, rel=0.01)


def test_several_instances_repeat_themselves() -> None:
    assert response_time(600.0, [4.0, 5.0], instances=2) == response_time(
        600.0, [4.0, 5.0], instances=2
    )


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
        ({"arrival_scv": -1.0}, "arrival_scv is -1"),
        ({"instances": 0}, "instances is 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], word: str) -> None:
    arguments: dict[str, object] = {"rate_per_s": 100.0, "service_ms": [4.0, 5.0]} | change
    r = response_time(arguments.pop("rate_per_s"), arguments.pop("service_ms"), **arguments)  # type: ignore[arg-type]
    assert r.status is TailStatus.BAD_INPUT
    assert word in r.message


curves = st.builds(
    lambda largest, a, b: a + b * np.arange(1.0, largest + 1),
    st.integers(1, 16),
    st.floats(0.5, 20.0),
    st.floats(0.05, 5.0),
)


@settings(max_examples=60, deadline=None)
@given(
    curves,
    st.floats(0.02, 0.98),
    st.floats(0.0, 1.0),
    st.floats(0.0, 10.0),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
def test_percentiles_are_ordered_and_above_the_service(
    curve: np.ndarray, load: float, cv: float, delay: float, arrival_scv: float
) -> None:
    rate = 1000.0 * load * curve.size / curve[-1]
    r = response_time(rate, curve, service_cv=cv, max_queue_delay_ms=delay, arrival_scv=arrival_scv)
    assert r.success
    assert r.p50_ms <= r.p95_ms <= r.p99_ms
    # percentiles are interpolated between the nodes of the distribution
    assert r.p99_ms >= curve[0] - r.step_ms
    assert 0.0 < r.utilisation <= 1.0
    assert 1.0 - 1e-9 <= r.mean_batch <= curve.size + 1e-9
    assert r.attainment(r.p99_ms * 1.001) >= 0.989


@settings(max_examples=30, deadline=None)
@given(curves, st.floats(0.05, 0.9), st.sampled_from([1.0, 3.0]))
def test_more_load_never_shortens_the_tail(
    curve: np.ndarray, load: float, arrival_scv: float
) -> None:
    rate = 1000.0 * load * curve.size / curve[-1]
    less, more = (response_time(r, curve, arrival_scv=arrival_scv) for r in (rate, rate * 1.05))
    assert more.p99_ms >= less.p99_ms * 0.997
    assert more.mean_ms >= less.mean_ms * 0.998


@settings(max_examples=30, deadline=None)
@given(curves, st.floats(0.05, 0.9), st.sampled_from([1.0, 3.0]))
def test_burstier_arrivals_never_shorten_the_tail(
    curve: np.ndarray, load: float, arrival_scv: float
) -> None:
    rate = 1000.0 * load * curve.size / curve[-1]
    less, more = (
        response_time(rate, curve, arrival_scv=b) for b in (arrival_scv, arrival_scv * 1.5)
    )
    assert more.p99_ms >= less.p99_ms * 0.99


def test_rows_are_the_single_evaluations() -> None:
    curve = 3.0 + 0.7 * np.arange(1.0, 9.0)
    rows = response_times(
        [200.0, 400.0, 5000.0], curve, batches=[4, 8, 8], max_queue_delay_ms=[0.0, 2.0, 0.0]
    )
    assert rows.ok.tolist() == [True, True, False]
    assert rows.p99_ms[0] == response_time(200.0, curve[:4]).p99_ms
    assert rows.p99_ms[1] == response_time(400.0, curve, max_queue_delay_ms=2.0).p99_ms
    assert np.isnan(rows.p99_ms[2])


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("arrival_scv", [1.0, 4.0])
@pytest.mark.parametrize("delay_ms", [0.0, 5.0])
@pytest.mark.parametrize("rate_per_s", [1e-3, 1e-8, 1e-30, 1e-310])
def test_a_rate_that_is_nearly_forgotten_is_that_of_a_request_alone(
    instances: int, arrival_scv: float, delay_ms: float, rate_per_s: float
) -> None:
    """As of a model that nobody has asked for hours: every figure must still be one."""
    service = np.linspace(20.0, 80.0, 8)
    asked = {"max_queue_delay_ms": delay_ms, "instances": instances, "arrival_scv": arrival_scv}
    found, rare = response_time(rate_per_s, service, **asked), response_time(1e-3, service, **asked)
    assert found.success
    assert found.mean_batch == pytest.approx(1.0, abs=1e-3)
    assert found.p99_ms == pytest.approx(rare.p99_ms, rel=0.02)
    assert found.p99_ms == pytest.approx(20.0 * (1 + 2.33 * 0.1) + delay_ms, rel=0.06)
    assert 0 <= found.utilisation < 1e-3
    rows = response_times([rate_per_s], service, **asked)
    assert rows.p99_ms[0] == found.p99_ms


def test_a_later_start_knows_that_the_queue_was_compiled_before() -> None:
    assert response_time(1.0, [10.0, 15.0]).success
    assert compiled_before()
