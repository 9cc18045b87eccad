"""The profiles of all hosts together: one model for each kind of board, and a profile that cannot
be fitted takes no other along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.errors import CannotRun, ProfileError
from igniterd.fleet import knowledge
from igniterd.fleet.knowledge import Fit, Knowledge, build
from igniterd.fleet.merged import merged
from igniterd.messages.profile import canonical, digest_of
from igniterd.messages.state import BoardState
from igniterd.perf import PerformanceModel, Profile, builtin_profile, load_model
from igniterd.perf.api import Tenant

V100 = builtin_profile("v100")
NAMES = sorted(V100.models)[:3]
WHOLE = V100.subset(NAMES)
HERE = BoardState(uuid="GPU-a", name="Tesla V100-SXM2-16GB", sm_count=80)


def by_hash(*profiles: Profile) -> dict[str, Profile]:
    return {digest_of(canonical(p.model_dump(mode="json", exclude_none=True))): p for p in profiles}


PAIRS = by_hash(*(V100.subset(pair) for pair in combinations(NAMES, 2)))
ALONE = by_hash(*(V100.subset([name]) for name in sorted(V100.models)))


class Fitted:
    """Stands for a model of performance: what was asked of it is kept."""

    def __init__(self, refuses: Callable[[Profile], CannotRun | None] = lambda _: None) -> None:
        self.asked: list[frozenset[str]] = []
        self._refuses = refuses
        self._model = load_model(V100.subset(NAMES[:1]))

    def __call__(self, profile: Profile) -> PerformanceModel:
        self.asked.append(frozenset(profile.models))
        error = self._refuses(profile)
        if error is not None:
            raise error
        return self._model


def built(
    profiles: Mapping[str, Profile], fit: Fit, previous: Knowledge | None = None
) -> Knowledge:
    return build(profiles, fit=fit, previous=previous)


def digest(name: str) -> str:
    """Of the profile of one model alone."""
    return next(d for d, p in ALONE.items() if name in p.models)


def only(*names: str) -> dict[str, Profile]:
    return {digest(name): ALONE[digest(name)] for name in names}


# ---------------------------------------------------------------- merging


def test_files_of_pairs_predict_as_the_whole_profile_does() -> None:
    (kind,) = built(PAIRS, load_model).kinds
    whole = load_model(WHOLE)
    assert kind.why == ""
    for digest_, profile in PAIRS.items():
        assert [kind.name_of([digest_], name) for name in profile.models] == list(profile.models)
    model = kind.pair(0.95).mean.model
    beside = [Tenant(name, 4, 0.3) for name in NAMES]
    for mine, its in zip(model.predict(beside), whole.predict(beside), strict=True):
        assert mine.latency_ms == pytest.approx(its.latency_ms, rel=1e-3)
        assert mine.upper_ms == pytest.approx(its.upper_ms, rel=1e-3)


@given(st.permutations(sorted(PAIRS)))
def test_the_order_of_files_does_not_matter(order: list[str]) -> None:
    found = merged({d: PAIRS[d] for d in order})
    assert found == merged(PAIRS)
    assert found.profile.models == WHOLE.models
    assert set(found.profile.co_runs) == set(WHOLE.co_runs)
    assert len(found.profile.co_runs) == len(WHOLE.co_runs)


def test_a_name_with_other_figures_is_another_model_with_its_own_co_runs() -> None:
    pair = V100.subset(NAMES[:2])
    slower = pair.time_scaled(1.1).model_copy(update={"board": pair.board})
    profiles = by_hash(pair, slower)
    low, high = sorted(profiles)
    found = merged(profiles)
    first, second = NAMES[:2]
    assert set(found.profile.models) == {
        first,
        second,
        f"{first}@{high[:8]}",
        f"{second}@{high[:8]}",
    }
    for d in (low, high):
        for name in (first, second):
            given_ = found.names[d, name]
            assert found.profile.models[given_] == profiles[d].models[name]
    assert len(found.profile.co_runs) == 2 * len(pair.co_runs)
    assert {t.model for run in found.profile.co_runs for t in run.tenants} == set(
        found.profile.models
    )
    found.profile.check()


def test_a_name_that_somebody_has_already_is_not_given_again() -> None:
    (one,) = ALONE[digest(NAMES[0])].models.values()
    other = V100.models[NAMES[1]]
    profiles = {
        "0" * 32: WHOLE.model_copy(update={"models": {"m": one}, "co_runs": ()}),
        "1" * 32: WHOLE.model_copy(update={"models": {"m": other}, "co_runs": ()}),
        "2" * 32: WHOLE.model_copy(update={"models": {"m@11111111": one}, "co_runs": ()}),
    }
    found = merged(profiles)
    assert len(set(found.names.values())) == 3
    assert all(
        found.profile.models[g] == profiles[d].models[m] for (d, m), g in found.names.items()
    )


# ---------------------------------------------------------------- kinds


def test_a_kind_says_what_is_known_of_its_models() -> None:
    fit = Fitted()
    known = built(only(*NAMES), fit)
    kind = known.kind_of(HERE)
    assert kind is not None
    assert fit.asked == [frozenset(NAMES)]
    name = kind.name_of(["0" * 32, digest(NAMES[0])], NAMES[0])
    assert name == NAMES[0]
    assert kind.name_of([digest(NAMES[1])], NAMES[0]) is None
    assert kind.copy_bytes(name) == V100.models[name].memory_bytes
    assert kind.least_share(name) == min(p.share for p in V100.models[name].solo)
    assert kind.pair(0.95) is kind.pair(0.95)
    assert (kind.pair(0.9).upper.level, kind.pair(0.9).upper.upper) == (0.9, True)
    assert kind.pair(0.9).mean.upper is False


def test_predictors_are_kept_for_a_few_levels() -> None:
    (kind,) = built(only(NAMES[0]), Fitted()).kinds
    for number in range(100):
        kind.pair(0.5 + number / 1000)
    assert len(kind._pairs) <= 8


def test_a_board_is_of_the_kind_whose_profiles_its_models_name() -> None:
    board = V100.board.model_copy(update={"pcie_bytes_per_ms": 1.0})
    other = V100.subset([NAMES[1]]).model_copy(update={"board": board})
    profiles = only(NAMES[0]) | by_hash(other)
    known = built(profiles, Fitted())
    assert len(known.kinds) == 2
    for d, profile in profiles.items():
        kind = known.kind_of(HERE, [d])
        assert kind is not None
        assert kind.board == profile.board
    assert known.kind_of(HERE) is known.kind_of(HERE)


def test_a_board_without_a_name_is_of_a_kind_that_its_models_name_or_of_none() -> None:
    known = built(only(NAMES[0]), Fitted())
    unnamed = BoardState(uuid="GPU-a")
    assert known.kind_of(unnamed) is None
    assert known.kind_of(unnamed, [digest(NAMES[0])]) is known.kinds[0]


@pytest.mark.parametrize(
    "more",
    [
        {"sm_count": 84},
        {"name": "NVIDIA H200"},
        {"memory_total_bytes": 80 << 30},
    ],
)
def test_a_board_of_another_kind_is_unknown(more: dict[str, object]) -> None:
    board = V100.board.model_copy(update={"memory_bytes": 16 << 30})
    known = built(by_hash(V100.subset(NAMES[:1]).model_copy(update={"board": board})), Fitted())
    assert known.kind_of(HERE) is not None
    assert known.kind_of(HERE.model_copy(update=more)) is None


# ---------------------------------------------------------------- what is fitted again


def test_only_what_changed_is_fitted_again() -> None:
    fit = Fitted()
    board = V100.board.model_copy(update={"name": "Tesla T4"})
    others = by_hash(V100.subset(NAMES[:1]).model_copy(update={"board": board}))
    first = built(only(NAMES[0]) | others, fit)
    second = built(only(*NAMES[:2]) | others, fit, first)
    assert [len(models) for models in fit.asked] == [1, 1, 2]
    assert built(only(*NAMES[:2]) | others, fit, second).kinds == second.kinds
    t4 = HERE.model_copy(update={"name": "Tesla T4"})
    assert second.kind_of(t4) is first.kind_of(t4)
    assert len(fit.asked) == 3


def test_another_hash_of_the_same_figures_is_not_fitted_again() -> None:
    fit, profile = Fitted(), V100.subset(NAMES[:1])
    again = by_hash(profile, profile.model_copy(update={"origin": "elsewhere"}))
    assert len(again) == 2
    first = built(by_hash(profile), fit)
    (before,) = first.kinds
    (now,) = built(again, fit, first).kinds
    assert len(fit.asked) == 1
    assert [now.name_of([d], NAMES[0]) for d in again] == [NAMES[0]] * 2
    assert now.pair(0.95) is before.pair(0.95)


# ---------------------------------------------------------------- what cannot be fitted


def wrong(*names: str, error: type[CannotRun] = ProfileError) -> Fitted:
    """A fit that refuses profiles with any of these models."""
    return Fitted(lambda p: error("no fit") if set(names) & set(p.models) else None)


def test_profiles_that_cannot_be_fitted_are_left_out_and_the_others_go_on() -> None:
    names = sorted(V100.models)
    bad = names[2]
    known = built(ALONE, wrong(bad))
    (kind,) = known.kinds
    assert known.problems == {digest(bad): "no fit"}
    assert kind.why == f"profile {digest(bad)}: no fit"
    for name in names:
        assert kind.name_of([digest(name)], name) == (None if name == bad else name)
    assert not known.unfinished


def test_those_that_were_known_stay_when_new_ones_do_not_fit_with_them() -> None:
    old, new = NAMES[0], NAMES[1]
    fit = Fitted(lambda p: ProfileError("no") if len(p.models) > 1 else None)
    first = built(only(old), fit)
    second = built(only(old, new), fit, first)
    assert second.problems == {digest(new): "no"}
    assert len(fit.asked) == 2  # what was known was not fitted again
    third = built(only(old, new), fit, second)
    assert (third.kinds, len(fit.asked)) == (second.kinds, 2)


def test_a_kind_without_any_fit_has_no_predictors() -> None:
    known = built(only(NAMES[0]), wrong(NAMES[0]))
    kind = known.kind_of(HERE)
    assert kind is not None
    assert kind.name_of([digest(NAMES[0])], NAMES[0]) is None
    with pytest.raises(CannotRun, match="no fit"):
        kind.pair(0.95)


def test_a_fit_that_took_too_long_is_tried_again_and_a_wrong_profile_is_not() -> None:
    slow, bad = NAMES[0], NAMES[1]
    late = wrong(slow, error=CannotRun)
    first = built(only(slow), late)
    assert (first.unfinished, first.problems) == (True, {digest(slow): "no fit"})
    second = built(only(slow), Fitted(), first)
    assert (second.unfinished, second.problems) == (False, {})
    refused = built(only(bad), wrong(bad))
    assert built(only(bad), Fitted(), refused).problems == {digest(bad): "no fit"}


def test_fits_are_bounded_and_what_was_not_tried_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(knowledge, "MOST_FITS", 3)
    names = sorted(V100.models)
    fit = wrong(names[0])
    known, rounds = built(ALONE, fit), 1
    while known.unfinished:
        before = len(fit.asked)
        known, rounds = built(ALONE, fit, known), rounds + 1
        assert len(fit.asked) - before <= 3
        assert rounds < 20
    assert known.problems == {digest(names[0]): "no fit"}


@given(st.sets(st.sampled_from(sorted(V100.models))), st.integers(0, 3))
def test_exactly_the_wrong_ones_are_left_out(bad: set[str], known_before: int) -> None:
    fit, previous = wrong(*bad), None
    good = sorted(V100.models.keys() - bad)[:known_before]
    if good:
        previous = built(only(*good), fit)
    known = built(ALONE, fit, previous)
    for _ in range(20):
        if not known.unfinished:
            break
        known = built(ALONE, fit, known)
    assert set(known.problems) == {digest(name) for name in bad}


def test_a_profile_with_the_longest_name_can_be_renamed() -> None:
    long = "m" * 200
    profiles = {
        str(number) * 32: WHOLE.model_copy(
            update={"models": {long: V100.models[name]}, "co_runs": ()}
        )
        for number, name in enumerate(NAMES)
    }
    assert len(merged(profiles).profile.models) == len(NAMES)


def test_nothing_is_known_of_no_profiles() -> None:
    known = built({}, Fitted())
    assert (known.kinds, known.kind_of(HERE), known.problems) == ((), None, {})
