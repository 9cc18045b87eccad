"""Profiles are asked for a few at a time, and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from igniterd.fleet.asking import Asking, Missing


def test_a_few_at_a_time_and_the_next_when_they_came() -> None:
    asking = Asking(most=2)
    assert asking.now({"a", "b", "c"}, 0.0) == ["a", "b"]
    assert asking.now({"a", "b", "c"}, 1.0) == ["a", "b"]
    assert asking.now({"b", "c"}, 2.0) == ["b", "c"]
    assert asking.now(set(), 3.0) == []


def test_what_does_not_come_is_let_go_and_asked_for_again_after_the_others() -> None:
    asking = Asking(most=1, patience_s=10.0)
    seen = [asking.now({"a", "b"}, float(at_s)) for at_s in range(0, 40, 5)]
    assert seen == [["a"], ["a"], ["b"], ["b"], ["a"], ["a"], ["b"], ["b"]]


def test_the_only_one_is_let_go_for_a_moment_so_that_it_is_subscribed_anew() -> None:
    asking = Asking(patience_s=10.0)
    assert [asking.now({"a"}, at_s) for at_s in (0.0, 9.9, 10.0, 10.25)] == [
        ["a"],
        ["a"],
        [],
        ["a"],
    ]


@given(st.lists(st.sets(st.sampled_from("abcdef")), max_size=30), st.integers(1, 4))
def test_never_more_than_allowed_and_nothing_that_is_not_wanted(
    wants: list[set[str]], most: int
) -> None:
    asking = Asking(most=most, patience_s=5.0)
    for at_s, wanted in enumerate(wants):
        now = asking.now(wanted, float(at_s))
        assert len(now) <= most
        assert set(now) <= wanted


def test_what_is_not_kept_is_asked_for_twice_and_then_gone() -> None:
    missing, none = Missing(quiet_s=2.0), set[str]()
    missing.look({"a"}, 0.0, 10.0)
    missing.look({"a"}, 0.0, 11.9)
    assert (missing.of({"a"}), missing.gone) == ({"a"}, none)
    missing.look({"a"}, 0.0, 12.0)  # let go of
    assert (missing.of({"a", "b"}), missing.gone) == ({"b"}, none)
    missing.look({"a"}, 0.0, 12.1)  # the broker has not let go of it yet
    assert missing.of({"a"}) == none
    missing.look(none, 0.0, 12.2)
    assert missing.of({"a"}) == {"a"}
    missing.look({"a"}, 0.0, 13.0)
    missing.look({"a"}, 0.0, 14.9)
    assert missing.gone == none
    missing.look({"a"}, 0.0, 15.0)
    assert (missing.of({"a", "b"}), missing.gone) == ({"b"}, {"a"})


def test_nothing_is_missed_while_the_broker_still_gives_what_it_keeps() -> None:
    missing = Missing(quiet_s=2.0, tries=1)
    for at_s in range(100):
        missing.look({"a"}, float(at_s) - 1.0, float(at_s))
    assert missing.gone == set()
    missing.look({"a"}, 98.0, 100.0)
    assert missing.gone == {"a"}
