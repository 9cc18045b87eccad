import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.perf import builtin_profile, load_model
from igniterd.queueing import table as guess
from igniterd.queueing.kernels import table as kernel
from igniterd.queueing.tail import response_time

MODEL = load_model(builtin_profile("v100"))
SIZES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])


def straight(x: float, largest: int) -> np.ndarray:
    """Service times with the leading element that is not used."""
    return np.append(1.0, (x + np.arange(1, largest + 1)) / (x + 1.0))


@pytest.mark.parametrize(
    ("x", "load", "cap", "arrival_scv"),
    [(1.0, 0.62, 8, 1.0), (10.0, 0.82, 32, 4.0), (0.3, 0.93, 4, 0.0), (30.0, 0.16, 2, 16.0)],
)
def test_the_shipped_table_is_what_the_queue_says(
    x: float, load: float, cap: int, arrival_scv: float
) -> None:
    curve = straight(x, cap)
    exact = response_time(1e3 * load * cap / curve[cap], curve[1:], arrival_scv=arrival_scv)
    at = (
        guess.BURSTS.index(arrival_scv),
        guess.SHAPES.index(x),
        guess.LOADS.index(load),
        guess.CAPS.index(cap),
    )
    log_p99, mean_batch = guess.shipped()[(slice(None), *at)]
    assert float(np.exp(log_p99)) / (1 - load) == pytest.approx(exact.p99_ms, rel=0.01)
    assert float(mean_batch) == pytest.approx(exact.mean_batch, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODEL.models),
    st.floats(0.1, 1.0),
    st.sampled_from(SIZES.tolist()),
    st.floats(0.05, 0.96),
    st.floats(1.0, 12.0),
)
def test_guesses_are_near_the_queue_for_real_models(
    name: str, share: float, cap: int, load: float, arrival_scv: float
) -> None:
    curve = MODEL.service_curve_ms(name, share, (), 32)[1]
    rate = load * cap / curve[cap - 1]
    exact = response_time(1e3 * rate, curve[:cap], arrival_scv=arrival_scv)
    p99_ms, busy, batch = kernel.evaluate(
        guess.queue_table(arrival_scv), np.append(1.0, curve), cap, rate
    )
    assert p99_ms == pytest.approx(exact.p99_ms, rel=0.2)
    assert busy == pytest.approx(exact.utilisation, abs=0.25)
    assert batch == pytest.approx(exact.mean_batch, rel=0.6)


def test_guesses_are_mostly_much_nearer() -> None:
    rng, off = np.random.default_rng(3), []
    for _ in range(200):
        curve = MODEL.service_curve_ms(
            str(rng.choice(MODEL.models)), rng.uniform(0.1, 1.0), (), 32
        )[1]
        cap = int(rng.choice(SIZES))
        rate = rng.uniform(0.05, 0.96) * cap / curve[cap - 1]
        exact = response_time(1e3 * rate, curve[:cap])
        p99_ms, busy, batch = kernel.evaluate(
            guess.queue_table(1.0), np.append(1.0, curve), cap, rate
        )
        off.append(
            (
                abs(p99_ms / exact.p99_ms - 1),
                abs(busy - exact.utilisation),
                abs(batch / exact.mean_batch - 1),
            )
        )
    assert np.all(np.median(off, axis=0) < (0.03, 0.02, 0.03))


def test_beyond_the_table_is_overload() -> None:
    p99_ms, busy, batch = kernel.evaluate(guess.queue_table(1.0), straight(1.0, 4), 4, 2.0)
    assert (p99_ms, busy, batch) == (np.inf, 1.0, 4.0)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 0.6),
    st.floats(10.0, 200.0),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(1.0, 1.8),
)
def test_least_units_hold_and_one_less_does_not_wherever_the_search_begins(
    rate: float, goal: float, start: int, low: int, slower: float
) -> None:
    alone = np.pad(
        MODEL.share_curves_ms("resnet50", np.arange(1, 41) / 40, (), 32)[1],
        ((0, 0), (1, 0)),
        constant_values=1.0,
    )
    table, mend, ratio = guess.queue_table(1.0), np.ones(SIZES.size), np.full(33, slower)
    units, size, p99_ms, *_ = kernel.least_units(
        table, alone, ratio, SIZES, mend, rate, goal, low, 40, start
    )
    # flat where there is room
    fares = {
        u: kernel.best(table, alone[u - 1] * ratio, SIZES, mend, rate)[1] for u in range(low, 41)
    }
    assert units == 41 or fares[units] <= goal
    assert units == low or fares[units - 1] > goal
    if min(fares.values()) > goal:
        assert units == 41
    assert p99_ms == min(
        kernel.evaluate(table, alone[min(units, 40) - 1] * ratio, int(b), rate)[0] for b in SIZES
    )
    assert 0 <= size < SIZES.size
