"""Which points to measure: the shipped ones are what the design chooses, and more points leave less
unknown."""

import numpy as np
import pytest

from bench.design import solo_design
from igniterd.data.v100 import build
from igniterd.perf.surface import prior_covariance

MEASURED = sorted({(p.batch, p.share) for p in build.solo_points("ssd")})


def left(points: tuple[tuple[int, float], ...]) -> float:
    """Variance left at (3, 0.3) and (12, 0.7)."""
    batch, share = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points])
    at = np.array([3.0, 12.0]), np.array([0.3, 0.7])
    cross = prior_covariance(*at, batch, share)
    known = prior_covariance(batch, share, batch, share) + 1e-5 * np.eye(len(points))
    return float(np.trace(prior_covariance(*at, *at) - cross @ np.linalg.solve(known, cross.T)))


def test_the_shipped_points_are_the_design_of_what_was_measured() -> None:
    assert {(b, round(100 * s)) for b, s in solo_design(MEASURED)} == set(build.SOLO_POINTS)


def test_a_design_has_the_corners_and_no_point_twice() -> None:
    candidates = [(b, s / 10) for b in (1, 3, 9) for s in (2, 5, 10)]
    chosen = solo_design(candidates, 5)
    assert len(set(chosen)) == 5 and set(chosen) <= set(candidates)
    assert {(1, 1.0), (1, 0.2), (9, 0.2)} <= set(chosen)
    assert left(solo_design(candidates, 8)) < left(chosen)


def test_a_board_without_shares_is_measured_along_the_batch() -> None:
    assert solo_design([(b, 1.0) for b in range(1, 33)], 4)[-1] == (32, 1.0)


def test_more_points_than_candidates_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="cannot choose 3 points of 2"):
        solo_design([(1, 1.0), (2, 1.0)], 3)
