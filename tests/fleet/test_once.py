"""One look at a broker that does not give all that is asked of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from igniterd.clients.mqtt_listener import Heard, ListenerStatistics
from igniterd.fleet import once
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.desk import NOT_ALLOWED
from igniterd.messages.topics import profile_topic
from tests.fleet.fakes import Fakes, FakeView, a_state

DIGEST = "0" * 32


class Listener:
    """Hears of one host, and of no profile; ``refuses`` to listen to any."""

    refuses = False

    def __init__(self, broker: Any, name: str, taken: Any, *, clock: Any) -> None:
        self.statistics = ListenerStatistics(connected=True, connections=1)
        self._taken, self._clock = taken, clock

    def want(self, topics: Mapping[str, int]) -> None:
        profiles = {topic for topic in topics if "/profile/" in topic}
        self.statistics.answered_topics = set(topics)
        self.statistics.refused_topics = profiles if self.refuses else set()

    async def start(self) -> None:
        said = json.dumps({"data": a_state("a")}).encode()
        self._taken(Heard("igniterd/v1/lab/a/state", said, self._clock(), None, True))

    async def close(self) -> None:
        pass


async def looked(
    monkeypatch: pytest.MonkeyPatch, *, deadline_s: float
) -> tuple[FakeView, dict[str, str]]:
    monkeypatch.setattr(once, "MqttListener", Listener)
    ticks = itertools.count()  # a second for each look at the clock
    fakes = Fakes()
    view = fakes.parts().view("lab")
    assert isinstance(view, FakeView)
    view.wanted = frozenset({DIGEST})
    config = FleetConfig.model_validate(
        {"broker": {"url": "mqtt://nowhere"}, "fleet": {"clusters": ["lab"]}}
    )
    found = await once.look(
        config,
        "lab",
        fakes.parts(),
        deadline_s=deadline_s,
        quiet_s=3.0,
        clock=lambda: float(next(ticks)),
    )
    return view, found.troubles


async def test_a_profile_that_nobody_may_listen_to_is_named_with_its_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Listener, "refuses", True)
    view, troubles = await looked(monkeypatch, deadline_s=1000.0)
    assert view.given_up == {DIGEST}
    assert troubles == {profile_topic("lab", DIGEST, "+"): NOT_ALLOWED}


async def test_what_there_was_no_time_to_ask_for_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view, troubles = await looked(monkeypatch, deadline_s=4.0)
    assert view.given_up == set()
    assert troubles == {"deadline": "not all that the broker keeps was heard within 4 s"}
