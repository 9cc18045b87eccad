"""One retained message, of a broker that says no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_retained import read_retained
from igniterd.errors import CannotRun


class _Refuses:
    def __str__(self) -> str:
        return "broker:1883"

    @asynccontextmanager
    async def client(self, _identifier: str) -> AsyncIterator[Any]:
        yield self

    async def subscribe(self, _topic: str, **_: Any) -> list[ReasonCode]:
        return [ReasonCode(PacketTypes.SUBACK, "Not authorized")]


async def test_a_topic_that_the_user_may_not_read_is_not_an_empty_one() -> None:
    broker = cast(Broker, _Refuses())
    with pytest.raises(CannotRun, match=r"Not authorized: may this user read a/b\?"):
        await read_retained(broker, "a/b", 5.0)
