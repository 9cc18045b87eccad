"""Profiles are asked for a few at a time, and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from igniterd.fleet.asking import Asking


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
