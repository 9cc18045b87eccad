"""Which clusters a process of a pool takes and lets go."""

from __future__ import annotations

from igniterd.fleet.pool import EMPTY_S, Held, Pool

LEASE_S = 10.0
MINE = Held(speaks=True, others=False, hosts=True)
THEIRS = Held(speaks=False, others=True, hosts=True)
EMPTY = Held(speaks=True, others=False, hosts=False)


def test_a_hint_of_a_cluster_that_nobody_speaks_for_is_taken_once() -> None:
    pool = Pool(4, LEASE_S)
    pool.hint("lab")
    pool.hint("hall")
    pool.claim("hall", 95.0, released=False)
    assert pool.taking(set(), 100.0) == ["lab"]
    assert pool.taking({"lab"}, 101.0) == []


def test_a_claim_that_is_old_or_released_does_not_count() -> None:
    pool = Pool(4, LEASE_S)
    for cluster in ("old", "released"):
        pool.hint(cluster)
        pool.claim(cluster, 90.0, released=False)
    pool.claim("released", 91.0, released=True)
    assert pool.taking(set(), 99.0) == ["released"]
    pool.hint("old")
    assert pool.taking({"released"}, 100.0) == ["old"]


def test_no_more_than_allowed() -> None:
    pool = Pool(3, LEASE_S)
    for number in range(9):
        pool.hint(f"c{number}")
    assert pool.taking({"a", "b"}, 0.0) == ["c0"]
    pool.hint("c5")
    assert pool.taking({"a", "b", "c0"}, 1.0) == []


def test_a_name_that_no_host_may_have_is_no_cluster() -> None:
    pool = Pool(3, LEASE_S)
    for name in ("a b", "é", "x" * 129, "-x"):
        pool.hint(name)
    assert pool.taking(set(), 0.0) == []


def test_what_others_speak_for_is_let_go_after_a_while() -> None:
    pool = Pool(3, LEASE_S)
    held = {"mine": MINE, "theirs": THEIRS}
    assert pool.leaving(held, 0.0) == []
    assert pool.leaving(held, 29.0) == []
    assert pool.leaving(held, 30.0) == ["theirs"]


def test_a_while_begins_anew_when_it_spoke_itself() -> None:
    pool = Pool(3, LEASE_S)
    assert pool.leaving({"c": THEIRS}, 0.0) == []
    assert pool.leaving({"c": MINE}, 20.0) == []
    assert pool.leaving({"c": THEIRS}, 35.0) == []
    assert pool.leaving({"c": THEIRS}, 65.0) == ["c"]


def test_a_cluster_without_hosts_is_let_go() -> None:
    pool = Pool(3, LEASE_S)
    assert pool.leaving({"c": EMPTY}, 0.0) == []
    assert pool.leaving({"c": EMPTY}, EMPTY_S) == ["c"]
