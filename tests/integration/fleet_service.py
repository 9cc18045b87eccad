"""An ``igniterd fleet`` in this process at a real mosquitto, with parts that plan nothing, and the
hosts of its cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt

from igniterd.fleet.config import FleetConfig
from igniterd.fleet.service import FleetService
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.event import Event, event, read_event
from igniterd.messages.rebalance import Rebalance, Speaker
from tests.fleet.fakes import Fakes, a_state
from tests.waiting import until

PREFIX = "igniterd/v1/lab/"
LEASE_S = 2.0


def settings(url: str, name: str = "one", **more: Any) -> FleetConfig:
    fleet = {
        "name": name,
        "clusters": ["lab"],
        "settle_s": 0.05,
        "least_interval_s": 0.05,
        "lease_s": LEASE_S,
        **more,
    }
    return FleetConfig.model_validate(
        {"broker": {"url": url}, "fleet": fleet, "metrics": {"listen": "127.0.0.1:0"}}
    )


@asynccontextmanager
async def serving(
    config: FleetConfig, fakes: Fakes, *, pooled: bool = False
) -> AsyncIterator[FleetService]:
    service = FleetService(config, fakes.parts())
    task = asyncio.create_task(service.run())
    try:
        if pooled:
            await until(lambda: task.done() or service.ready()[0])
        else:
            await until(lambda: task.done() or list(service.desks) == config.fleet.clusters)
        yield service
    finally:
        service.stopping.set()
        await asyncio.wait_for(task, 20.0)


def envelope(kind: str, data: dict[str, Any]) -> bytes:
    return event(kind, data, source="igniterd/lab/x", id="1", at=datetime.now(UTC))


HINT = envelope(
    "hint.offer",
    {"kind": "offer", "gpu_uuid": "GPU-1", "gpu": None, "share": 0.5, "memory_free_bytes": None},
)


class Cluster:
    """The hosts and an operator, on one connection."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.rebalances: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.expiries: list[int] = []

    async def says(self, host: str, tick: int = 1) -> None:
        payload = envelope("state", a_state(host, tick=tick))
        await self.client.publish(f"{PREFIX}{host}/state", payload, 1, retain=True)

    async def listen(self) -> None:
        async for message in self.client.messages:
            payload = bytes(message.payload)
            if message.topic.value.endswith("/rebalance"):
                read_event(payload, "rebalance", Event[Rebalance])
                self.rebalances.append(json.loads(payload)["data"])
                self.expiries.append(getattr(message.properties, "MessageExpiryInterval", 0))
            elif b'"igniterd.speaker"' in payload and b'"until"' in payload:  # no garbage
                read_event(payload, "speaker", Event[Speaker])
                self.claims.append(json.loads(payload)["data"])

    def moved(self) -> list[str] | None:
        """The hosts that models are to leave, by the latest rebalance."""
        if not self.rebalances:
            return None
        return [move["from"]["host"] for move in self.rebalances[-1]["moves"]]


@asynccontextmanager
async def cluster_at(broker: BrokerHost) -> AsyncIterator[Cluster]:
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        cluster = Cluster(client)
        await client.subscribe([(f"{PREFIX}rebalance", 1), (f"{PREFIX}speaker", 1)])
        task = asyncio.create_task(cluster.listen())
        try:
            yield cluster
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def lab(folder: Path, more: str = "", **fleet: Any) -> AsyncIterator[Any]:
    """A broker, its hosts, and one service: ``(broker, cluster, service, fakes)``."""
    async with AsyncExitStack() as stack:
        fakes = Fakes()
        broker = await stack.enter_async_context(broker_host(folder, more=more))
        cluster = await stack.enter_async_context(cluster_at(broker))
        service = await stack.enter_async_context(serving(settings(broker.url, **fleet), fakes))
        yield broker, cluster, service, fakes
