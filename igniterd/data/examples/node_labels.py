"""What the hosts of a cluster say, as labels of Kubernetes nodes, for a descheduler or an affinity.

``python -m igniterd.data.examples.node_labels --broker mqtt://broker:1883 --cluster default``

- ``igniterd.io/trouble``: ``slo`` (a model does not fit), ``not-answering``, ``degraded`` or
  ``offline``; no label where all is well.
- ``igniterd.io/room``: percent of a GPU that is free, of the GPU with most; no label without an
  offer.

A hint counts until it expires. A node is labelled when something changes, at most once in
``--every`` seconds. A host is a node of the same name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiomqtt

from igniterd.errors import Refused
from igniterd.messages.event import Event, read_event
from igniterd.messages.others import Hint, NotAnswering, Offer, Shed, Status
from igniterd.messages.topics import host_topic, is_name, parse_topic
from igniterd.plain import plain

TROUBLE, ROOM = "igniterd.io/trouble", "igniterd.io/room"
_HINT_S = 60.0  # a hint that has no expiry counts for so long
_KUBECTL_S = 30.0
_LOOK_S = 0.5
_PAUSE_S = 5.0
_OFFLINE = "offline"


@dataclass
class Node:
    """What is known of one host. Times are monotonic seconds."""

    status: str = "online"
    troubles: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By model: what is wrong, and until when that counts."""
    rooms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By GPU: the free share, and until when that counts."""
    labels: Mapping[str, str] | None = None
    """What was set last; None where that is not known."""
    tried_s: float = float("-inf")
    failed: bool = False
    odd: bool = False  # whether its last message was none of igniterd's

    def hear(self, hint: Shed | NotAnswering | Offer, until_s: float) -> None:
        """Take a hint up."""
        match hint:
            case Shed():
                self.troubles[hint.model] = "slo", until_s
            case NotAnswering():
                self.troubles[hint.model] = "not-answering", until_s
            case Offer():
                self.rooms[hint.gpu_uuid] = hint.share, until_s

    def wanted(self, now_s: float) -> dict[str, str]:
        """The labels that it should have."""
        self.troubles = {m: each for m, each in self.troubles.items() if each[1] > now_s}
        self.rooms = {g: each for g, each in self.rooms.items() if each[1] > now_s}
        if self.status == _OFFLINE:
            return {TROUBLE: _OFFLINE}
        found = {what for what, _ in self.troubles.values()}
        trouble = min(found) if found else "" if self.status == "online" else self.status
        room = max((share for share, _ in self.rooms.values()), default=0.0)
        labels = {TROUBLE: trouble, ROOM: f"{100 * room:.0f}" if room else ""}
        return {key: value for key, value in labels.items() if value}


class Labeller:
    """All nodes, and the program that labels them."""

    def __init__(self, kubectl: str, every_s: float) -> None:
        self.nodes: dict[str, Node] = {}
        self._kubectl, self._every_s = kubectl, every_s

    def hear(self, topic: str, payload: bytes, left_s: float | None) -> None:
        """Take one message up; what is none of igniterd's is said once and left out."""
        found = parse_topic(topic)
        if found is None or not payload or not is_name(found.name):  # --all would be an option
            return
        node = self.nodes.setdefault(found.name, Node())
        try:
            if found.kind == "status":
                node.status = read_event(payload, "status", Event[Status]).data.status
            elif found.kind == "hint":
                hint = read_event(payload, "hint", Event[Hint]).data
                until_s = time.monotonic() + (_HINT_S if left_s is None else left_s)
                if isinstance(hint, Shed | NotAnswering | Offer):
                    node.hear(hint, until_s)
            node.odd = False
        except Refused as error:
            if not node.odd:
                _say(f"{topic}: {error}")
            node.odd = True

    async def label(self) -> None:
        """Label the nodes that have changed, for ever."""
        while True:
            now_s = time.monotonic()
            for name, node in list(self.nodes.items()):
                wanted = node.wanted(now_s)
                if wanted != node.labels and now_s - node.tried_s >= self._every_s:
                    node.tried_s = now_s
                    await self._set(name, node, wanted)
            await asyncio.sleep(_LOOK_S)

    async def _set(self, name: str, node: Node, wanted: Mapping[str, str]) -> None:
        words = [f"{key}={wanted[key]}" if key in wanted else f"{key}-" for key in (TROUBLE, ROOM)]
        why = await _run([self._kubectl, "label", "node", name, *words, "--overwrite"])
        if why and not node.failed:
            _say(f"node {name} is not labelled: {why}")
        elif not why:
            if node.failed:
                _say(f"node {name} is labelled again")
            node.labels = wanted
        node.failed = bool(why)


async def _run(command: Sequence[str]) -> str:
    """Why it failed, or an empty string."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return str(error)
    try:
        async with asyncio.timeout(_KUBECTL_S):
            _, said = await process.communicate()
    except TimeoutError:
        return f"{command[0]} did not end within {_KUBECTL_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ""
    return said.decode(errors="replace").strip() or f"{command[0]} ended with {process.returncode}"


async def listen(broker: str, cluster: str, labeller: Labeller) -> None:
    """Hear the cluster's hosts, for ever; a lost broker is said once."""
    parts, lost = urlsplit(broker), False
    secure = parts.scheme == "mqtts"
    while True:
        try:
            async with aiomqtt.Client(
                parts.hostname or "",
                parts.port or (8883 if secure else 1883),
                username=parts.username,
                password=os.environ.get("MQTT_PASSWORD"),
                protocol=aiomqtt.ProtocolVersion.V5,
                tls_params=aiomqtt.TLSParameters() if secure else None,
            ) as client:
                for kind in ("hint", "status"):
                    await client.subscribe(host_topic(cluster, "+", kind), qos=1)
                if lost:
                    _say(f"{parts.hostname} answers again")
                lost = False
                async for message in client.messages:
                    left_s = getattr(message.properties, "MessageExpiryInterval", None)
                    if isinstance(message.payload, bytes):
                        labeller.hear(str(message.topic), message.payload, left_s)
        except (aiomqtt.MqttError, OSError) as error:
            if not lost:
                _say(f"{parts.hostname} does not answer: {error}")
            lost = True
        await asyncio.sleep(_PAUSE_S)


def _say(text: str) -> None:
    sys.stderr.write(f"node_labels: {plain(text)}\n")


async def _both(asked: argparse.Namespace) -> None:
    labeller = Labeller(asked.kubectl, asked.every)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen(asked.broker, asked.cluster, labeller))
        tasks.create_task(labeller.label())


def main() -> None:
    """The command line. A user of the broker is part of its URL, the password is MQTT_PASSWORD of
    the environment."""
    parser = argparse.ArgumentParser(
        prog="python -m igniterd.data.examples.node_labels",
        description="what igniterd's hosts say, as labels of Kubernetes nodes",
    )
    parser.add_argument("--broker", required=True, help="mqtt://[user@]host[:port], or mqtts://")
    parser.add_argument("--cluster", default="default")
    parser.add_argument("--kubectl", default="kubectl", help="the program that labels")
    parser.add_argument("--every", type=float, default=10.0, help="least seconds between labels")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_both(parser.parse_args()))


if __name__ == "__main__":
    main()
