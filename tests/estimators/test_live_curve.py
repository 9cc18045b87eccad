import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.live_curve import (
    MOST,
    LiveCurve,
    Points,
    Size,
    describe,
    from_plain,
    points,
    to_plain,
    update_curve,
    where,
)
from igniterd.lab.gpu.truth import Truth

SIZES = (1, 2, 3, 4, 5)


def seen(
    curve: LiveCurve,
    at_s: float,
    executions: dict[int, int],
    service_ms: dict[int, float],
    share: float | None = 0.5,
) -> LiveCurve:
    return update_curve(curve, at_s, executions, service_ms, share=share, instances=1)


def watched(model: str, share: float, seconds: int) -> LiveCurve:
    """Traffic of one model of the measured tables; batches 1 to 5."""
    rng, truth, curve = np.random.default_rng(2), Truth.v100(), LiveCurve()
    for t in range(seconds):
        counts = rng.multinomial(60, [0.3, 0.3, 0.2, 0.15, 0.05])
        runs = {b: int(n) for b, n in zip(SIZES, counts, strict=True) if n}
        times = {
            b: truth.latency_ms(model, b, share) * float(rng.gamma(n / 0.01, 0.01 / n))
            for b, n in runs.items()
        }
        curve = seen(curve, float(t), runs, times, share)
    return curve


def test_nothing_is_known_before_the_first_execution() -> None:
    assert points(LiveCurve(), 8, 0.0) is None
    assert seen(LiveCurve(0.5), 1.0, {}, {}).sizes == {}


def test_one_size_by_hand_and_wide_bounds_elsewhere() -> None:
    curve = seen(LiveCurve(), 0.0, {4: 50}, {4: 20.0})
    known = points(curve, 8, 0.0)
    assert known is not None
    assert known.mean_ms[3] == pytest.approx(20.0)
    # the usual slope: 60 % more for twice the batch
    assert known.mean_ms[7] == pytest.approx(20.0 * 1.6)
    assert known.error[3] < 0.02
    assert known.error[7] > 0.1
    assert describe(known) == "batch 4 within 4 %, 1 to 3 and 5 to 8 not seen, within 70 %"


def test_a_line_is_found_again() -> None:
    curve = LiveCurve()
    for t in range(30):
        curve = seen(curve, float(t), dict.fromkeys(SIZES, 20), {b: 5.0 + 3.0 * b for b in SIZES})
    known = points(curve, 16, 30.0)
    assert known is not None
    np.testing.assert_allclose(known.mean_ms, 5.0 + 3.0 * np.arange(1, 17), rtol=0.015)
    assert known.error[15] < 0.05


@pytest.mark.parametrize(
    ("model", "share"), [("resnet50", 0.4), ("vgg19", 0.5), ("alexnet", 0.2), ("ssd", 1.0)]
)
def test_measured_tables_are_learnt_within_the_errors_it_states(model: str, share: float) -> None:
    known = points(watched(model, share, 60), 16, 60.0)
    true = np.array([Truth.v100().latency_ms(model, b, share) for b in range(1, 17)])
    assert known is not None
    missed = np.abs(known.mean_ms / true - 1)
    assert missed[:5].max() < 0.025
    assert (missed <= 2.5 * known.error).all()


def test_another_share_begins_another_curve() -> None:
    curve = seen(LiveCurve(), 0.0, {1: 10}, {1: 5.0}, share=None)
    assert seen(curve, 1.0, {2: 10}, {2: 6.0}, share=None).sizes.keys() == {1, 2}
    assert seen(curve, 1.0, {2: 10}, {2: 6.0}, share=0.3).sizes.keys() == {2}


def test_one_odd_window_is_held_back_and_a_lasting_change_is_followed() -> None:
    curve = LiveCurve()
    for t in range(60):
        curve = seen(curve, float(t), {4: 20}, {4: 10.0})
    odd = seen(curve, 60.0, {4: 20}, {4: 100.0})
    assert odd.sizes[4].mean_ms < 10.1
    for t in range(60, 600):
        curve = seen(curve, float(t), {4: 20}, {4: 15.0})
    assert curve.sizes[4].mean_ms == pytest.approx(15.0, rel=0.02)


def test_kept_and_taken_up_again() -> None:
    curve = watched("vgg19", 0.5, 30)
    again = from_plain(to_plain(curve, 30.0), 1000.0)
    before, after = points(curve, 8, 30.0), points(again, 8, 1000.0)
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after.mean_ms, before.mean_ms, rtol=1e-4)
    np.testing.assert_allclose(after.error, before.error, rtol=0.01)


@pytest.mark.parametrize(
    "sizes", [{"0": [1, 2.0]}, {"1": [1, -2.0]}, {"x": [1, 2.0]}, {"1": [math.nan, 2.0]}]
)
def test_nonsense_is_not_taken_up(sizes: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError):
        from_plain({"share": 0.5, "instances": 1, "sizes": sizes}, 0.0)


def test_words() -> None:
    def at(error: list[float], tested: list[float]) -> str:
        return describe(Points(np.ones(len(error)), np.array(error), np.array(tested)))

    assert at([0.01, 0.012], [5, 9]) == "batches 1 to 2 within 3 %"
    assert (
        at([0.01, 0.012, 0.05], [5, 9, 0]) == "batches 1 to 2 within 3 %, 3 not seen, within 10 %"
    )
    assert at([0.3], [0.0]) == "no batch seen"
    assert where(None) == "as it runs now"
    assert where(0.25) == "at a share of 25.0%"


@given(
    st.dictionaries(
        st.integers(1, 64),
        st.tuples(st.floats(0.001, 1e5), st.floats(1e-3, 1e5)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 64),
)
def test_service_times_are_positive_and_never_fall_with_the_batch(
    given_: dict[int, tuple[float, float]], largest: int
) -> None:
    sizes = {b: Size(min(MOST, n), ms, 0.0) for b, (n, ms) in given_.items()}
    known = points(LiveCurve(0.5, 1, sizes), largest, 1.0)
    assert known is not None
    assert known.mean_ms.shape == known.error.shape == (largest,)
    assert (known.mean_ms > 0).all()
    assert (np.diff(known.mean_ms) >= 0).all()
    assert np.isfinite(known.error).all()
