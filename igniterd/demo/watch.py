"""What is seen of the daemon while it runs: its ``/state``, and what it says over MQTT."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import aiomqtt

from igniterd.demo.recording import Message, Move, Sample, moves_from, sample_from
from igniterd.messages.topics import parse_topic

_POLL_S = 0.5
_KEPT_MESSAGES = 400
_SHOWN = ("status", "state", "hint")


class Watch:
    """Collects samples, moves and messages; ``samples`` grows by one a tick."""

    def __init__(self, admin: str) -> None:
        self.samples: list[Sample] = []
        self.moves: list[Move] = []
        self.messages: list[Message] = []
        self._url = f"http://{admin}/state"
        self._seen: tuple[float, int] = (0.0, -1)

    async def follow(self) -> None:
        """Poll the daemon for ever; silent while there is none."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                    async with session.get(self._url) as answer:
                        if answer.status == 200:
                            self._take(await answer.json())
                await asyncio.sleep(_POLL_S)

    def _take(self, state: dict[str, object]) -> None:
        if not state or state["time_s"] == self._seen:
            return
        self._seen = state["time_s"]  # type: ignore[assignment]
        self.samples.append(sample_from(state))
        known = {(m.at_s, m.model) for m in self.moves}
        self.moves += [m for m in moves_from(state) if (m.at_s, m.model) not in known]

    async def listen(self, port: int) -> None:
        """Subscribe to the broker for ever."""
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    "127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5
                ) as client:
                    await client.subscribe("igniterd/v1/#", qos=1)
                    async for message in client.messages:
                        self._hear(message)
            await asyncio.sleep(_POLL_S)

    def _hear(self, message: aiomqtt.Message) -> None:
        text = bytes(message.payload) if isinstance(message.payload, bytes | bytearray) else b"{}"
        topic = parse_topic(str(message.topic))
        if topic is None or topic.kind not in _SHOWN or topic.part > 1:
            return
        with contextlib.suppress(ValueError, KeyError):
            data = json.loads(text)["data"]
            if topic.kind == "state":  # the page needs only that it came
                data = {}
            heard = Message(
                at_s=time.time(), topic=topic.kind, retained=bool(message.retain), data=data
            )
            self.messages = [*self.messages, heard]
            self.messages = self.messages[-_KEPT_MESSAGES:]


@asynccontextmanager
async def watching(admin: str, broker_port: int | None) -> AsyncIterator[Watch]:
    """A :class:`Watch` at work; its tasks end on the way out."""
    watch = Watch(admin)
    tasks = [asyncio.create_task(watch.follow(), name="follow")]
    if broker_port is not None:
        tasks.append(asyncio.create_task(watch.listen(broker_port), name="listen"))
    try:
        yield watch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
