"""Which points are measured: the ends first, then what takes most off the uncertainty for its
time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.lab.gpu.truth import Truth
from igniterd.profiler.points import (
    Point,
    Span,
    Unknown,
    _use,
    most_out_of_order,
)

TRUTH = Truth.v100()


def cheap(point: Point, ms: float) -> tuple[float, float]:
    return 1.0, 0.005


def measured(model: str, *points: Point) -> dict[Point, tuple[float, float]]:
    return {p: (TRUTH.solo_ms(model, *p), 0.005) for p in points}


@given(st.integers(1, 300), st.floats(0.01, 1.0), st.sampled_from([80, 108, 132, 6]))
def test_the_range_holds_whole_units_and_its_ends(most: int, least: float, sms: int) -> None:
    span = Span(most, least, 2 / sms)
    assert span.batches[0] == 1 and span.batches[-1] == most
    assert span.shares[-1] == 1.0
    assert all(0 < s <= 1 and abs(s * sms / 2 - round(s * sms / 2)) < 1e-9 for s in span.shares)
    assert set(span.corners) <= set(span.candidates)
    assert {b for b, _ in span.corners} == {span.batches[0], span.batches[-1]}
    assert {s for _, s in span.corners} == {span.shares[0], span.shares[-1]}


def test_more_points_leave_less_unknown_and_the_best_is_the_one_that_does_most() -> None:
    span = Span(32, 0.1, 0.025)
    known = measured("resnet50", *span.corners)
    for _ in range(4):
        before = Unknown(span, known)
        best = before.best(cheap)
        assert best is not None
        assert best not in known
        gains = before.gains(span.candidates, np.full(len(span.candidates), 0.005))
        assert gains[span.candidates.index(best)] == max(
            g for p, g in zip(span.candidates, gains, strict=True) if p not in known
        )
        known |= measured("resnet50", best)
        assert Unknown(span, known).deviation < before.deviation


def test_the_gain_foretold_is_the_gain_that_comes() -> None:
    """With the coefficients held, which a point on the fitted surface does nearly, the mean
    variance falls by the gain."""
    span = Span(32, 0.1, 0.025)
    known = measured("vgg19", *span.corners, (4, 0.5), (2, 0.8))
    before = Unknown(span, known)
    point = (8, 0.3)
    (gain,) = before.gains([point], np.array([0.0]))
    after = Unknown(span, known | {point: (before.time_ms(point), 0.0)})
    assert before.deviation**2 - after.deviation**2 == pytest.approx(gain, rel=0.15)


def test_a_dear_reload_keeps_it_at_the_share_that_is_applied() -> None:
    span = Span(32, 0.1, 0.025)
    unknown = Unknown(span, measured("ssd", *span.corners))
    best = unknown.best(lambda p, ms: (5.0 + (5000.0 if p[1] != 0.1 else 0.0), 0.005))
    assert best is not None
    assert best[1] == 0.1


FLAT, KNEE = 11.5, 72.0
"""A floor (ms), and the work per GPU (batch / share) above which the time climbs."""


def flat_then_steep(point: Point) -> float:
    """Time (ms), good to a percent in no order."""
    off = 0.01 * np.sin(37.0 * point[0] + 91.0 * point[1])
    return float(FLAT * max(1.0, point[0] / point[1] / KNEE) * (1 + off))


@pytest.mark.parametrize("largest", [64, 256, 512])
def test_points_reach_the_knee_of_a_floored_model_and_are_not_spent_on_the_floor(
    largest: int,
) -> None:
    span = Span(largest, 0.1, 2 / 132)
    first = (*span.corners, (2, 0.6), (min(128, largest), 0.4))
    known = {p: (flat_then_steep(p), 0.004) for p in first}
    while len(known) < 11:
        unknown = Unknown(span, known)
        assert unknown.surface.floored
        best = unknown.best(cheap)
        assert best is not None
        known[best] = flat_then_steep(best), 0.004
    work = [b / s / KNEE for b, s in list(known)[len(first) :]]
    assert min(work) > 0.4
    assert any(w < 1.2 for w in work) and any(1.2 < w < 3.0 for w in work)
    assert Unknown(span, known).deviation < 0.03


def test_every_batch_counts_for_1_over_itself_however_many_there_are() -> None:
    """The region of use has fewer batches than there are, with the weights of all."""
    span = Span(512, 0.1, 0.025)
    use, weight = _use(span)
    assert use.shape[0] < 150 and use[-1] == 512
    assert weight.sum() == pytest.approx(np.sum(1.0 / np.arange(1.0, 513.0)))
    assert np.array_equal(weight[:60], 1.0 / use[:60])
    assert _use(Span(1, 0.1, 0.025))[0].tolist() == [1.0]


def test_the_slowest_corner_has_as_large_a_batch_as_there_is_time_for() -> None:
    span = Span(48, 0.1, 0.025)
    known = measured("ssd", (1, 1.0), (32, 1.0), (1, 0.1))
    unknown = Unknown(span, known)

    def ten(point: Point, ms: float) -> tuple[float, float]:
        return 0.01 * ms, 0.005

    assert unknown.slowest(ten, 1e6) == (48, 0.1)
    assert unknown.slowest(ten, 0.01 * unknown.time_ms((16, 0.1)) + 1e-9) == (16, 0.1)
    assert unknown.slowest(ten, 0.0) is None
    assert Unknown(span, known | measured("ssd", (8, 0.1))).slowest(ten, 1e6) is None
    assert Unknown(Span(48, 1.0, 0.025), known).slowest(ten, 1e6) is None


def test_every_candidate_measured_leaves_none() -> None:
    span = Span(2, 1.0, 0.5)
    assert Unknown(span, measured("alexnet", (1, 1.0), (2, 1.0))).best(cheap) is None


def test_the_point_that_contradicts_most_is_named() -> None:
    right = {(b, s): (b / s, 0.01) for b in (1, 4, 16) for s in (0.1, 0.5, 1.0)}
    assert most_out_of_order(right, 0.05) is None
    assert most_out_of_order(right | {(16, 0.5): (1.5, 0.01)}, 0.05) == (16, 0.5)
    assert most_out_of_order({(1, 1.0): (2.0, 0.3), (2, 1.0): (1.0, 0.01)}, 0.05) == (1, 1.0)
