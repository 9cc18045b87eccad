"""What others say over MQTT 5: topics that are wanted, and what comes on them.

One task connects, subscribes and publishes; after every failure it connects again, with a pause
that grows and is drawn at random, and subscribes to everything anew. Nothing of what was heard is
kept here. Messages are handed on where they are read, without a queue: a flood slows the broker
down, and takes no memory here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTTMessage

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_client import (
    BrokerClient,
    Message,
    NotTaken,
    size_of,
    until_lost,
    until_woken,
)
from igniterd.edgelog import EdgeLogger
from igniterd.errors import CannotRun

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LASTING_S = 20.0
_SEEN_S = 0.2
_MOST_WAITING = 256
_A_TIME = 64  # subscriptions in one packet
_CANCELS = 3

Will = Callable[[str], Message | None]
Taken = Callable[["Heard"], None]
Changed = Callable[[str, bool], None]
"""The name of the connection, empty for none, and whether it listens to all that is wanted."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One message. ``at_s``: of the listener's clock, when it was read; ``left_s``: how long the
    broker would still have kept it, None where it has no end; ``retained``: the broker had kept
    it."""

    topic: str
    payload: bytes
    at_s: float
    left_s: float | None
    retained: bool


@dataclass(slots=True)
class ListenerStatistics:
    """Since the start. ``messages`` and ``published`` by kind: the last level of the topic that is
    no number."""

    connected: bool = False
    connections: int = 0
    failures: int = 0
    last_failure: str = ""
    messages: int = 0
    bytes: int = 0
    published: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    """Messages of its own that waited while others came."""
    refused_topics: set[str] = field(default_factory=set)
    """Topics that the broker does not let it listen to."""
    answered_topics: set[str] = field(default_factory=set)
    """Topics to which the broker has answered the subscription that stands."""
    mistakes: int = 0
    """Messages over which the program itself stumbled."""


class MqttListener:
    """A task of its own listens and speaks; everything else returns at once."""

    def __init__(
        self,
        broker: Broker,
        identifier: str,
        taken: Taken,
        *,
        changed: Changed | None = None,
        will: Will | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        """``taken`` is given every message; an error in it is said once, and counted. ``changed``
        is told of every connection: a name of its own when it begins, again when it listens, and
        its end. ``will`` is what the broker says when the connection of this name is lost."""
        self.statistics = ListenerStatistics()
        self._broker, self._identifier, self._taken = broker, identifier, taken
        self._changed, self._will, self._clock = changed, will, clock
        self._first_pause_s = first_pause_s
        self._names = (f"{identifier}-{uuid.uuid4().hex[:8]}-{n}" for n in itertools.count(1))
        self._wanted: dict[str, int] = {}
        self._have: set[str] = set()
        self._waiting: OrderedDict[str, Message] = OrderedDict()
        self._wake, self._closing = asyncio.Event(), asyncio.Event()
        self._once = EdgeLogger("mqtt")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. Does not wait for the broker."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"mqtt {self._identifier}")

    async def close(self) -> None:
        """Send what waits, as far as the broker takes it, and disconnect: then the will is not
        said. Takes a few deadlines at most."""
        if self._task is None:
            return
        self._closing.set()
        self._wake.set()
        if self.statistics.connected:
            await asyncio.wait({self._task}, timeout=2 * self._broker.timeout_s)
        for _ in range(_CANCELS):  # up to Python 3.11 wait_for may swallow one
            if self._task.done():
                break
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._broker.timeout_s)
        self._task = None

    def want(self, topics: Mapping[str, int]) -> None:
        """From now on listen to these topics, each with its quality of service, and to no others.

        What is said again anyway is best had with 0: a broker lets far more of it wait for one
        listener.
        """
        if topics.keys() != self._wanted.keys():
            self._wanted = wanted = dict(topics)
            self.statistics.refused_topics &= wanted.keys()
            self._wake.set()

    def publish(self, message: Message) -> None:
        """Put it down; a newer one of its topic replaces it until it is sent. What waits when a
        connection ends is dropped: it was said for that one."""
        if not self.statistics.connected:
            self.statistics.dropped += 1
            return
        if self._waiting.pop(message.topic, None) is None and len(self._waiting) >= _MOST_WAITING:
            self._waiting.popitem(last=False)
            self.statistics.dropped += 1
        self._waiting[message.topic] = message
        self._wake.set()

    # ------------------------------------------------------------ inside

    async def _run(self) -> None:
        pause_s = self._first_pause_s
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                await self._connected()
            except (aiomqtt.MqttError, CannotRun, OSError) as error:
                self._failed(str(error) or type(error).__name__)
            except Exception as error:  # a mistake: this task must not end, nobody waits for it
                self._failed(repr(error))
            if time.monotonic() - began_s > _LASTING_S:
                pause_s = self._first_pause_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                    await self._closing.wait()
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _connected(self) -> None:
        name = next(self._names)
        will = None if self._will is None else self._will(name)
        client = self._broker.client(self._identifier, will)
        client.taken = self._take
        async with client, _watched(client) as lost:
            self._have.clear()
            self.statistics.answered_topics.clear()
            self._tell(name, listens=False)
            try:
                await self._subscribe(client, lost)
                self._once.worked("connection", broker=str(self._broker))
                self.statistics.connections += 1
                self.statistics.connected = True
                self._tell(name, listens=True)
                await self._carry(client, lost)
            finally:
                self.statistics.connected = False
                self._waiting.clear()
                self._tell("", listens=False)

    async def _carry(self, client: BrokerClient, lost: asyncio.Future[Any]) -> None:
        """Send what waits and subscribe to what is wanted until it is time to close. Raises when
        the connection is ``lost``."""
        while True:
            self._wake.clear()
            await self._subscribe(client, lost)
            while self._waiting:
                await self._send(client, self._waiting.popitem(last=False)[1], lost)
            if self._closing.is_set():
                return
            await until_woken(self._wake, lost)

    async def _subscribe(self, client: BrokerClient, lost: asyncio.Future[Any]) -> None:
        """Bring the broker to what is wanted; topics it refuses are said once and left."""
        if gone := [topic for topic in self._have if topic not in self._wanted]:
            await _answered(client.unsubscribe(gone), lost)
            self._have -= set(gone)
            self.statistics.answered_topics -= set(gone)
        while new := [topic for topic in self._wanted if topic not in self._have][:_A_TIME]:
            self._have.update(new)
            codes: Any = await _answered(
                client.subscribe([(topic, self._wanted[topic]) for topic in new]), lost
            )
            self.statistics.answered_topics.update(new)
            for topic, code in zip(new, codes, strict=True):
                if code.is_failure:
                    self.statistics.refused_topics.add(topic)
                    self._once.failed(topic, str(code), says="the broker lets nobody listen here")
                else:
                    self._once.worked(topic, says="the broker lets it listen again")

    async def _send(
        self, client: BrokerClient, message: Message, lost: asyncio.Future[Any]
    ) -> None:
        kind = kind_of(message.topic)
        try:
            if client.largest is not None and (size := size_of(message)) > client.largest:
                raise NotTaken(
                    f"{size} bytes, and the broker takes packets of at most {client.largest}: "
                    "raise its limit (mosquitto: max_packet_size)"
                )
            await client.send(message, lost, self._broker.timeout_s)
        except NotTaken as error:
            self.statistics.refused[kind] += 1
            self._once.failed(kind, str(error), says="the broker does not take it")
        else:
            self.statistics.published[kind] += 1
            self._once.worked(kind, says="the broker takes it again")

    def _take(self, message: MQTTMessage) -> None:
        self.statistics.messages += 1
        self.statistics.bytes += len(message.payload)
        left_s = getattr(message.properties, "MessageExpiryInterval", None)
        payload, retained = bytes(message.payload), bool(message.retain)
        try:
            self._taken(Heard(message.topic, payload, self._clock(), left_s, retained))
        except Exception as error:  # a mistake; the message may be retained, and come for ever
            self.statistics.mistakes += 1
            self._once.failed("message", f"{message.topic}: {error!r}", says="cannot be taken")

    def _tell(self, name: str, *, listens: bool) -> None:
        if self._changed is not None:
            self._changed(name, listens)

    def _failed(self, reason: str) -> None:
        self.statistics.failures += 1
        self.statistics.last_failure = reason
        self._once.failed("connection", reason, broker=str(self._broker))


def kind_of(topic: str) -> str:
    """The last level of a topic that is no number."""
    return next((level for level in reversed(topic.split("/")) if not level.isdigit()), "")


@contextlib.asynccontextmanager
async def _watched(client: BrokerClient) -> AsyncIterator[asyncio.Future[Any]]:
    """What ends with the connection, and is looked at in any case."""
    lost: asyncio.Future[Any] = asyncio.ensure_future(until_lost(client))
    try:
        yield lost
    except aiomqtt.MqttError:
        await asyncio.wait({lost}, timeout=_SEEN_S)
        raise
    finally:
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)


async def _answered(asking: Any, lost: asyncio.Future[Any]) -> Any:
    """The broker's answer, but not beyond the end of the connection."""
    task = asyncio.ensure_future(asking)
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    if task.cancelled():
        lost.result()
        raise aiomqtt.MqttError("the connection has ended")
    return task.result()
