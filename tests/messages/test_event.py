import json
from datetime import UTC, datetime
from typing import Any

import pytest

from igniterd.errors import Refused
from igniterd.messages.event import MOST_BYTES, Event, event, read_event
from igniterd.messages.others import Hint, Status
from igniterd.messages.state import HostState
from tests.messages.checked import faults_of
from tests.messages.examples import a_hint, a_state

AT = datetime(2026, 11, 29, 12, 30, 1, 250_000, tzinfo=UTC)
ABOUT: dict[str, Any] = {"source": "igniterd/lab/gpu-a", "id": "ab-1", "at": AT}


def test_an_envelope_by_hand() -> None:
    assert json.loads(event("status", {"status": "online"}, **ABOUT)) == {
        "specversion": "1.0",
        "id": "ab-1",
        "source": "igniterd/lab/gpu-a",
        "type": "igniterd.status",
        "time": "2026-11-29T12:30:01.250+00:00",
        "datacontenttype": "application/json",
        "data": {"status": "online"},
    }


def test_what_was_sent_is_read() -> None:
    found = read_event(event("state", a_state(7), **ABOUT), "state", Event[HostState])
    assert (found.data.host, found.data.tick, found.id) == ("gpu-a", 7, "ab-1")
    hint = read_event(event("hint.shed", a_hint(), **ABOUT), "hint", Event[Hint])
    assert (hint.data.kind, hint.type) == ("shed", "igniterd.hint.shed")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "is not JSON: "),
        (b"\xff\xfe", "is not JSON: "),
        (b"[1]", "is no table: "),
        (b"x" * (4 * MOST_BYTES + 1), "has 131073 bytes; igniterd sends 32768 at most"),
        (event("state", {"status": "online"}, **ABOUT), "type is 'igniterd.state'"),
        (event("statuses", {"status": "online"}, **ABOUT), "type is 'igniterd.statuses'"),
        (event("status", {}, **ABOUT), "data.status is missing"),
        (event("status", {"status": "up"}, **ABOUT), "data.status is 'up'; should be 'online'"),
        (event("status", {"status": "online"}, **ABOUT | {"id": ""}), "id is ''; should be unique"),
    ],
)
def test_what_is_wrong_is_said(payload: bytes, why: str) -> None:
    with pytest.raises(Refused) as refused:
        read_event(payload, "status", Event[Status])
    assert why in str(refused.value)


def test_of_many_faults_the_first_are_said() -> None:
    wrong = a_state(models=[{"slo_p99_ms": 0}] * 3)
    with pytest.raises(Refused, match=r"models\[0\].*; and 6 more"):
        read_event(event("state", wrong, **ABOUT), "state", Event[HostState])


@pytest.mark.parametrize(
    ("topic", "kind", "data", "fault"),
    [
        ("igniterd/v1/lab/gpu-a/state", "state", a_state(), ""),
        ("igniterd/v1/lab/gpu-a/state/2", "state", a_state(part=2, parts=2), ""),
        ("igniterd/v1/lab/gpu-a/hint", "hint.shed", a_hint(), ""),
        ("igniterd/v1/lab/gpu-a/state", "state", a_state(tick=-1), "$.data.tick: -1 is less"),
        ("igniterd/v1/lab/gpu-a/state", "state", {}, "is a required property"),
        ("igniterd/v1/lab/gpu-b/state", "state", a_state(), "name is 'gpu-a', and the topic says"),
        ("igniterd/v1/lab/gpu-a/state/2", "state", a_state(), "part is 1, and the topic says 2"),
        ("igniterd/v1/lab/gpu-a/hint", "hint.shed", {"kind": "shed"}, "is not valid under any"),
        ("igniterd/v1/lab/gpu-a/hint", "state", a_hint(), "does not match"),
        ("igniterd/v1/lab/gpu-a/other", "state", a_state(), "is no topic of igniterd's"),
        (
            "igniterd/v1/lab/gpu-a/status",
            "status",
            {"status": "online", "more": "x" * MOST_BYTES},
            "bytes; at most 32768 are allowed",
        ),
    ],
)
def test_the_check_of_every_message_finds_faults(
    topic: str, kind: str, data: dict[str, Any], fault: str
) -> None:
    found = faults_of(topic, event(kind, data, **ABOUT))
    assert found == [] if not fault else fault in "; ".join(found)
