"""Profiles that come in parts: a host is used once all that it needs are there and are what their
hash says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from igniterd.fleet import profile_store
from igniterd.fleet.view import ClusterView
from igniterd.messages.profile import canonical, digest_of, packed
from igniterd.messages.topics import profile_topic
from igniterd.perf import Profile, builtin_profile
from tests.fleet.said import changed, payload, state, tell

V100 = builtin_profile("v100")
NAME = next(iter(V100.models))
ONE = V100.subset([NAME])
TEXT = canonical(ONE.model_dump(mode="json", exclude_none=True))
DIGEST = digest_of(TEXT)


def needing(host: str = "a", tick: int = 1, digests: Sequence[str] = (DIGEST,)) -> dict[str, Any]:
    return changed(state(host, tick=tick), "models.0.profiles", list(digests))


def give(
    view: ClusterView, part: Mapping[str, Any], digest: str = DIGEST, at_s: float = 1.0
) -> None:
    topic = profile_topic("c", digest, part["part"])
    view.take(topic, payload(part, "profile"), at_s=at_s, left_s=None, retained=True)


def cut(text: str, pieces: int) -> list[dict[str, Any]]:
    """The parts of a profile as an igniterd of smaller messages would cut it."""
    content = "".join(part["content"] for part in packed(text))
    size = -(-len(content) // pieces)
    return [
        {
            "profile": digest_of(text),
            "part": number + 1,
            "parts": pieces,
            "encoding": "gzip+base64",
            "content": content[number * size : (number + 1) * size],
        }
        for number in range(pieces)
    ]


def why(view: ClusterView, at_s: float = 1.0) -> str:
    return view.cluster(at_s).left_out.get("a", "")


def test_a_host_waits_for_its_profile_and_is_used_with_it() -> None:
    view = ClusterView("c")
    tell(view, needing())
    assert why(view) == f"waits for profile {DIGEST}"
    assert view.wanted_profiles() == {DIGEST}
    view.changed()
    for part in reversed(cut(TEXT, 3)):
        assert why(view)
        give(view, part)
    assert (why(view), view.changed()) == ("", True)
    assert view.profiles() == {DIGEST: ONE}
    assert view.wanted_profiles() == frozenset()


def test_a_profile_that_does_not_come_is_named_and_taken_all_the_same() -> None:
    view = ClusterView("c")
    tell(view, needing())
    view.give_up(view.wanted_profiles(), 1.0)
    assert why(view) == f"profile {DIGEST} does not come: the broker gives no part of it"
    first, *others = cut(TEXT, 3)
    give(view, first)
    assert why(view) == f"waits for profile {DIGEST}"
    view.give_up(view.wanted_profiles(), 1.0)
    assert why(view).endswith("the broker gives 1 of its 3 parts")
    for part in others:
        give(view, part)
    assert why(view) == ""


def test_only_profiles_that_a_host_needs_are_kept() -> None:
    view = ClusterView("c")
    for part in packed(TEXT):
        give(view, part)
    assert view.counts == {("profile", "unwanted"): 1}
    tell(view, needing())
    for part in packed(TEXT):
        give(view, part)
    tell(view, state("a", tick=2), 2.0)
    assert view.profiles() == {}


def test_a_profile_that_is_not_what_its_hash_says_is_refused_and_a_good_copy_mends_it() -> None:
    view = ClusterView("c")
    tell(view, needing())
    tell(view, state("b"))
    false = canonical({**ONE.model_dump(mode="json", exclude_none=True), "origin": "x"})
    for part in cut(false, 3):
        give(view, {**part, "profile": DIGEST})
    assert why(view) == f"profile {DIGEST}: its content has the hash {digest_of(false)}"
    assert view.counts["profile", "contradictory"] == 1
    assert set(view.cluster(1.0).hosts) == {"b"}
    for part in cut(TEXT, 3):
        give(view, part)
    assert why(view) == ""


def test_copies_that_were_cut_otherwise_do_not_mix() -> None:
    view = ClusterView("c")
    tell(view, needing())
    three, four = cut(TEXT, 3), cut(TEXT, 4)
    for part in (four[3], *three[:2], four[0], three[2]):
        give(view, part)
    assert why(view) == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("content", "é", "cannot be unpacked"),
        ("content", "AAAA", "cannot be unpacked"),
        ("content", "", "its content has the hash"),
        ("part", 2, "says it is part 2 of 1"),
        ("profile", "0" * 32, "says it is part 1 of 1 of 000"),
        ("encoding", "zstd", "data.encoding is 'zstd'"),
    ],
)
def test_a_wrong_part_leaves_out_the_hosts_that_need_it(key: str, value: Any, said: str) -> None:
    view = ClusterView("c")
    tell(view, needing())
    (part,) = packed(TEXT)
    text = payload({**part, key: value}, "profile")
    topic = profile_topic("c", DIGEST, 1)
    view.take(topic, text, at_s=1.0, left_s=None, retained=True)
    assert why(view).startswith(f"profile {DIGEST}: ")
    assert said in why(view)
    give(view, part)
    assert why(view) == ""


def test_a_profile_that_igniterd_cannot_read_is_refused_though_its_hash_is_right() -> None:
    text = canonical({"format": "igniterd-profile", "version": 99})
    view, digest = ClusterView("c"), digest_of(text)
    tell(view, needing(digests=[digest]))
    for part in packed(text):
        give(view, part, digest)
    assert "version 99 was written by a newer igniterd" in why(view)
    assert view.profiles() == {}


def test_profiles_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_store, "MOST_WANTED", 2)
    view = ClusterView("c")
    tell(view, needing("a", digests=["1" * 32, "2" * 32]))
    tell(view, needing("b"))
    assert view.wanted_profiles() == {"1" * 32, "2" * 32}
    assert "more than 2 profiles" in view.cluster(1.0).left_out["b"]
    tell(view, state("a", tick=2), 2.0)
    tell(view, needing("b", tick=2), 2.0)
    assert view.wanted_profiles() == {DIGEST}
    monkeypatch.setattr(profile_store, "MOST_BYTES", 100)
    give(view, packed(TEXT)[0], at_s=2.0)
    assert "all profiles are more than 100 bytes" in view.cluster(2.0).left_out["b"]


def test_profiles_go_with_the_last_host_that_needs_them() -> None:
    view = ClusterView("c")
    tell(view, needing())
    for part in packed(TEXT):
        give(view, part)
    view.cluster(299.0)
    assert list(view.profiles()) == [DIGEST]  # a host that is back in a minute finds it
    view.cluster(300.0)
    assert (view.profiles(), view._profiles._held) == ({}, 0)


def test_what_is_read_is_what_was_sent() -> None:
    assert Profile.parse(TEXT) == ONE
