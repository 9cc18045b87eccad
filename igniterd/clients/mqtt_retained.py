"""One retained message of an MQTT 5 broker, read once."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_client import BrokerClient
from igniterd.errors import CannotRun, Unreachable


async def read_retained(broker: Broker, topic: str, deadline_s: float) -> bytes | None:
    """The payload retained at ``topic``; None where none comes within half of ``deadline_s``.

    Raises :class:`Unreachable` where the broker does not answer, :class:`CannotRun` for a file that
    cannot be read, and where the broker lets this user not listen there.
    """
    try:
        async with (
            asyncio.timeout(deadline_s),
            broker.client(f"igniterd-apply-{uuid.uuid4().hex[:8]}") as client,
        ):
            (code,) = await client.subscribe(topic, qos=1)
            if isinstance(code, ReasonCode) and code.is_failure:
                raise CannotRun(f"broker {broker}: {code}: may this user read {topic}?")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s / 2):
                    return await _first(client, topic)
            return None
    except (aiomqtt.MqttError, TimeoutError, OSError) as error:
        said = str(error) or f"no answer in {deadline_s:g} s"
        raise Unreachable(f"broker {broker}: {said}") from error


async def _first(client: BrokerClient, topic: str) -> bytes | None:
    async for message in client.messages:
        if message.retain and str(message.topic) == topic and isinstance(message.payload, bytes):
            return message.payload
    return None
