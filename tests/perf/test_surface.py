"""The solo surface: through what was measured, certain there, monotone everywhere, and indifferent
to the unit of time."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.arrays import F64
from igniterd.data.v100 import build
from igniterd.perf.surface import Surface, make_grid

BATCHES, UNIT = 32, 0.025


def surface_of(model: str, factor: float = 1.0) -> Surface:
    points = list(build.solo_points(model, build.SOLO_POINTS))
    batch = np.array([p.batch for p in points], dtype=float)
    return Surface(
        batch,
        np.array([p.share for p in points]),
        factor * np.array([p.latency_ms for p in points]),
    )


@pytest.mark.parametrize("model", ["alexnet", "resnet50", "vgg19", "ssd"])
def test_measured_points_are_met_within_noise_and_known_best(model: str) -> None:
    surface = surface_of(model)
    time, variance = surface.at(surface.batch, surface.share)
    assert np.abs(time / surface.gpu_ms - 1).max() < 0.03
    _, between = surface.at(np.array([3.0, 12.0, 24.0]), np.array([0.5, 0.3, 0.6]))
    assert np.sqrt(variance).max() < 0.01 < np.sqrt(between).min()


def test_the_unit_of_time_does_not_matter() -> None:
    grid = make_grid(BATCHES, UNIT)
    time, _, variance = surface_of("resnet50").table(grid)
    slowed, _, same = surface_of("resnet50", 250.0).table(grid)
    assert slowed == pytest.approx(250 * time, rel=1e-6) and same == pytest.approx(
        variance, rel=1e-4
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 64),
            st.sampled_from([0.1, 0.2, 0.35, 0.5, 0.8, 1.0]),
            st.floats(0.7, 1.4),
        ),
        min_size=3,
        max_size=14,
        unique_by=lambda p: (p[0], p[1]),
    )
)
def test_tables_of_any_measurements_are_monotone_and_positive(
    points: list[tuple[int, float, float]],
) -> None:
    batch, share, noise = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    gpu, host, variance = Surface(batch, share, (batch + 0.3) / share * noise + 1).table(
        make_grid(64, 0.05)
    )
    assert (gpu > 0).all() and (variance >= 0).all() and np.isfinite(variance).all()
    assert (host > 0).all() or not host.any()
    for time in (gpu, host):
        assert (np.diff(time, axis=0) >= -1e-12 * time[1:]).all() and (
            np.diff(time, axis=1) <= 1e-12 * time[:, 1:]
        ).all()


def test_one_share_measured_still_says_more_sms_are_faster() -> None:
    """A model in a server without shares of its own is measured at the whole GPU only; less of it
    cannot be free."""
    batch = np.array([1.0, 2, 4, 8, 16, 32])
    time, variance = Surface(batch, np.ones(6), 1 + 0.5 * batch).at(
        np.array([16.0, 16.0]), np.array([1.0, 0.25])
    )
    assert time[1] > 2 * time[0] and variance[1] > 9 * variance[0]


def test_work_per_sm_is_what_counts() -> None:
    """A step of the waves seen at one (batch, share) is expected at another with the same batch /
    share."""
    batch, share = np.array([1.0, 1, 8, 32, 4]), np.array([1.0, 0.2, 0.8, 0.2, 0.8])
    smooth = 0.5 * batch / share + 1.5
    stepped = smooth * np.array([1, 1, 1, 1, 1.08])
    before, _ = Surface(batch[:4], share[:4], smooth[:4]).at(
        np.array([3.0, 4.0]), np.array([0.6, 0.3])
    )
    after, _ = Surface(batch, share, stepped).at(np.array([3.0, 4.0]), np.array([0.6, 0.3]))
    assert (
        after[0] / before[0] > 1.03
        and abs(after[1] / before[1] - 1) < abs(after[0] / before[0] - 1) / 2
    )


@pytest.mark.parametrize(
    ("largest", "unit", "units"),
    [(1, 0.025, 40), (32, 0.025, 40), (64, 0.1, 10), (100, 1.0, 1), (1000, 2 / 132, 66)],
)
def test_grids_begin_at_one_and_reach_the_largest_batch(
    largest: int, unit: float, units: int
) -> None:
    grid = make_grid(largest, unit)
    assert (
        grid.batches[0] == 1
        and grid.batches[-1] == max(largest, 2)
        and (np.diff(grid.batches) >= 1).all()
    )
    assert grid.units == units and grid.shares[-1] == pytest.approx(units * unit)


SPREAD = (
    (1, 0.2),
    (1, 0.5),
    (1, 1.0),
    (2, 0.6),
    (4, 0.4),
    (4, 0.8),
    (16, 0.4),
    (32, 0.7),
    (64, 0.2),
    (64, 1.0),
)


def measured(time: Callable[[F64, F64], F64], noise: float = 0.0) -> Surface:
    batch, share = np.array(SPREAD, dtype=float).T
    off = 1 + noise * np.array([1, -1, -1, 1, 1, -1, 1, -1, 1, -1])
    return Surface(batch, share, time(batch, share) * off)


def eager(batch: F64, share: F64) -> F64:
    """A network whose launches take the host 5 ms."""
    return np.asarray(np.maximum(5.0, (0.2 * batch + 0.1) / share + 0.5 + 0.1 * batch))


def test_a_floor_is_found_where_the_times_have_one() -> None:
    surface = measured(eager)
    assert surface.floored and not surface.plain
    batch, share = np.array([1.0, 8, 8, 48]), np.array([0.7, 0.2, 1.0, 0.5])
    assert surface.at(batch, share)[0] == pytest.approx(eager(batch, share), rel=0.05)
    assert surface.parts(batch, share).host == pytest.approx(5.0, rel=0.03)


def test_no_floor_is_seen_where_there_is_none() -> None:
    surface = measured(lambda b, s: (0.5 * b + 0.3) / s + 1 + 0.05 * b)
    assert surface.plain and not surface.floored
    assert not surface.table(make_grid(64, 0.05)).host.any()


def test_flat_and_then_steep_is_followed() -> None:
    """As an LLM decodes: the weights fetched hide what they are multiplied with."""

    def decode(batch: F64, share: F64) -> F64:
        return np.asarray(np.maximum(0.16 * batch / share, 4 / share) ** 2 + 11**2) ** 0.5

    surface = measured(decode)
    batch, share = np.array([8.0, 16, 48]), np.array([0.3, 0.9, 0.5])
    assert surface.at(batch, share)[0] == pytest.approx(decode(batch, share), rel=0.12)


def test_noise_widens_the_bound_of_a_new_measurement() -> None:
    quiet = measured(eager)
    noisy = measured(eager, noise=0.08)
    at = np.array([16.0]), np.array([0.6])
    assert noisy.at(*at)[1] > 2 * quiet.at(*at)[1]


def test_probabilities_of_what_is_kept_add_up_to_one() -> None:
    kept = measured(eager, noise=0.02).hypotheses
    assert sum(weight for weight, _ in kept) == pytest.approx(1)
    assert [w for w, _ in kept] == sorted((w for w, _ in kept), reverse=True)
