"""Listening to a real mosquitto, and speaking to it as the daemon does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt

from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.mqtt_broker import Broker
from igniterd.lab.services import BrokerHost
from tests.messages.examples import a_hint
from tests.waiting import until_answer

PREFIX = "igniterd/v1/lab/gpu-a/"
PATIENCE_S = 20.0


class Listener:
    """A client that hears everything under ``igniterd/``, retained messages first, in whatever
    order the broker sends them."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._unread: list[tuple[aiomqtt.Message, dict[str, Any]]] = []

    async def next(self, suffix: str, **wanted: Any) -> tuple[aiomqtt.Message, dict[str, Any]]:
        """The oldest event not asked for yet that is on the host's topic and whose data has all of
        `wanted`."""
        return await self.next_on(PREFIX + suffix, **wanted)

    async def next_on(self, topic: str, **wanted: Any) -> tuple[aiomqtt.Message, dict[str, Any]]:
        """The same of any topic."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for number, (message, event) in enumerate(self._unread):
                    data = event["data"]
                    if message.topic.value == topic and all(
                        key in data and data[key] == value for key, value in wanted.items()
                    ):
                        return self._unread.pop(number)
                message = await anext(self._client.messages)
                self._unread.append((message, json.loads(bytes(message.payload))))

    async def any(self) -> str:
        """The topic of the next message."""
        async with asyncio.timeout(PATIENCE_S):
            return (await anext(self._client.messages)).topic.value


@asynccontextmanager
async def listening(broker: BrokerHost) -> AsyncIterator[Listener]:
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        await client.subscribe("igniterd/#", qos=1)
        yield Listener(client)


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[MqttPublisher]:
    publisher = MqttPublisher(Broker(url), cluster="lab", host="gpu-a", first_pause_s=0.1)
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.close()


async def kept_saying(publisher: MqttPublisher, state: dict[str, Any], until_said: Any) -> None:
    """A state and a hint now and then, as from the daemon, until it has come to what the test waits
    for."""

    async def say() -> None:
        publisher.publish_state([state], expiry_s=30)
        publisher.publish_hint(a_hint(), expiry_s=60)

    await until_answer(say, lambda _: until_said(), every_s=0.05)
