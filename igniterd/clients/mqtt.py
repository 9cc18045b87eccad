"""Hints for the cluster over MQTT 5, each a CloudEvents 1.0 event as JSON under
``igniterd/v1/<cluster>/<host>/``.

The broker is never in the way: :meth:`MqttPublisher.publish` only puts a message down, a task of
its own carries it, and while the broker is gone a newer message replaces the older one of its kind.
A message that the broker does not take (no right to write, too large) is said once and let go: it
holds up no other. Whether the host lives is on ``…/status``, retained: online, degraded, or
offline, which the broker says by itself (Last Will) when the daemon dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiomqtt

from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.mqtt_client import BrokerClient, Message, NotTaken, size_of, until_lost
from igniterd.edgelog import EdgeLogger
from igniterd.jsontext import dumps

_MOST_WAITING = 256
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LASTING_S = 20.0
_SEEN_S = 0.2
_STATUS = "status"
_MOST_REASON = 1000  # letters of a status' reason
_BLAMED_AFTER = 2  # connections in a row that end while a message of one topic is sent
_FIRST_REST_S, _LONGEST_REST_S = 60.0, 3600.0  # before such a topic is tried again
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


@dataclass(slots=True)
class _Blame:
    """A topic whose messages end connections, as some brokers answer what they do not take."""

    times: int = 0
    rests_until_s: float = float("-inf")


class MqttPublisher:
    """One host's voice. A task of its own carries messages; :meth:`publish` and :meth:`set_status`
    return at once."""

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
        self._source = f"igniterd/{cluster}/{host}"
        self._prefix = f"igniterd/v1/{cluster}/{host}/"
        self._identifier = f"igniterd-{cluster}-{host}"
        self._event_ids = (f"{uuid.uuid4().hex[:12]}-{number}" for number in itertools.count(1))
        self._waiting: OrderedDict[tuple[str, ...], Message] = OrderedDict()
        self._retained: dict[str, Message] = {}
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._once = EdgeLogger("mqtt")
        self._blame: dict[str, _Blame] = {}  # by topic
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

    def publish(
        self,
        suffix: str,
        kind: str,
        data: Mapping[str, Any],
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
    ) -> None:
        """Put down an event of type `kind` for topic ``…/<suffix>``; never waits, never fails.

        It replaces one of the same topic, kind and model (``data["model"]``, or
        ``data["gpu_uuid"]``) that has not been sent yet.
        """
        message = Message(self._prefix + suffix, self._event(kind, data), qos, retain, expiry_s)
        if retain:
            self._retained[message.topic] = message
            self._enqueue((message.topic,), message)
        else:
            self._enqueue(
                (message.topic, kind, str(data.get("model", data.get("gpu_uuid", "")))), message
            )

    def set_status(self, status: str, reason: str = "") -> None:
        """``online`` or ``degraded`` with the reason; said now if it changed, and again after every
        reconnect."""
        reason = reason[:_MOST_REASON]
        if (status, reason) != self._status:
            self._status = (status, reason)
            self._enqueue((self._prefix + _STATUS,), self._status_message(status, reason))

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
        """Send what waits, oldest first. Returns when it is time to close, and raises when the
        connection is `lost`."""
        while not self._closing.is_set():
            self._wake.clear()
            while self._waiting and not self._closing.is_set():
                key, message = self._waiting.popitem(last=False)
                try:
                    await self._offer(client, message, lost)
                except BaseException:
                    # unless a newer one came in the meantime
                    self._waiting.setdefault(key, message)
                    self._waiting.move_to_end(key, last=False)
                    raise
            woken: asyncio.Future[Any] = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait([lost, woken], return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
            if lost.done():
                lost.result()

    async def _offer(
        self, client: BrokerClient, message: Message, lost: asyncio.Future[Any]
    ) -> None:
        """Send it, unless the broker does not take it. Raises what ended the connection."""
        suffix = message.topic.removeprefix(self._prefix)
        blame = self._blame.setdefault(message.topic, _Blame())
        if time.monotonic() < blame.rests_until_s:
            self.statistics.refused += 1
            return
        if lost.done():
            lost.result()
        try:
            await client.send(self._fitting(client, message), lost, self._timeout_s)
        except NotTaken as error:
            self.statistics.refused += 1
            self._once.failed(suffix, str(error), says="the broker does not take it")
        except aiomqtt.MqttError as error:
            if lost.done():
                self._add_blame(suffix, blame, error)
            raise
        else:
            blame.times = 0
            self.statistics.published += 1
            self._once.worked(suffix, says="the broker takes it again")

    def _add_blame(self, suffix: str, blame: _Blame, error: Exception) -> None:
        """A connection ended while this topic's message was on its way; again and again is its
        fault."""
        blame.times += 1
        over = blame.times - _BLAMED_AFTER
        if over >= 0:
            rest_s = min(_FIRST_REST_S * 2**over, _LONGEST_REST_S)
            blame.rests_until_s = time.monotonic() + rest_s
            reason = f"it ends the connection ({error}); not sent again for {rest_s:g} s"
            self._once.failed(suffix, reason, says="the broker does not take it")

    def _fitting(self, client: BrokerClient, message: Message) -> Message:
        """The message, or a status without its reason where that is too large for the broker."""
        size, most = size_of(message), client.largest
        if most is None or size <= most:
            return message
        if message.topic == self._prefix + _STATUS and self._status[1]:
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

    def _status_message(self, status: str, reason: str) -> Message:
        data = {"status": status} | ({"reason": reason} if reason else {})
        return Message(self._prefix + _STATUS, self._event("igniterd.status", data), 1, True, None)

    def _event(self, kind: str, data: Mapping[str, Any]) -> bytes:
        event = {
            "specversion": "1.0",
            "id": next(self._event_ids),
            "source": self._source,
            "type": kind,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "datacontenttype": "application/json",
            "data": data,
        }
        return dumps(event).encode()
