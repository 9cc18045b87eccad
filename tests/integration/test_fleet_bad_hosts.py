"""``igniterd fleet`` in a cluster most of whose hosts are not to be relied on: at a real mosquitto,
with the real planner. Hosts are played by what they publish."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from igniterd.announce import STATE_EXPIRY_S
from igniterd.fleet.cluster import HostView
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.event import Event, event, read_event
from igniterd.messages.profile import canonical, packed
from igniterd.messages.rebalance import Rebalance
from igniterd.messages.topics import cluster_topic, host_topic, profile_topic
from tests.fleet import clusters
from tests.fleet.clusters import SHED
from tests.messages.checked import AllMessages
from tests.waiting import cancelled, until, until_answer, until_ended

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CLUSTER = "c"
WRONG_HASH = "f" * 32
HOUR_S = 3600.0
EVERY_S = 0.3

REASONS = {
    "twins": "two daemons call themselves twins: runs r1 and r2",
    "copy-a": "GPU-both is also said to be of copy-b",
    "copy-b": "GPU-both is also said to be of copy-a",
    "generous": "shares on GPU-generous-0 add up to 140 %; at most 100 % can be granted",
    "negative": "its state is malformed: data.models[0].rate_per_s",
    "forged": f"profile {WRONG_HASH}: its content has the hash ",
    "later": "it speaks v2 of the messages, and v1 is read here",
    "garbled": "its state is malformed: is not JSON",
    "noise": "its state is malformed: is not JSON",
    "other": "its state says it is host someone of cluster c",
    "off": "offline: the connection was lost",
    "old": "stale: its retained state does not say how old it is",
}
"""What people are told of each host that cannot be relied on: how it begins."""


def envelope(kind: str, data: Mapping[str, Any]) -> bytes:
    return event(kind, data, source=f"igniterd/{CLUSTER}/x", id="1", at=datetime.now(UTC))


def said_of(view: HostView, tick: int, **more: Any) -> dict[str, Any]:
    data: dict[str, Any] = view.state.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**data, "tick": tick, "time_s": time.time(), **more}


def idle(name: str, *tenants: dict[str, Any]) -> HostView:
    """It has more room than any host that can be relied on: believed, it would get the model."""
    return clusters.host(name, *tenants, gpus=2)


HOT = clusters.host(
    "hot",
    clusters.tenant("alexnet", 600, 15, 0.3),
    clusters.tenant("resnet50", 300, 40, 0.4, shed=SHED),
    clusters.tenant("vgg19", 200, 60, 0.3),
)
ROOMY = clusters.host("roomy", clusters.tenant("ssd", 10, 200, 0.3))
GENEROUS = idle("generous", *(clusters.tenant(name, 10, 500, 0.7) for name in ("alexnet", "ssd")))
BOTH = {"uuid": "GPU-both", "name": "Tesla V100-SXM2-16GB", "sm_count": 80}


def states(tick: int) -> dict[str, bytes]:
    """What the hosts say in one tick, by topic; those that are right first."""
    negative = said_of(idle("negative", *[clusters.tenant("ssd", 10, 200, 0.3)]), tick)
    negative["models"][0]["rate_per_s"] = -5.0
    forged = idle("forged", *[clusters.tenant("ssd", 10, 200, 0.3, profiles=[WRONG_HASH])])
    documents = {
        "hot": said_of(HOT, tick),
        "roomy": said_of(ROOMY, tick, time_s=time.time() - HOUR_S),
        "twins": said_of(idle("twins"), tick, run=f"r{1 + tick % 2}"),
        "copy-a": said_of(idle("copy-a"), tick, boards=[BOTH], tritons=[]),
        "copy-b": said_of(idle("copy-b"), tick, boards=[BOTH], tritons=[]),
        "generous": said_of(GENEROUS, tick),
        "negative": negative,
        "forged": said_of(forged, tick),
        "other": said_of(idle("someone"), tick),
        "off": said_of(idle("off"), 1),
    }
    found = {
        host_topic(CLUSTER, host, "state"): envelope("state", data)
        for host, data in documents.items()
    }
    later = said_of(idle("later"), tick)
    found[f"igniterd/v2/{CLUSTER}/later/state"] = envelope("state", later)
    found[f"igniterd/v2/{CLUSTER}/later/status"] = envelope("status", {"status": "online"})
    found[host_topic(CLUSTER, "garbled", "state")] = envelope("state", later)[:-20]
    return found


class Hosts:
    """They say what they say again and again, and what is advised is listened to."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.rebalances: list[Rebalance] = []
        self._tick = 0

    async def once_and_for_all(self) -> None:
        """What is retained without an end."""
        digest, profile = clusters.profile()
        text = canonical(profile.model_dump(mode="json", exclude_none=True))
        for part in packed(text):
            for name in (digest, WRONG_HASH):
                payload = envelope("profile", part | {"profile": name})
                await self._keep(profile_topic(CLUSTER, name, part["part"]), payload)
        await self._keep(host_topic(CLUSTER, "noise", "state"), b"\xff\x00\xfe")
        await self._keep(
            host_topic(CLUSTER, "old", "state"), envelope("state", said_of(idle("old"), 1))
        )
        await self._keep(
            host_topic(CLUSTER, "off", "status"), envelope("status", {"status": "offline"})
        )
        await self.speak()

    async def speak(self) -> None:
        self._tick += 1
        expires = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        expires.MessageExpiryInterval = STATE_EXPIRY_S
        for topic, payload in states(self._tick).items():
            if "/off/" in topic and self._tick > 1:
                continue
            await self.client.publish(topic, payload, 1, retain=True, properties=expires)

    async def go_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.speak()

    async def listen(self) -> None:
        async for message in self.client.messages:
            read = read_event(bytes(message.payload), "rebalance", Event[Rebalance])
            self.rebalances.append(read.data)

    async def _keep(self, topic: str, payload: bytes) -> None:
        await self.client.publish(topic, payload, 1, retain=True)


@asynccontextmanager
async def hosts_at(broker: BrokerHost) -> AsyncIterator[Hosts]:
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=version) as client:
        hosts = Hosts(client)
        await client.subscribe(cluster_topic(CLUSTER, "rebalance"), 1)
        await hosts.once_and_for_all()
        tasks = [asyncio.create_task(each) for each in (hosts.go_on(), hosts.listen())]
        try:
            yield hosts
        finally:
            for task in tasks:
                await cancelled(task)


@asynccontextmanager
async def fleet(folder: Path, broker: BrokerHost, *options: str) -> AsyncIterator[Running]:
    """The program, its output in ``fleet.log`` of ``folder``."""
    command = [sys.executable, "-m", "igniterd", "fleet"]
    async with running(
        "igniterd fleet",
        [*command, "--broker", broker.url, "--cluster", CLUSTER, *options],
        log=folder / "fleet.log",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as program:
        yield program


def all_named(said: Rebalance) -> bool:
    return {each.host for each in said.left_out} == REASONS.keys()


def check(said: Rebalance) -> None:
    """The bad ones are named as people understand it, and the others get what helps."""
    reasons = {each.host: each.reason for each in said.left_out}
    assert reasons.keys() == REASONS.keys()
    for host, begins in REASONS.items():
        assert reasons[host].startswith(begins), (host, reasons[host])
    moves = [(m.model, m.source.host, m.to.host, m.to.gpu_uuid) for m in said.moves]
    assert moves == [("resnet50", "hot", "roomy", "GPU-roomy-0")]
    assert [s.action for s in said.steps] == ["shrink", "load", "route", "unload"]
    assert {basis.host for basis in said.rests_on} == {"hot", "roomy"}
    assert said.feasible
    assert (said.hosts.used, said.hosts.troubled) == (2, 1)


async def test_they_are_left_out_with_the_reason_and_the_rest_is_planned(
    tmp_path: Path, all_messages: AllMessages
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = tmp_path / "fleet.toml"
    config.write_text(f'[metrics]\nlisten = "{address}"\n', encoding="utf-8")
    async with broker_host(tmp_path) as broker, hosts_at(broker) as hosts:
        async with fleet(tmp_path / "served", broker, "--config", str(config)):
            await until(lambda: hosts.rebalances and all_named(hosts.rebalances[-1]), 60.0)
            check(hosts.rebalances[-1])
            page = await metrics_of(address)
        for line in (
            'igniterd_fleet_hosts{cluster="c",state="used"} 2.0',
            f'igniterd_fleet_hosts{{cluster="c",state="left_out"}} {len(REASONS) - 1}.0',
            'igniterd_fleet_hosts{cluster="c",state="offline"} 1.0',
            'igniterd_fleet_moves{cluster="c"} 1.0',
            'igniterd_fleet_feasible{cluster="c"} 1.0',
            'igniterd_fleet_messages_total{cluster="c",kind="profile",outcome="contradictory"} 1.0',
        ):
            assert line in page
        assert 'kind="state",outcome="malformed"' in page
        assert 'kind="status",outcome="unknown_version"' in page
        assert 'outcome="unexpected"' not in page
        options = ("--once", "--format", "json", "--deadline", "8")
        async with fleet(tmp_path / "once", broker, *options) as program:
            await until_ended(program, 60.0)
        printed = (tmp_path / "once" / "fleet.log").read_text(encoding="utf-8").splitlines()
        check(Rebalance.model_validate_json(printed[-1]))
    wrong = all_messages.settled()
    assert not [fault for fault in wrong if "/rebalance" in fault or "/speaker" in fault]
    assert wrong, "of the hosts"


async def metrics_of(address: str) -> str:
    async def page() -> str:
        async with web.get(f"http://{address}/metrics") as answer:
            return await answer.text()

    async with aiohttp.ClientSession() as web:
        return await until_answer(page, lambda text: "igniterd_fleet_feasible" in text)
