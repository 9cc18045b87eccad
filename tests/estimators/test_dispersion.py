"""Dispersion of single service times, from the means of windows."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.dispersion import (
    CLIP_SIGMA,
    FREEDOM,
    OWN_SD,
    USUAL_FREEDOM,
    Dispersion,
    Kept,
    Moments,
)
from igniterd.queueing.tail import SERVICE_CV

SIZES = (1, 2, 4, 8)


def windows_of(
    cv: float,
    *,
    sizes: tuple[int, ...] = SIZES,
    each: int = 15,
    count: int = 300,
    together: float = 0.0,
    wobble: float = 0.0,
) -> Iterator[dict[int, Moments]]:
    """``count`` windows of about ``each`` gamma executions of each size; ``together``: standard
    deviation of what all of a window have in common, ``wobble``: of what each has by itself."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        common = rng.normal(0, together)
        counts = 1 + rng.poisson(each - 1, len(sizes))
        yield {
            b: Moments(
                int(n),
                common
                + 0.1 * b
                + rng.normal(0, wobble)
                + math.log(rng.gamma(n / cv**2, cv**2 / n)),
            )
            for b, n in zip(sizes, counts, strict=True)
        }


def lived(
    windows: Iterable[dict[int, Moments]],
    known: Dispersion | None = None,
    *,
    scatter: float = 0.0,
    met_cv: float = 0.0,
) -> Dispersion:
    """What is believed after ``windows``."""
    known = known or Dispersion()
    for window in windows:
        known = known.after(window, scatter=scatter, met_cv=met_cv)
    return known


def test_two_windows_of_two_sizes_by_hand() -> None:
    first = Dispersion().after({1: Moments(10, 0.0), 2: Moments(10, 1.0)})
    assert (first.cv, first.freedom) == (SERVICE_CV, 0.0)
    after = first.after({1: Moments(10, 0.03), 2: Moments(10, 0.99)})
    # each is 0.02 off their mean, 0.01; half of what is not chance, twice 0.003^2, is in that
    assert after.variance == pytest.approx((0.02**2 - OWN_SD**2) / 0.1)
    chance = 0.2 * SERVICE_CV**2 / (0.2 * SERVICE_CV**2 + 2 * OWN_SD**2)
    assert after.freedom == pytest.approx(chance**2)
    square = (USUAL_FREEDOM * SERVICE_CV**2 + after.freedom * after.variance) / (
        USUAL_FREEDOM + after.freedom
    )
    assert after.cv == pytest.approx(math.sqrt(square))


@pytest.mark.parametrize("cv", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("sizes", [SIZES, (4,)])
def test_the_dispersion_of_executions_is_learnt(cv: float, sizes: tuple[int, ...]) -> None:
    # the usual one goes on counting for 10 of 410 degrees of freedom
    least = math.sqrt(USUAL_FREEDOM * SERVICE_CV**2 / FREEDOM)
    told = lived(windows_of(cv, sizes=sizes)).cv
    assert 0.85 * cv < told < 1.15 * math.hypot(cv, least)


@pytest.mark.parametrize("scatter", [0.0, 0.015**2])
def test_what_all_sizes_have_in_common_is_not_taken_for_it(scatter: float) -> None:
    """Between sizes it does not show at all; one size alone goes by what is known of it."""
    for sizes in (SIZES, (4,)):
        seen = windows_of(0.02, sizes=sizes, together=0.015, each=30)
        told = lived(seen, scatter=scatter).cv
        if scatter or len(sizes) > 1:
            assert told < 0.06
        else:
            assert told > 0.07


def test_one_size_of_many_executions_tells_nothing() -> None:
    seen = windows_of(0.02, sizes=(4,), each=3000, together=0.015)
    told = lived(seen, scatter=0.015**2)
    assert told.freedom < USUAL_FREEDOM
    assert told.cv == pytest.approx(SERVICE_CV, rel=0.1)


def test_what_neighbours_are_known_to_add_is_not_taken_for_the_models_own() -> None:
    assert lived(windows_of(0.25), met_cv=0.2).cv == pytest.approx(0.15, rel=0.15)


def test_what_neighbours_did_not_add_leaves_no_debt() -> None:
    """They were predicted to spread the times, and did not; alone again, nothing is wrong."""
    beside = lived(windows_of(0.15), met_cv=0.34)
    assert 0.05 < beside.cv < 0.2
    assert lived(windows_of(0.15, count=100), beside).cv == pytest.approx(0.15, rel=0.2)


def test_of_what_is_believed_far_too_low_the_truth_is_soon_learnt() -> None:
    assert lived(windows_of(0.2, count=150), Dispersion(0.1, 0.0, FREEDOM)).cv > 0.12


def test_a_size_that_wobbles_by_itself_is_not_taken_for_it() -> None:
    """Ten thousand executions a window tell less of one than of their mean."""
    told = lived(windows_of(0.03, each=10_000, wobble=0.004))
    assert told.cv < 0.25 and told.freedom < USUAL_FREEDOM


def test_one_odd_window_carries_little_away_and_a_lasting_change_is_followed() -> None:
    known = lived(windows_of(0.05))
    last = known.last[4]
    odd = known.after({**known.last, 4: Moments(last.executions, last.log_mean + 2.0)})
    assert odd.cv**2 < known.cv**2 * (1 + len(SIZES) * CLIP_SIGMA**2 / FREEDOM)
    assert lived(windows_of(0.2), known).cv == pytest.approx(0.2, rel=0.1)


def test_one_size_alone_by_hand() -> None:
    first = Dispersion().after({4: Moments(2, 0.0)})
    after = first.after({4: Moments(2, 0.3)}, scatter=0.005)
    # 0.01 of chance and 0.01 of scatter: half of the move's variance is chance
    assert after.freedom == pytest.approx(0.25, rel=0.01)
    assert after.variance == pytest.approx(0.09 - 0.01, rel=0.01)


def test_windows_elsewhere_are_not_compared_with_those_before() -> None:
    known = lived(windows_of(0.05))
    moved = {b: Moments(10, 3.0 * b) for b in SIZES}
    assert known.elsewhere().after(moved).cv == known.cv
    assert known.after(moved).cv > known.cv


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(SIZES),
            st.builds(Moments, st.integers(1, 10_000), st.floats(-20, 20)),
        ),
        max_size=8,
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_windows_make_it_no_number(
    windows: list[dict[int, Moments]], scatter: float, met_cv: float
) -> None:
    known = Dispersion()
    for window in windows:
        known = known.after(window, scatter=scatter, met_cv=met_cv)
        assert 0 < known.cv < math.inf
        assert 0 <= known.freedom <= FREEDOM


def test_kept_and_taken_up_again() -> None:
    known = lived(windows_of(0.05))
    again = Kept.model_validate(known.plain()).recalled()
    assert (again.cv, again.freedom, again.last) == (known.cv, known.freedom, {})


@pytest.mark.parametrize("odd", [{"usual": -1.0}, {"variance": math.nan}, {"freedom": 1e9}])
def test_nonsense_is_not_taken_up(odd: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Kept.model_validate(Dispersion().plain() | odd)
