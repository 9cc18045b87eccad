import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.messages.topics import (
    Topic,
    cluster_topic,
    host_topic,
    is_name,
    parse_topic,
    profile_topic,
)

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z").filter(lambda n: n != "profile")
DIGEST = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("topic", "found"),
    [
        ("igniterd/v1/lab/gpu-a/state", Topic("v1", "lab", "state", "gpu-a")),
        ("igniterd/v1/lab/gpu-a/state/12", Topic("v1", "lab", "state", "gpu-a", 12)),
        ("igniterd/v2/lab/gpu-a/hint", Topic("v2", "lab", "hint", "gpu-a")),
        ("igniterd/v1/lab/rebalance", Topic("v1", "lab", "rebalance")),
        (f"igniterd/v1/lab/profile/{DIGEST}/3", Topic("v1", "lab", "profile", DIGEST, 3)),
        ("igniterd/v1/lab/profile/state", None),
        ("igniterd/v1/lab/gpu-a/state/0", None),
        ("igniterd/v1/lab/gpu-a/state/+", None),
        ("igniterd/v1/lab/gpu-a/state/٣", None),
        ("igniterd/v1/lab/gpu-a/state/2/3", None),
        ("igniterd/v1/lab/gpu-a/other", None),
        ("igniterd/v1/lab//state", None),
        ("igniterd/v1/lab", None),
        ("other/v1/lab/gpu-a/state", None),
        ("", None),
    ],
)
def test_topics_by_hand(topic: str, found: Topic | None) -> None:
    assert parse_topic(topic) == found


@given(NAMES, NAMES, st.sampled_from(["status", "state", "hint"]), st.integers(1, 9999))
def test_a_hosts_topic_is_found_again(cluster: str, host: str, kind: str, part: int) -> None:
    topic = host_topic(cluster, host, kind, part)
    assert parse_topic(topic) == Topic("v1", cluster, kind, host, part)


@given(NAMES, st.sampled_from(["rebalance", "speaker"]), st.integers(1, 64))
def test_a_clusters_topic_is_found_again(cluster: str, kind: str, part: int) -> None:
    assert parse_topic(cluster_topic(cluster, kind)) == Topic("v1", cluster, kind)
    profile = Topic("v1", cluster, "profile", DIGEST, part)
    assert parse_topic(profile_topic(cluster, DIGEST, part)) == profile


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("gpu-a.rack_2", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("--all", False),
        ("a b", False),
        ("a\n", False),
    ],
)
def test_names_of_hosts_and_clusters(text: str, is_one: bool) -> None:
    assert is_name(text) == is_one
