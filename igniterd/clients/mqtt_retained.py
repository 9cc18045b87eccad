"""One retained message of an MQTT 5 broker, read once."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiomqtt

from igniterd.clients.tls import client_context
from igniterd.config_sections import Mqtt
from igniterd.errors import CannotRun, Unreachable


async def read_retained(broker: Mqtt, topic: str, deadline_s: float) -> bytes | None:
    """The payload retained at ``topic``; None where there is none, which takes the whole deadline.

    Raises :class:`Unreachable` where the broker does not answer, :class:`CannotRun` for a file that
    cannot be read.
    """
    parts = urlsplit(broker.url)
    secure = parts.scheme == "mqtts"
    tls = client_context("the broker", broker.ca_file, broker.cert_file, broker.key_file)
    try:
        async with (
            asyncio.timeout(deadline_s),
            aiomqtt.Client(
                parts.hostname or "",
                parts.port or (8883 if secure else 1883),
                username=broker.username,
                password=_password(broker),
                protocol=aiomqtt.ProtocolVersion.V5,
                tls_context=tls if secure else None,
                timeout=deadline_s,
            ) as client,
        ):
            await client.subscribe(topic, qos=1)
            return await _first(client, topic, deadline_s)
    except (aiomqtt.MqttError, TimeoutError, OSError) as error:
        said = str(error) or f"no answer in {deadline_s:g} s"
        raise Unreachable(f"broker {broker.url}: {said}") from error


async def _first(client: aiomqtt.Client, topic: str, deadline_s: float) -> bytes | None:
    """Of a broker that has connected half of the deadline is enough."""
    try:
        async with asyncio.timeout(deadline_s / 2):
            async for message in client.messages:
                if message.retain and str(message.topic) == topic:
                    return bytes(message.payload) if isinstance(message.payload, bytes) else b""
    except TimeoutError:
        pass
    return None


def _password(broker: Mqtt) -> str | None:
    if broker.password_file is None:
        return None
    try:
        return broker.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"mqtt.password_file {broker.password_file}: {error}") from error
