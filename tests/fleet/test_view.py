"""The cluster as its hosts say it is: every oddity is counted, named, and takes no other host
along."""

from __future__ import annotations

import pytest

from igniterd.fleet.view import ClusterView
from igniterd.messages.topics import host_topic
from tests.fleet.said import changed, payload, state, tell, tell_status

STALE = "stale: no state within 30 s"


def view_of(*hosts: str) -> ClusterView:
    view = ClusterView("c")
    for host in hosts:
        tell(view, state(host))
    return view


def left_out(view: ClusterView, at_s: float = 1.0) -> dict[str, str]:
    return dict(view.cluster(at_s).left_out)


def test_a_host_that_says_its_state_is_used() -> None:
    view = view_of("a")
    cluster = view.cluster(1.0)
    assert cluster.left_out == {}
    assert list(cluster.hosts["a"].models) == ["m0", "m1"]
    assert list(cluster.hosts["a"].boards) == ["GPU-a"]
    assert view.counts == {("state", "taken"): 1}
    assert view.troubles(1.0) == {}


def test_what_was_given_out_is_not_changed_by_what_comes() -> None:
    view = view_of("a")
    before = view.cluster(1.0)
    assert view.cluster(1.1) is before
    tell(view, state("b"), 2.0)
    assert (set(before.hosts), set(view.cluster(2.0).hosts)) == ({"a"}, {"a", "b"})


# ---------------------------------------------------------------- age


def test_a_host_is_stale_after_30_s_and_forgotten_after_five_minutes() -> None:
    view = view_of("a")
    assert left_out(view, 29.9) == {}
    assert left_out(view, 30.0) == {"a": STALE}
    assert left_out(view, 299.0) == {"a": STALE}
    assert left_out(view, 300.0) == {}
    assert view.cluster(300.0).hosts == {}


def test_each_state_makes_a_host_fresh_again() -> None:
    view = view_of("a")
    for tick in range(2, 60):
        tell(view, state("a", tick=tick), 10.0 * tick)
        assert left_out(view, 10.0 * tick + 9) == {}
    assert left_out(view, 620.0) == {"a": STALE}


def test_a_retained_state_is_as_old_as_the_broker_says() -> None:
    view = ClusterView("c")
    tell(view, state("a"), 100.0, left_s=4.0, retained=True)
    assert left_out(view, 103.9) == {}
    assert left_out(view, 104.0) == {"a": STALE}


@pytest.mark.parametrize("left_s", [None, 4e9, float("nan")])
def test_a_retained_state_without_an_age_is_not_used(left_s: float | None) -> None:
    view = ClusterView("c")
    tell(view, state("a"), left_s=left_s, retained=True)
    assert left_out(view) == {"a": "stale: its retained state does not say how old it is"}
    assert view.counts == {("state", "stale"): 1}
    tell(view, state("a", tick=2), 1.0)
    assert left_out(view) == {}


def test_clocks_of_hosts_are_asked_for_nothing() -> None:
    view = ClusterView("c")
    tell(view, changed(state("a"), "time_s", 1.0))
    tell(view, changed(state("b"), "time_s", 9e9))
    assert left_out(view) == {}


def test_an_old_message_after_a_newer_one_is_dropped() -> None:
    view = ClusterView("c")
    tell(view, state("a", tick=7))
    tell(view, state("a", tick=6, models=1), 1.0)
    tell(view, state("a", tick=7), 2.0)
    assert len(view.cluster(2.0).hosts["a"].models) == 2
    assert view.counts == {("state", "taken"): 1, ("state", "old"): 1, ("state", "again"): 1}
    assert left_out(view, 30.0) == {"a": STALE}  # neither made it any fresher


def test_a_tick_from_far_ahead_blocks_its_host_for_a_minute_at_most() -> None:
    view = ClusterView("c")
    tell(view, state("a", tick=2**60))
    for at in range(5, 70, 5):
        tell(view, state("a", tick=at), float(at))
    assert view.cluster(66.0).hosts["a"].tick == 65


# ---------------------------------------------------------------- runs


def test_a_restart_is_fine() -> None:
    view = ClusterView("c")
    tell(view, state("a", run="one", tick=900))
    tell(view, state("a", run="two", tick=1, models=1), 5.0)
    assert left_out(view, 6.0) == {}
    assert view.cluster(6.0).hosts["a"].run == "two"


def test_two_daemons_of_one_name_are_left_out_until_one_alone_is_heard_for_a_while() -> None:
    view = ClusterView("c")
    for tick in range(1, 4):
        tell(view, state("a", run="one", tick=tick), 10.0 * tick)
        tell(view, state("a", run="two", tick=tick), 10.0 * tick + 5)
    assert left_out(view, 36.0) == {"a": "two daemons call themselves a: runs one and two"}
    for tick in range(4, 11):
        at_s = 10.0 * tick + 5
        tell(view, state("a", run="two", tick=tick), at_s)
        # two was heard after one, and before it, last at 35 s
        assert ("a" in left_out(view, at_s)) is (at_s < 95.0)


def test_made_up_runs_are_bounded() -> None:
    view = ClusterView("c")
    for number in range(1000):
        tell(view, state("a", run=f"r{number}"), number / 100)
    assert view.cluster(10.0).hosts["a"].run == "r999"
    assert len(view._records["a"].runs) <= 4


# ---------------------------------------------------------------- faults


def test_a_malformed_state_hides_an_earlier_good_one_until_the_next() -> None:
    view = view_of("a", "b")
    tell(view, changed(state("a", tick=2), "models.0.rate_per_s", -1.0), 1.0)
    assert left_out(view) == {
        "a": "its state is malformed: data.models[0].rate_per_s is -1.0; should be greater than "
        "or equal to 0"
    }
    assert view.counts["state", "malformed"] == 1
    assert set(view.cluster(1.0).hosts) == {"b"}
    tell(view, state("a", tick=3), 2.0)
    assert left_out(view, 2.0) == {}


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"null", b"1", b"x" * 200_000])
def test_what_is_no_state_is_malformed(text: bytes) -> None:
    view = view_of("a", "b")
    view.take(host_topic("c", "a", "state"), text, at_s=1.0, left_s=None, retained=False)
    assert left_out(view)["a"].startswith("its state is malformed: ")
    assert set(view.cluster(1.0).hosts) == {"b"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_numbers_that_are_none_are_malformed(number: str) -> None:
    view = ClusterView("c")
    text = payload(state("a")).replace(b'"rate_per_s":100.0', f'"rate_per_s":{number}'.encode())
    view.take(host_topic("c", "a", "state"), text, at_s=0.0, left_s=None, retained=False)
    assert left_out(view)["a"].startswith("its state is malformed: ")
    assert view.counts == {("state", "malformed"): 1}


def test_an_envelope_of_another_type_is_malformed() -> None:
    view, text = ClusterView("c"), payload(state("a")).replace(b"igniterd.state", b"igniterd.hint")
    view.take(host_topic("c", "a", "state"), text, at_s=0.0, left_s=None, retained=False)
    assert "type is 'igniterd.hint'; should be 'igniterd.state'" in left_out(view)["a"]


@pytest.mark.parametrize("key", ["host", "cluster"])
def test_a_state_of_another_host_or_cluster_is_foreign(key: str) -> None:
    view, text = view_of("b"), payload(changed(state("a"), key, "b"))
    view.take(host_topic("c", "a", "state"), text, at_s=0.0, left_s=None, retained=False)
    assert left_out(view)["a"].startswith("its state says it is host")
    assert view.counts["state", "foreign"] == 1
    assert set(view.cluster(1.0).hosts) == {"b"}


def test_other_topics_are_foreign_and_named() -> None:
    view = view_of("a")
    topics = ["x", "igniterd/v1/other/a/state", "igniterd/v1/c/a b/state", "igniterd/v1/c/a/x", ""]
    for topic in topics:
        view.take(topic, payload(state("a")), at_s=0.0, left_s=None, retained=False)
    assert set(view.troubles(1.0)) == set(topics)
    assert sum(n for (_, outcome), n in view.counts.items() if outcome == "foreign") == 5
    assert view.troubles(400.0) == {}


def test_a_host_that_speaks_a_newer_version_alone_is_left_out_by_name() -> None:
    view = view_of("a")
    for host in ("a", "b"):
        view.take(f"igniterd/v2/c/{host}/state", b"?", at_s=0.0, left_s=None, retained=False)
    assert left_out(view) == {"b": "it speaks v2 of the messages, and v1 is read here"}
    assert view.counts["state", "unknown_version"] == 2


def test_a_host_that_went_over_to_a_newer_version_is_left_out_for_that() -> None:
    view = view_of("a")
    view.take("igniterd/v2/c/a/state", b"?", at_s=5.0, left_s=None, retained=False)
    assert left_out(view, 29.0) == {}
    assert left_out(view, 31.0) == {"a": "it speaks v2 of the messages, and v1 is read here"}


def test_a_fault_of_igniterd_itself_is_named_and_takes_no_other_host_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by hand")

    view, topic = view_of("a", "b"), host_topic("c", "a", "state")
    with monkeypatch.context() as patched:
        patched.setattr("igniterd.fleet.view.read_event", broken)
        tell(view, state("a", tick=2), 1.0)
    assert left_out(view) == {"a": "its state could not be read"}
    assert view.troubles(1.0)[topic] == "could not be read: ZeroDivisionError: by hand"
    assert view.counts["state", "unexpected"] == 1
    tell(view, state("a", tick=3), 2.0)
    assert set(view.cluster(2.0).hosts) == {"a", "b"}


# ---------------------------------------------------------------- status


def test_an_offline_host_is_left_out_and_comes_back_with_other_models() -> None:
    view = view_of("a")
    tell_status(view, "a", "offline", 1.0)
    assert left_out(view) == {"a": "offline: the connection was lost"}
    assert view.cluster(1.0).offline == {"a"}
    tell_status(view, "a", "online", 2.0)
    tell(view, state("a", run="next", models=1), 3.0)
    assert list(view.cluster(3.0).hosts["a"].models) == ["m0"]
    assert view.cluster(3.0).offline == set()


def test_a_live_state_after_offline_shows_that_the_host_lives_and_a_retained_one_does_not() -> None:
    view = ClusterView("c")
    tell_status(view, "a", "offline", 0.0)
    tell(view, state("a"), left_s=20.0, retained=True)
    assert left_out(view) == {"a": "offline: the connection was lost"}
    tell(view, state("a", tick=2), 1.0)
    assert left_out(view) == {}


def test_a_degraded_host_is_used_and_says_so() -> None:
    view = view_of("a")
    tell_status(view, "a", "degraded", 1.0, "nvml is silent")
    assert view.cluster(1.0).hosts["a"].degraded == "nvml is silent"
    assert view.troubles(1.0) == {"a": "degraded: nvml is silent"}
    tell(view, state("a", tick=2), 2.0)
    assert view.cluster(2.0).hosts["a"].degraded == "nvml is silent"
    tell_status(view, "a", "online", 3.0)
    assert (view.cluster(3.0).hosts["a"].degraded, view.troubles(3.0)) == ("", {})


def test_a_malformed_status_leaves_the_last_one_and_is_named() -> None:
    view, topic = view_of("a"), host_topic("c", "a", "status")
    view.take(topic, payload({"status": "fine"}, "status"), at_s=0.0, left_s=None, retained=False)
    assert left_out(view) == {}
    assert "data.status is 'fine'" in view.troubles(1.0)[topic]
    tell_status(view, "a", "online", 1.0)
    assert view.troubles(1.0) == {}


def test_a_state_that_is_taken_away_is_used_no_more() -> None:
    view = view_of("a")
    view.take(host_topic("c", "a", "state"), b"", at_s=1.0, left_s=None, retained=False)
    assert left_out(view) == {"a": "its state was taken away"}
    tell(view, state("a", tick=2), 2.0)
    assert left_out(view, 2.0) == {}


# ---------------------------------------------------------------- between hosts


def test_a_gpu_on_two_hosts_leaves_both_out_until_one_gives_it_up() -> None:
    view = view_of("a", "c")
    shared = changed(state("b"), "boards.0.uuid", "GPU-a")
    shared = changed(shared, "models", [])
    tell(view, shared)
    assert left_out(view) == {
        "a": "GPU-a is also said to be of b",
        "b": "GPU-a is also said to be of a",
    }
    assert set(view.cluster(1.0).hosts) == {"c"}
    tell(view, state("b", tick=2), 2.0)
    assert left_out(view, 2.0) == {}


def test_a_renamed_host_is_used_once_its_old_name_is_stale_or_offline() -> None:
    for goes_offline in (False, True):
        view = view_of("a")
        renamed = changed(changed(state("b"), "boards.0.uuid", "GPU-a"), "models", [])
        tell(view, renamed, 20.0)
        assert set(left_out(view, 21.0)) == {"a", "b"}
        if goes_offline:
            tell_status(view, "a", "offline", 22.0)
        assert set(view.cluster(22.0 if goes_offline else 30.0).hosts) == {"b"}


# ---------------------------------------------------------------- what changed


def test_only_what_matters_for_planning_is_a_change() -> None:
    view = view_of("a")
    assert (view.changed(), view.changed()) == (True, False)
    tell(view, changed(state("a", tick=2), "models.0.rate_per_s", 101.0), 1.0)
    assert not view.changed()
    for tick, (path, value) in enumerate(
        [
            ("models.0.rate_upper_per_s", 240.0),
            ("models.0.feasible", False),
            ("models.0.applied.share", 0.3),
            ("models.0.stays", "by hand"),
            ("boards.0.fault", "lost"),
            ("terms", {"slo_margin": 0.2}),
            ("models.0.bias", 1.3),
        ],
        start=3,
    ):
        tell(view, changed(state("a", tick=tick), path, value), float(tick))
        assert view.changed(), path
    view.cluster(60.0)
    assert view.changed()  # stale
