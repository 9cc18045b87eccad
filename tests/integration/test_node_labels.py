"""The example that labels Kubernetes nodes, with a real broker and a kubectl that writes down what
it is asked."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

import igniterd
from igniterd.clients.mqtt_client import publish_properties
from igniterd.lab.programs.process import running
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.event import event
from igniterd.messages.topics import host_topic
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

KUBECTL = '#!/bin/sh\n[ -e "{folder}/broken" ] && exit 1\necho "$@" >> "{folder}/asked"\n'
SHED = {"kind": "shed", "model": "m", "slo_p99_ms": 20.0, "rate_per_s": 5.0, "needs_share": 0.5}
OFFER = {"kind": "offer", "gpu_uuid": "GPU-1", "gpu": "V100", "memory_free_bytes": 1}
BOTH_GONE = "label node gpu-a igniterd.io/trouble- igniterd.io/room- --overwrite"


class Cluster:
    def __init__(self, folder: Path, client: aiomqtt.Client) -> None:
        self._folder, self._client = folder, client

    async def say(
        self,
        kind: str,
        data: dict[str, Any],
        *,
        expiry_s: int | None = None,
        more: str = "",
        host: str = "gpu-a",
    ) -> None:
        payload = event(kind + more, data, source="igniterd/c/gpu-a", id="1", at=datetime.now(UTC))
        await self._client.publish(
            host_topic("c", host, kind),
            payload,
            qos=1,
            retain=kind == "status",
            properties=publish_properties(expiry_s),
        )

    def asked(self) -> list[str]:
        file = self._folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    async def until_asked(self, wanted: str) -> None:
        await until(lambda: self.asked()[-1:] == [wanted])


@asynccontextmanager
async def cluster(folder: Path, broker: BrokerHost) -> AsyncIterator[Cluster]:
    """The example at work; the status of one host is retained before it comes."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "kubectl").write_text(KUBECTL.format(folder=folder))
    (tools / "kubectl").chmod(0o755)
    command = [sys.executable, "-m", "igniterd.data.examples.node_labels", "--broker", broker.url]
    package = Path(igniterd.__file__).parents[1]
    env = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(package),
    }
    async with (
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        said = Cluster(folder, client)
        await said.say("status", {"status": "online", "reason": ""})
        async with running(
            "node_labels",
            [*command, "--cluster", "c", "--every", "1"],
            log=folder / "node_labels.log",
            env=env,
        ):
            yield said


async def test_hints_become_labels_and_go_when_they_expire(tmp_path: Path) -> None:
    async with broker_host(tmp_path / "broker") as broker, cluster(tmp_path, broker) as said:
        await said.until_asked(BOTH_GONE)  # what an earlier run may have left
        await said.say("status", {"status": "offline", "reason": ""}, host="--all")
        await said.say("hint", {**SHED, "reason": "no room"}, expiry_s=2, more=".shed")
        await said.say("hint", {**OFFER, "share": 0.35}, expiry_s=60, more=".offer")
        both = "label node gpu-a igniterd.io/trouble=slo igniterd.io/room=35 --overwrite"
        await until(lambda: both in said.asked())
        room = "label node gpu-a igniterd.io/trouble- igniterd.io/room=35 --overwrite"
        await said.until_asked(room)
        await said.say("status", {"status": "offline", "reason": ""})
        await said.until_asked(
            "label node gpu-a igniterd.io/trouble=offline igniterd.io/room- --overwrite"
        )
        assert len(said.asked()) <= 5
        assert not any("--all" in line for line in said.asked())


async def test_a_kubectl_that_fails_is_said_once_and_asked_again(tmp_path: Path) -> None:
    broken, log = tmp_path / "broken", tmp_path / "node_labels.log"
    await asyncio.to_thread(broken.touch)
    async with broker_host(tmp_path / "broker") as broker, cluster(tmp_path, broker) as said:
        await until(lambda: "node gpu-a is not labelled" in log.read_text())
        await asyncio.to_thread(broken.unlink)
        await said.until_asked(BOTH_GONE)
        await until(lambda: "node gpu-a is labelled again" in log.read_text())
        assert log.read_text().count("is not labelled") == 1
