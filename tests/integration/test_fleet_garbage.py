"""A real ``igniterd fleet`` that starts among retained messages that are none, on every topic: they
are counted and named, and planning goes on. The hosts are played (see also
test_fleet_bad_hosts.py)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from igniterd.lab.programs.process import free_ports, running
from igniterd.lab.services import broker_host
from igniterd.messages.topics import cluster_topic, host_topic, profile_topic
from tests.fleet.said import CLUSTER, messages, state
from tests.integration.secured_broker import ROOT
from tests.messages.checked import AllMessages
from tests.waiting import until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

JUNK = (b"\xff\x00", b"null", b"[" * 5000, b'{"specversion": "1.0"}')
OTHERS = (
    cluster_topic(CLUSTER, "rebalance"),
    cluster_topic(CLUSTER, "speaker"),
    profile_topic(CLUSTER, "0" * 32, 1),
    host_topic(CLUSTER, "ghost", "hint"),
    f"igniterd/v1/{CLUSTER}/profile/status",
    f"igniterd/v1/{CLUSTER}/x/y/z/state",
)


@asynccontextmanager
async def fleet(folder: Path, url: str) -> AsyncIterator[str]:
    """The process; the address of its pages."""
    (port,) = free_ports(1)
    config = folder / "fleet.toml"
    config.write_text(
        f'[broker]\nurl = "{url}"\n[fleet]\nclusters = ["{CLUSTER}"]\n'
        f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
    )
    command = [sys.executable, "-m", "igniterd", "fleet", "--config", str(config)]
    async with running(
        "igniterd fleet",
        command,
        log=folder / "fleet.log",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ):
        yield f"http://127.0.0.1:{port}"


async def page(url: str) -> str:
    """Empty while there is none."""
    try:
        async with aiohttp.ClientSession() as web, web.get(url) as answer:
            return await answer.text()
    except aiohttp.ClientError:
        return ""


async def keep(client: aiomqtt.Client, topic: str, message: bytes) -> None:
    """Retained, and it expires as a state does."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = 30
    await client.publish(topic, message, 1, retain=True, properties=properties)


def messages_of(text: str, kind: str, outcome: str) -> float:
    """The counter of a page of metrics."""
    start = (
        f'igniterd_fleet_messages_total{{cluster="{CLUSTER}",kind="{kind}",outcome="{outcome}"}} '
    )
    return next((float(s.removeprefix(start)) for s in text.splitlines() if s.startswith(start)), 0)


async def test_retained_garbage_is_counted_and_named_and_planning_goes_on(
    tmp_path: Path, all_messages: AllMessages
) -> None:
    async with (
        broker_host(tmp_path / "broker") as broker,
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        for number, junk in enumerate(JUNK):
            for kind in ("state", "status"):
                await keep(client, host_topic(CLUSTER, f"ghost{number}", kind), junk)
        for topic in OTHERS:
            await keep(client, topic, JUNK[1])
        for host in "ab":
            for topic, text in messages(state(host)):
                await keep(client, topic, text)
        async with fleet(tmp_path, broker.url) as url:

            async def known() -> dict[str, Any]:
                text = await page(f"{url}/state")
                return dict(json.loads(text)["clusters"].get(CLUSTER, {})) if text else {}

            now = await until_answer(known, lambda k: k.get("rebalance"), 60.0)
            assert sorted(now["hosts"]) == ["a", "b"]
            odd = now["left_out"]
            assert odd.keys() == {f"ghost{n}" for n in range(len(JUNK))}
            assert all("malformed" in odd[f"ghost{n}"] for n in range(len(JUNK)))
            assert now["rebalance"]["hosts"] == {"known": 6, "used": 2, "troubled": 0}
            assert {each["host"] for each in now["rebalance"]["left_out"]} == odd.keys()
            counted = await page(f"{url}/metrics")
            assert messages_of(counted, "state", "malformed") == len(JUNK)
            assert messages_of(counted, "status", "malformed") == len(JUNK)
            assert messages_of(counted, "state", "taken") == 2
            # the good ones go on
            for topic, text in messages(state("c")):
                await keep(client, topic, text)
            await until_answer(
                known, lambda k: (k.get("rebalance") or {}).get("hosts", {}).get("used") == 3, 60.0
            )
    wrong = all_messages.settled()
    assert len([fault for fault in wrong if "/rebalance" in fault]) == 1, "of the test's own"
