"""One connection to an MQTT 5 broker, and one message to it: what aiomqtt knows of them, and what
it drops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

CONTENT_TYPE = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_s: int | None


class NotTaken(Exception):
    """The broker does not take this message, and goes on with the next."""


class BrokerClient(aiomqtt.Client):
    """aiomqtt's, which also keeps what it drops: the broker's limit, and its no to a message. One
    message is on its way at a time, so the last answer is that of the last message."""

    largest: int | None = None
    """Bytes of the largest packet that the broker takes."""
    refusal: ReasonCode | None = None
    """Its answer to the last message, where that was a no."""
    taken: Callable[[MQTTMessage], None] | None = None
    """Is given every message when it comes, in place of the queue: so none is ever dropped here,
    and who reads slowly slows the broker down."""

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        self.largest = getattr(properties, "MaximumPacketSize", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any
    ) -> None:
        self.refusal = reason_code if getattr(reason_code, "is_failure", False) else None
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:
        if self.taken is None:
            super()._on_message(client, userdata, message)
        else:
            self.taken(message)

    async def send(self, message: Message, lost: asyncio.Future[Any], timeout_s: float) -> None:
        """Publish it and wait for the broker's answer, but not beyond the end of the connection,
        which is `lost`. Raises :class:`NotTaken` on a no, aiomqtt's errors otherwise."""
        self.refusal = None
        properties = publish_properties(message.expiry_s)
        sending = asyncio.ensure_future(
            self.publish(
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                properties,
                timeout=timeout_s,
            )
        )
        try:
            await asyncio.wait({sending, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        if sending.cancelled():
            lost.result()
            raise aiomqtt.MqttError("the connection has ended")
        sending.result()
        if self.refusal is not None:
            raise NotTaken(f"{self.refusal}: may this user write to {message.topic}?")


async def until_woken(wake: asyncio.Event, lost: asyncio.Future[Any]) -> None:
    """Wait for ``wake``. Raises what ended the connection when it is ``lost`` before."""
    woken: asyncio.Future[Any] = asyncio.ensure_future(wake.wait())
    try:
        await asyncio.wait([lost, woken], return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.cancel()
    if lost.done():
        lost.result()


async def until_lost(client: aiomqtt.Client) -> None:
    """Nothing is put into the queue, so this ends only by the error that ended the connection."""
    async for _ in client.messages:
        continue


def size_of(message: Message) -> int:
    """Bytes of its PUBLISH packet."""
    properties = publish_properties(message.expiry_s).pack()  # type: ignore[no-untyped-call]
    rest = (
        2
        + len(message.topic.encode())
        + (2 if message.qos else 0)
        + len(properties)
        + len(message.payload)
    )
    return 1 + max(1, -(-rest.bit_length() // 7)) + rest  # seven bits of the length in a byte


def publish_properties(expiry_s: int | None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


def will_properties() -> Properties:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    return properties
