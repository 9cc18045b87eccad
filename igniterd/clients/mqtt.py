"""What a host says to its cluster over MQTT 5: each message a CloudEvents 1.0 event as JSON, on the
topics of :mod:`igniterd.messages.topics`.

The broker is never in the way: who publishes only puts a message down, a task of its own carries
it, and while the broker is gone a newer message replaces the older one of its kind. A message that
the broker does not take (no right to write, too large) is said once and let go: it holds up no
other. Profiles go when nothing else waits. Whether the host lives is on ``…/status``, retained:
online, degraded, or offline, which the broker says by itself (Last Will) when the daemon dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiomqtt

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_client import (
    BrokerClient,
    Message,
    NotTaken,
    size_of,
    until_lost,
    until_woken,
)
from igniterd.clients.mqtt_faults import Faults
from igniterd.edgelog import EdgeLogger
from igniterd.messages.event import event
from igniterd.messages.topics import PROFILE, host_topic, parse_topic, profile_topic

_MOST_WAITING = 256
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LASTING_S = 20.0
_SEEN_S = 0.2
_MOST_REASON = 1000  # letters of a status' reason
_CANCELS = 3


@dataclass(slots=True)
class MqttStatistics:
    """Since the start of the daemon."""

    connected: bool = False
    published: int = 0
    replaced: int = 0
    dropped: int = 0
    refused: int = 0
    failures: int = 0


class MqttPublisher:
    """One host's voice. A task of its own carries messages; what puts them down returns at
    once."""

    def __init__(
        self,
        broker: Broker,
        *,
        cluster: str,
        host: str,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        """`first_pause_s`: between a lost connection and the next, for the first time."""
        self.statistics = MqttStatistics()
        self._broker, self._timeout_s = broker, broker.timeout_s
        self._first_pause_s = first_pause_s
        self._cluster, self._host = cluster, host
        self._identifier = f"igniterd-{cluster}-{host}"
        self._event_ids = (f"{uuid.uuid4().hex[:12]}-{number}" for number in itertools.count(1))
        self._waiting: OrderedDict[tuple[str, ...], Message] = OrderedDict()
        self._retained: dict[str, Message] = {}
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._once = EdgeLogger("mqtt")
        self._faults = Faults(self._once)
        self._parts = 0  # of the state that was put down last
        self._profiles: dict[str, Mapping[str, Any]] = {}  # parts of profiles, by topic
        self._status = ("online", "")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to carry messages. Does not wait for the broker."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="mqtt")

    async def close(self) -> None:
        """Say ``offline``, as far as the broker still listens, and disconnect. Takes three
        deadlines at most.

        The task is asked, not cancelled, while it is connected: up to Python 3.11
        ``asyncio.wait_for``, and with it aiomqtt, swallows a cancellation that comes together with
        the broker's answer.
        """
        if self._task is None:
            return
        self._closing.set()
        self._wake.set()
        if self.statistics.connected:
            await asyncio.wait({self._task}, timeout=2 * self._timeout_s)
        for _ in range(_CANCELS):
            if self._task.done():
                break
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._timeout_s)
        self._task = None

    def publish_state(self, parts: Sequence[Mapping[str, Any]], *, expiry_s: int) -> None:
        """Put down the parts of the host's state, retained; never waits, never fails.

        They replace those that have not been sent yet. Where there were more of them before, the
        topics of the others are cleared.
        """
        for number, part in enumerate(parts, start=1):
            message = self._message("state", part, retain=True, expiry_s=expiry_s, part=number)
            self._retained[message.topic] = message
            self._enqueue((message.topic,), message)
        for number in range(len(parts) + 1, self._parts + 1):
            topic = self._topic("state", number)
            self._retained.pop(topic, None)
            self._enqueue((topic,), Message(topic, b"", 1, True, None))
        self._parts = len(parts)

    def publish_hint(self, hint: Mapping[str, Any], *, expiry_s: int) -> None:
        """Put down a hint; never waits, never fails. It replaces one of the same kind and model, or
        GPU, that has not been sent yet."""
        message = self._message(f"hint.{hint['kind']}", hint, expiry_s=expiry_s)
        about = str(hint.get("model", hint.get("gpu_uuid", "")))
        self._enqueue((message.topic, hint["kind"], about), message)

    def set_profiles(self, packed: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """The parts of the profiles to be told of, by their hashes: retained, once in a connection,
        whenever nothing else waits."""
        self._profiles = {
            profile_topic(self._cluster, digest, number): part
            for digest, parts in packed.items()
            for number, part in enumerate(parts, start=1)
        }
        self._wake.set()

    def set_status(self, status: str, reason: str = "") -> None:
        """``online`` or ``degraded`` with the reason; said now if it changed, and again after every
        reconnect."""
        reason = reason[:_MOST_REASON]
        if (status, reason) != self._status:
            self._status = (status, reason)
            message = self._status_message(status, reason)
            self._enqueue((message.topic,), message)

    # ------------------------------------------------------------ inside

    async def _run(self) -> None:
        """Connect, carry messages, and connect again after a failure, until told to close."""
        pause_s = self._first_pause_s
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                async with self._client() as client:
                    await self._serve(client)
            # whatever it is, this task must not end: nobody waits for it
            except Exception as error:
                self._count_failure(error)
            # a shorter one is no success: two hosts of one name cut each other off for ever
            if time.monotonic() - began_s > _LASTING_S:
                pause_s = self._first_pause_s
            # jitter: a broker that returns is not met by all hosts at once
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                    await self._closing.wait()
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _serve(self, client: BrokerClient) -> None:
        """Carry messages over one connection, until it is lost or it is time to close: then the
        last word is ``offline``."""
        self._once.worked("connection", broker=str(self._broker))
        self.statistics.connected = True
        lost: asyncio.Future[Any] = asyncio.ensure_future(until_lost(client))
        try:
            await self._offer(client, self._status_message(*self._status), lost)
            for message in self._retained.values():  # a broker that lost its memory is told again
                self._waiting.setdefault((message.topic,), message)
            await self._carry(client, lost)
            await self._offer(
                client, self._status_message("offline", "the daemon was stopped"), lost
            )
        except aiomqtt.MqttError:
            # Let the watch see what ended the connection too: asyncio reports an error that nobody
            # has looked at.
            await asyncio.wait({lost}, timeout=_SEEN_S)
            raise
        finally:
            self.statistics.connected = False
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    async def _carry(self, client: BrokerClient, lost: asyncio.Future[Any]) -> None:
        """Send what waits, oldest first, and profiles when nothing does. Returns when it is time to
        close, and raises when the connection is `lost`."""
        told = set[str]()
        while not self._closing.is_set():
            self._wake.clear()
            await self._send_waiting(client, lost)
            # the state comes first, of a daemon that has just begun too
            due = next((t for t in self._profiles if t not in told), "") if self._retained else ""
            if due and not self._closing.is_set():
                told.add(due)
                event = self._event("profile", self._profiles[due])
                await self._offer(client, Message(due, event, 1, True, None), lost)
                continue
            await until_woken(self._wake, lost)

    async def _send_waiting(self, client: BrokerClient, lost: asyncio.Future[Any]) -> None:
        while self._waiting and not self._closing.is_set():
            key, message = self._waiting.popitem(last=False)
            try:
                await self._offer(client, message, lost)
            except BaseException:
                # unless a newer one came in the meantime
                self._waiting.setdefault(key, message)
                self._waiting.move_to_end(key, last=False)
                raise

    async def _offer(
        self, client: BrokerClient, message: Message, lost: asyncio.Future[Any]
    ) -> None:
        """Send it, unless the broker does not take it. Raises what ended the connection."""
        subject = _subject(message.topic)
        if self._faults.rests(subject):
            self.statistics.refused += 1
            return
        if lost.done():
            lost.result()
        try:
            await client.send(self._fitting(client, message), lost, self._timeout_s)
        except NotTaken as error:
            self.statistics.refused += 1
            self._faults.refused(subject, message.topic, str(error))
        except aiomqtt.MqttError as error:
            if lost.done():
                self._faults.ended(subject, message.topic, str(error))
            raise
        else:
            self.statistics.published += 1
            self._faults.taken(subject, message.topic)

    def _fitting(self, client: BrokerClient, message: Message) -> Message:
        """The message, or a status without its reason where that is too large for the broker."""
        size, most = size_of(message), client.largest
        if most is None or size <= most:
            return message
        if message.topic == self._topic("status") and self._status[1]:
            short = self._status_message(self._status[0], "")
            if size_of(short) <= most:
                return short
        raise NotTaken(
            f"{size} bytes, and the broker takes packets of at most {most}: raise its limit "
            "(mosquitto: max_packet_size)"
        )

    def _count_failure(self, error: Exception) -> None:
        self.statistics.failures += 1
        self._once.failed(
            "connection", str(error) or type(error).__name__, broker=str(self._broker)
        )

    def _enqueue(self, key: tuple[str, ...], message: Message) -> None:
        if self._waiting.pop(key, None) is not None:
            self.statistics.replaced += 1
        elif len(self._waiting) >= _MOST_WAITING:
            self._waiting.popitem(last=False)
            self.statistics.dropped += 1
        self._waiting[key] = message
        self._wake.set()

    def _client(self) -> BrokerClient:
        # The same name every time: after a cut the broker ends the old session at once, and its
        # will cannot follow our "online".
        offline = self._status_message("offline", "the connection was lost")
        return self._broker.client(self._identifier, offline)

    def _topic(self, kind: str, part: int = 1) -> str:
        return host_topic(self._cluster, self._host, kind, part)

    def _status_message(self, status: str, reason: str) -> Message:
        data = {"status": status} | ({"reason": reason} if reason else {})
        return self._message("status", data, retain=True)

    def _message(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        part: int = 1,
    ) -> Message:
        """An event of type ``igniterd.<kind>``, for the topic that `kind` begins with."""
        topic = self._topic(kind.partition(".")[0], part)
        return Message(topic, self._event(kind, data), 1, retain, expiry_s)

    def _event(self, kind: str, data: Mapping[str, Any]) -> bytes:
        source = f"igniterd/{self._cluster}/{self._host}"
        return event(kind, data, source=source, id=next(self._event_ids), at=datetime.now(UTC))


def _subject(topic: str) -> str:
    """What messages of a topic are about, for those who read the log: one thing, whose parts have
    topics of their own."""
    found = parse_topic(topic)
    if found is None:
        return topic
    return f"profile {found.name}" if found.kind == PROFILE else found.kind
