"""What is measured together: every pair both ways, and both ways in which a floored model is
slowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.perf.surface import Surface
from igniterd.profiler.pairs import co_runs, operating_points


@given(st.integers(2, 9), st.sampled_from([0.025, 2 / 132, 2 / 108, 0.5]))
def test_every_pair_runs_both_ways_within_one_gpu(count: int, unit: float) -> None:
    largest = {f"m{i}": 1 << i for i in range(count)}
    fast, slow = (
        co_runs({m: operating_points(b, unit, even=even) for m, b in largest.items()}, even=even)
        for even in (False, True)
    )
    for runs in (fast, slow):
        assert sorted((a.model, b.model) for a, b in runs) == sorted(
            (a, b) for a in largest for b in largest if a != b
        )
    for a, b in (*fast, *slow):
        assert a.share > 0 and b.share > 0 and a.share + b.share <= 1 + 1e-9
        for t in (a, b):
            assert (t.batch, t.share) in {
                p
                for even in (False, True)
                for p in operating_points(largest[t.model], unit, even=even)
            }
            assert t.batch <= largest[t.model]
    shares: dict[str, float] = {}
    changes = 0
    for run in fast:
        for t in run:
            changes += shares.get(t.model) != t.share
            shares[t.model] = t.share
    assert changes <= 3 * count
    assert len({(t.model, t.share) for run in slow for t in run}) == count


POINTS = [(b, s) for s in (0.1, 0.4, 0.6, 1.0) for b in (1, 2, 8, 32, 128)]


def surface(host_ms: float, item_ms: float) -> Surface:
    """Of a model whose batch takes ``host_ms`` of its host, or ``item_ms`` an item of the whole
    GPU."""
    batch, share = np.array(POINTS, dtype=np.float64).T
    return Surface(batch, share, np.maximum(host_ms, item_ms * (batch + 0.5) / share))


def test_without_a_floor_the_settings_are_those_of_the_shipped_profile() -> None:
    known = surface(0.0, 0.3)
    assert not known.floored
    assert operating_points(32, 0.025, even=False, surface=known) == ((16, 0.4), (2, 0.6))
    assert operating_points(32, 0.025, even=True, surface=known) == ((4, 0.5), (8, 0.5))
    assert operating_points(32, 0.025, even=False) == ((16, 0.4), (2, 0.6))


@pytest.mark.parametrize("item_ms", [0.1, 0.3])
@pytest.mark.parametrize("even", [False, True])
def test_a_floored_model_is_met_on_the_floor_and_well_above_the_knee(
    item_ms: float, even: bool
) -> None:
    known = surface(5.0, item_ms)
    assert known.floored
    points = operating_points(128, 0.025, even=even, surface=known)
    (low, low_share), (high, high_share) = points if even else reversed(points)
    assert item_ms * (low + 0.5) / low_share < 5.0 / 1.3
    assert item_ms * (high + 0.5) / high_share > 2.3 * 5.0
    usual = 8 if even else 16  # no larger than it takes
    assert high == usual or item_ms * (high / 2 + 0.5) / high_share < 2.7 * 5.0
    assert low_share + high_share == pytest.approx(1.0)


def test_where_no_batch_is_well_above_the_floor_it_is_the_largest() -> None:
    known = surface(5.0, 0.1)
    assert known.floored
    assert operating_points(24, 0.025, even=False, surface=known)[0] == (24, 0.4)


def test_the_setting_on_the_floor_has_room_to_be_slowed() -> None:
    known = surface(5.0, 1.0)
    assert known.floored
    assert operating_points(64, 0.025, even=False, surface=known) == ((16, 0.4), (1, 0.6))
