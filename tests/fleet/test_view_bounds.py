"""Floods of made-up hosts and large states are bounded."""

from __future__ import annotations

from igniterd.fleet.view import ClusterView
from igniterd.messages.topics import host_topic
from tests.fleet.said import state, tell


def test_made_up_hosts_are_bounded_and_leave_the_good_ones() -> None:
    view = ClusterView("c", most_hosts=50)
    tell(view, state("good"))
    for number in range(2000):
        view.take(
            host_topic("c", f"x{number}", "state"), b"?", at_s=1.0, left_s=None, retained=False
        )
    assert set(view.cluster(1.0).hosts) == {"good"}
    assert len(view.cluster(1.0).left_out) < 50
    tell(view, state("late"), 2.0)
    assert set(view.cluster(2.0).hosts) == {"good", "late"}


def test_a_full_cluster_takes_no_more_hosts_and_says_so() -> None:
    view = ClusterView("c", most_hosts=3)
    for host in ("a", "b", "c", "d"):
        tell(view, state(host))
    assert set(view.cluster(1.0).hosts) == {"a", "b", "c"}
    assert view.counts["state", "too_many"] == 1
    assert "what d says was not taken" in view.troubles(1.0)["hosts"]
    tell(view, state("a", tick=2), 2.0)
    assert view.cluster(2.0).hosts["a"].tick == 2


def test_bytes_are_bounded_and_given_back() -> None:
    view = ClusterView("c", most_bytes=10_000)
    for number in range(100):
        tell(view, state(f"h{number}"), number / 1000)
    used = len(view.cluster(1.0).hosts)
    assert 5 < used < 20
    assert view._held <= 10_000
    assert view.cluster(1000.0).hosts == {}
    assert view._held == 0
    tell(view, state("new"), 1001.0)
    assert set(view.cluster(1001.0).hosts) == {"new"}
