"""The settled mean of a closed loop: sure of itself to the right degree, deaf to what was before
and to disturbances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.profiler.steady import LEAST_SLICES, Slice, mean_of


def drawn(
    random: np.random.Generator, slices: int, each: int, mean_ms: float = 10.0, cv: float = 0.05
) -> list[Slice]:
    times = random.normal(mean_ms, cv * mean_ms, (slices, each))
    return [Slice(each, round(float(row.sum()) * 1e6)) for row in times]


def test_too_few_slices_say_nothing() -> None:
    assert mean_of([Slice(3, 30)] * (LEAST_SLICES - 1) + [Slice(0, 0)] * 10) is None


def test_worked_example() -> None:
    found = mean_of([Slice(1, 9_000_000), Slice(1, 11_000_000)] * 4)
    assert found is not None
    assert found.ms == pytest.approx(10.0)
    assert found.cv == pytest.approx(np.sqrt(8 / 7) / 10)
    assert found.error == pytest.approx(np.sqrt(8 / 7) / 10 / np.sqrt(8))
    assert (found.count, found.left_out) == (8, 0)


def test_its_own_error_is_right() -> None:
    """Over many loops, the true mean is within two standard errors about as often as it should be,
    and the dispersion is found."""
    random = np.random.default_rng(3)
    found = [mean_of(drawn(random, 40, int(random.integers(1, 9)))) for _ in range(400)]
    kept = [m for m in found if m is not None]
    assert len(kept) == 400
    within = np.mean([abs(m.ms / 10.0 - 1) <= 2 * m.error for m in kept])
    assert 0.9 <= within <= 0.98
    assert np.mean([m.cv for m in kept]) == pytest.approx(0.05, rel=0.05)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(1.3, 5.0))
def test_the_first_executions_do_not_count(seed: int, slow: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    warming = drawn(random, slow, 4, 10.0 * factor)
    found = mean_of(warming + drawn(random, 30, 4))
    assert found is not None
    assert found.ms == pytest.approx(10.0, rel=0.03)


def test_a_disturbance_is_left_out_and_counted() -> None:
    random = np.random.default_rng(1)
    quiet = drawn(random, 40, 5)
    disturbed = [*quiet[:20], Slice(5, 400_000_000), *quiet[20:]]
    found = mean_of(disturbed)
    assert found is not None
    assert found.left_out == 1
    assert found.ms == pytest.approx(10.0, rel=0.01)


def test_no_more_than_a_tenth_is_left_out() -> None:
    half = [Slice(5, 50_000_000 + i) for i in range(10)] + [
        Slice(5, 100_000_000 + i) for i in range(10)
    ]
    found = mean_of(half[::2] + half[1::2])
    assert found is not None
    assert found.left_out <= 2
