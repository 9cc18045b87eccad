"""A state that comes in parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest

from igniterd.fleet.view import ClusterView
from tests.fleet.said import messages, state, tell

STALE = "stale: no state within 30 s"


def left_out(view: ClusterView, at_s: float = 1.0) -> dict[str, str]:
    return dict(view.cluster(at_s).left_out)


def parts(tick: int = 1, run: str = "r") -> list[tuple[str, bytes]]:
    found = messages(state("a", tick=tick, run=run, models=9), 800)
    assert len(found) == 4
    return found


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_order_of_parts_does_not_matter(order: Sequence[int]) -> None:
    view, said = ClusterView("c"), parts()
    for number in order:
        assert view.cluster(0.0).hosts == {}
        for _ in range(2):  # twice each
            view.take(*said[number], at_s=0.0, left_s=None, retained=False)
    host = view.cluster(1.0).hosts["a"]
    assert list(host.models) == [f"m{i}" for i in range(9)]
    assert list(host.boards) == ["GPU-a"]


def test_an_incomplete_set_leaves_the_last_complete_one_until_it_is_stale() -> None:
    view = ClusterView("c")
    for message in parts():
        view.take(*message, at_s=0.0, left_s=None, retained=False)
    for message in parts(tick=2)[:-1]:
        view.take(*message, at_s=20.0, left_s=None, retained=False)
    assert view.cluster(29.0).hosts["a"].tick == 1
    assert left_out(view, 30.0) == {"a": STALE}


def test_a_host_waits_for_its_first_parts() -> None:
    view, said = ClusterView("c"), parts()
    view.take(*said[1], at_s=0.0, left_s=None, retained=False)
    assert left_out(view) == {"a": f"waits for parts of its state: 1 of {len(said)} are here"}


def test_a_left_over_part_of_an_older_tick_does_no_harm() -> None:
    for order in permutations([parts()[-1], *messages(state("a", tick=2))]):
        view = ClusterView("c")
        for message in order:
            view.take(*message, at_s=0.0, left_s=20.0, retained=True)
        assert view.cluster(1.0).hosts["a"].tick == 2


def test_parts_that_contradict_each_other_leave_the_host_out_until_they_do_not() -> None:
    view, (first, second, *_) = ClusterView("c"), parts()
    view.take(*first, at_s=0.0, left_s=None, retained=False)
    text = second[1].replace(f'"parts":{len(parts())}'.encode(), b'"parts":9')
    view.take(second[0], text, at_s=0.0, left_s=None, retained=False)
    assert "does not belong to" in left_out(view)["a"]
    assert view.counts["state", "contradictory"] == 1
    tell(view, state("a", tick=2), 1.0)
    assert left_out(view) == {}


def test_a_part_under_the_topic_of_another_is_refused() -> None:
    view = ClusterView("c")
    view.take("igniterd/v1/c/a/state/2", messages(state())[0][1], at_s=0, left_s=1, retained=True)
    assert left_out(view, 0.5) == {"a": "part 2 of its state says it is part 1"}


def test_a_state_is_as_old_as_the_oldest_of_its_parts() -> None:
    for oldest in range(4):
        view = ClusterView("c")
        for number, message in enumerate(parts()):
            left_s = 7.0 if number == oldest else 20.0
            view.take(*message, at_s=0.0, left_s=left_s, retained=True)
        assert (left_out(view, 6.9), left_out(view, 7.0)) == ({}, {"a": STALE})
