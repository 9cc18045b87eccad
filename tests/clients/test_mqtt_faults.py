"""What a broker does not take, in virtual time."""

import pytest
from structlog.testing import capture_logs

from igniterd.clients.mqtt_faults import Faults
from igniterd.edgelog import EdgeLogger

SAID = ["the broker does not take it", "the broker takes it again"]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock: Clock) -> Faults:
    return Faults(EdgeLogger("mqtt", clock=clock), clock)


def test_a_part_that_is_refused_again_and_again_is_said_once(faults: Faults) -> None:
    with capture_logs() as said:
        for _ in range(20):
            faults.taken("state", "state")
            faults.refused("state", "state/2", "too large")
        assert [line["event"] for line in said] == SAID[:1]
        faults.taken("state", "state/2")
    assert [line["event"] for line in said] == SAID


def test_a_subject_rests_when_one_of_its_messages_ends_two_connections_in_a_row(
    faults: Faults, clock: Clock
) -> None:
    """Its other parts went well in between."""
    for cuts, rest_s in ((2, 60.0), (1, 120.0), (1, 240.0)):
        for _ in range(cuts):
            assert not faults.rests("state")
            faults.taken("state", "state")
            faults.ended("state", "state/2", "cut")
        assert faults.rests("state")
        assert not faults.rests("hint")
        clock.now_s += rest_s
        assert not faults.rests("state")
    faults.taken("state", "state/2")
    faults.ended("state", "state/2", "cut")
    assert not faults.rests("state"), "it is all right again, and counts anew"


def test_connections_that_end_over_several_things_blame_none(faults: Faults) -> None:
    for number in range(10):
        faults.ended("profile a", f"profile/a/{number}", "the network")
    assert not faults.rests("profile a")
