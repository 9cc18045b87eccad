"""Whether a message is one that the shipped schemas allow; and who listens to a broker for that."""

from __future__ import annotations

import json
import threading
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from igniterd.clients.mqtt_client import BrokerClient, Message
from igniterd.lab import services
from igniterd.lab.programs.process import Running
from igniterd.messages.event import MOST_BYTES
from igniterd.messages.topics import VERSION, Topic, parse_topic

_MOST_SHOWN = 200
_PATIENCE_S = 10.0


def faults_of(topic: str, payload: bytes) -> list[str]:
    """What is wrong with one message, in words. An empty one clears a topic, which is all right."""
    where = parse_topic(topic)
    if where is None or where.version != VERSION:
        return [f"{topic}: is no topic of igniterd's"]
    if not payload:
        return []
    found = list(_faults(where, payload))
    return [f"{topic}: {fault}" for fault in found]


def _faults(where: Topic, payload: bytes) -> list[str]:
    if len(payload) > MOST_BYTES:
        return [f"has {len(payload)} bytes; at most {MOST_BYTES} are allowed"]
    try:
        event = json.loads(payload)
    except ValueError as error:
        return [f"is not JSON: {error}"]
    errors = list(_validator(where.kind).iter_errors(event))
    if errors:
        return [f"{error.json_path}: {error.message[:_MOST_SHOWN]}" for error in errors]
    return _contradictions(where, event)


def _contradictions(where: Topic, event: dict[str, Any]) -> list[str]:
    """Where a message says another thing than its topic."""
    data, found = event["data"], list[str]()
    said = {"cluster": data.get("cluster", where.cluster), "part": data.get("part", 1)}
    names = {"state": "host", "profile": "profile"}
    if where.kind in names:
        said["name"] = data[names[where.kind]]
    for key, value in said.items():
        if value != getattr(where, key):
            found.append(f"{key} is {value!r}, and the topic says {getattr(where, key)!r}")
    return found


@cache
def _validator(kind: str) -> Any:
    """Of the schema file that is shipped."""
    file = resources.files("igniterd").joinpath("data", "schemas", VERSION, f"{kind}.json")
    schema = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class Recorder:
    """Hears all that a broker on loopback is told under ``igniterd/``, in a thread of its own, and
    adds what is wrong with it to ``faults``."""

    def __init__(self, port: int, faults: list[str]) -> None:
        self.heard = 0
        self._faults = faults
        self._subscribed, self._lost = threading.Event(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self._lost.set()
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._subscribed.wait(_PATIENCE_S):
            raise AssertionError(f"the broker at port {port} grants no subscription")

    def close(self, *, drained: bool) -> None:
        """Hear no more; ``drained``: once the broker, which has ended, has closed the
        connection."""
        if drained:
            self._lost.wait(_PATIENCE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, *_: object) -> None:
        client.subscribe("igniterd/#", qos=1)

    def _take(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self.heard += 1
        try:
            self._faults += faults_of(message.topic, bytes(message.payload))
        except Exception as error:  # in a thread nobody would see it
            self._faults.append(f"{message.topic}: could not be checked: {error!r}")


class AllMessages:
    """Checks all that the tests say over MQTT: in this process as it is sent, and what daemons of
    their own processes send, on the brokers that tests start."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._brokers: list[tuple[services.BrokerHost, Recorder]] = []

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        send, host = BrokerClient.send, services.BrokerHost

        async def checked(client: BrokerClient, message: Message, *rest: Any, **more: Any) -> None:
            self.faults += faults_of(message.topic, message.payload)
            await send(client, message, *rest, **more)

        def listened_to(port: int, program: Running) -> services.BrokerHost:
            broker = host(port, program)
            self._brokers.append((broker, Recorder(port, self.faults)))
            return broker

        patch.setattr(BrokerClient, "send", checked)
        patch.setattr(services, "BrokerHost", listened_to)

    def settled(self) -> list[str]:
        """What was wrong since the last time. Brokers that have ended are heard to their end."""
        for broker, recorder in list(self._brokers):
            if not broker.program.alive:
                recorder.close(drained=True)
                self._brokers.remove((broker, recorder))
        found, self.faults[:] = list(self.faults), []
        return found
