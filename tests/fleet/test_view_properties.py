"""Whatever comes, nothing is raised, nothing unforeseen happens, and good hosts stay."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from igniterd.fleet.view import ClusterView
from igniterd.messages.profile import canonical, packed
from igniterd.messages.topics import host_topic, profile_topic
from igniterd.perf import builtin_profile
from tests.fleet.said import messages, payload, state, tell

PARTS = messages(state("a", models=9), 800)
PROFILE = packed(canonical(builtin_profile("v100").model_dump(mode="json", exclude_none=True)))
DIGEST = PROFILE[0]["profile"]
GOOD = [
    *messages(state("b")),
    *PARTS,
    (host_topic("c", "b", "status"), payload({"status": "online"}, "status")),
    *((profile_topic("c", DIGEST, part["part"]), payload(part, "profile")) for part in PROFILE),
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["a", "good", "GPU-good", "GPU-b", "main", [], {}, [[]], 1e308, 2**62, -1]),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good message of which some values are others, or some bytes."""
    topic, text = draw(st.sampled_from(GOOD))
    if draw(st.booleans()):
        raw = bytearray(text)
        for _ in range(draw(st.integers(1, 4))):
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        return topic, bytes(raw)
    data = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        at: Any = data
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or draw(st.integers(0, 4)) == 0:
                at[key] = copy.deepcopy(draw(ODD))
                break
            at = at[key]
    return topic, json.dumps(data).encode()


TOPICS = st.one_of(
    st.sampled_from([topic for topic, _ in GOOD]),
    st.text(max_size=40),
    st.lists(st.sampled_from(["igniterd", "v1", "v2", "c", "b", "state", "2", "", "+"])).map(
        "/".join
    ),
)
ANY = st.one_of(mutated(), st.sampled_from(GOOD), st.tuples(TOPICS, st.binary(max_size=60)))
LEFT = st.one_of(st.none(), st.floats(), st.floats(0, 40))


@given(st.lists(st.tuples(ANY, st.floats(0, 20), LEFT, st.booleans()), max_size=12))
def test_nothing_is_raised_and_good_hosts_stay(
    said: list[tuple[tuple[str, bytes], float, float | None, bool]],
) -> None:
    view, at_s, tick = ClusterView("c"), 0.0, 0
    needs = {**state("good"), "models": [{**state("good")["models"][0], "profiles": [DIGEST]}]}
    for part in PROFILE:
        tell(view, needs)
        topic = profile_topic("c", DIGEST, part["part"])
        view.take(topic, payload(part, "profile"), at_s=0.0, left_s=None, retained=True)
    for (topic, text), later_s, left_s, retained in said:
        at_s, tick = at_s + later_s, tick + 1
        view.take(topic, text, at_s=at_s, left_s=left_s, retained=retained)
        tell(view, {**needs, "tick": 1 + tick}, at_s)
        cluster = view.cluster(at_s)
        rival = "is also said to be" in cluster.left_out.get("good", "")
        assert "good" in cluster.hosts or rival, cluster.left_out
        assert cluster.hosts.keys().isdisjoint(cluster.left_out)
        assert all(cluster.left_out.values())
        assert all(view.troubles(at_s).values())
    assert not [key for key in view.counts if key[1] == "unexpected"]
    later_s = at_s + 1000.0
    assert (view.cluster(later_s).hosts, view.cluster(later_s).left_out) == ({}, {})
    assert (view._held, view._profiles._held) == (0, 0)


@given(st.permutations([*PARTS, *PARTS, *messages(state("b")), *messages(state("b", tick=2))]))
def test_neither_order_nor_repetition_matters(order: list[tuple[str, bytes]]) -> None:
    view = ClusterView("c")
    for message in order:
        view.take(*message, at_s=0.0, left_s=20.0, retained=True)
    cluster = view.cluster(1.0)
    assert cluster.left_out == {}
    assert list(cluster.hosts["a"].models) == [f"m{i}" for i in range(9)]
    assert cluster.hosts["b"].tick == 2


@given(st.lists(st.sampled_from([(h, r) for h in "ab" for r in ("one", "two")]), max_size=20))
def test_a_host_is_left_out_only_for_what_it_says_itself(said: list[tuple[str, str]]) -> None:
    view, runs = ClusterView("c"), {"a": [""], "b": [""]}
    for at, (host, run) in enumerate(said):
        tell(view, state(host, run=run, tick=at + 1), float(at))
        if runs[host][-1] != run:
            runs[host].append(run)
    for host, heard in runs.items():
        two = len(heard) > 3  # A, B, A
        assert (host in view.cluster(20.0).left_out) is two


TOLD = st.tuples(st.sampled_from("abcd"), st.sets(st.sampled_from("wxyz"), min_size=1))


@given(st.lists(st.tuples(TOLD, st.integers(0, 15)), max_size=25))
def test_a_gpu_is_used_on_the_only_host_that_has_it(
    told: list[tuple[tuple[str, set[str]], int]],
) -> None:
    view, at_s = ClusterView("c"), 0
    latest: dict[str, tuple[int, set[str]]] = {}
    for tick, ((host, gpus), later_s) in enumerate(told):
        at_s += later_s
        boards = [{"uuid": f"GPU-{gpu}"} for gpu in gpus]
        tell(view, {**state(host, tick=tick), "boards": boards, "models": []}, float(at_s))
        latest[host] = at_s, gpus
        fresh = {name: has for name, (said_s, has) in latest.items() if at_s < said_s + 30}
        rivals = {
            name: any(has & other for rival, other in fresh.items() if rival != name)
            for name, has in fresh.items()
        }
        assert set(view.cluster(at_s).hosts) == {name for name, two in rivals.items() if not two}
