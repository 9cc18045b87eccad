"""The running ``igniterd fleet``: a desk for each cluster, one thread that plans, the admin
address. It keeps nothing on disk."""

from __future__ import annotations

import asyncio
import functools
import random
import signal
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from igniterd.clients.admin import AdminServer
from igniterd.clients.fleet_metrics import FleetMetrics
from igniterd.clients.mqtt_broker import broker_of
from igniterd.clients.mqtt_listener import Heard, MqttListener
from igniterd.clients.systemd import Notifier
from igniterd.edgelog import EdgeLogger
from igniterd.errors import Refused
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.desk import Desk, read_claim
from igniterd.fleet.parts import Parts, real_parts
from igniterd.fleet.pool import CLAIMS, HINTS, Held, Pool
from igniterd.fleet.readings import reading, sentence, shown
from igniterd.fleet.sections import ALL
from igniterd.messages.topics import parse_topic

TICK_S = 1.0
_STILL_S = 15.0  # a desk that has not ticked for so long hangs
_STUCK_PLANS = 5  # deadlines of a plan, after which its thread is given up
_KNOWN_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

boot_s: Callable[[], float] = functools.partial(time.clock_gettime, _KNOWN_CLOCK)
"""Seconds that also pass while the machine sleeps: a lease does too."""


class FleetService:
    """Everything of one process."""

    def __init__(
        self,
        config: FleetConfig,
        parts: Parts | None = None,
        *,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = boot_s,
    ) -> None:
        """Raises :class:`igniterd.errors.CannotRun` for files that cannot be read."""
        self.config, self._clock = config, clock
        self._parts = parts or real_parts(anywhere=config.fleet.anywhere)
        self._broker = broker_of(config.broker)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._notifier = Notifier() if notifier is None else notifier
        self.desks: dict[str, Desk] = {}
        self._once = EdgeLogger("fleet")
        self.stopping = asyncio.Event()
        self._pool = Pool(config.fleet.most_clusters, config.fleet.lease_s)
        self._pooled = self._pool_listener() if ALL in config.fleet.clusters else None
        self._metrics = FleetMetrics(lambda: [reading(desk) for desk in self.desks.values()])
        host, port = config.metrics.address
        self.admin = AdminServer(
            host,
            port,
            metrics=self._metrics.render,
            state=self.state,
            health=self.health,
            ready=self.ready,
            hosts=config.metrics.hosts,
            page=False,
        )

    async def run(self) -> None:
        """Until SIGTERM, SIGINT or :attr:`stopping`. Raises :class:`CannotRun` when the admin
        address cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        await self.admin.start()
        try:
            for cluster in self.config.fleet.clusters:
                if cluster != ALL:
                    await self.open(cluster)
            if self._pooled is not None:
                await self._pooled.start()
            self._say_start()
            while not self.stopping.is_set():
                await self._tick()
        finally:
            self._notifier.stopping()
            await self.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def close(self) -> None:
        closing = [desk.close() for desk in self.desks.values()]
        closing += [] if self._pooled is None else [self._pooled.close()]
        await asyncio.gather(*closing)
        await self.admin.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._notifier.close()

    async def open(self, cluster: str) -> Desk:
        """Plan for this cluster from now on."""
        patience_s = random.uniform(0.0, self.config.fleet.lease_s / 10)
        desk = self.desks[cluster] = Desk(
            cluster,
            self.config,
            self._broker,
            self._parts,
            self._executor,
            patience_s=patience_s,
            clock=self._clock,
        )
        await desk.start()
        return desk

    async def leave(self, cluster: str) -> None:
        """Plan for this cluster no more."""
        await self.desks.pop(cluster).close()

    # ------------------------------------------------------------ said

    def state(self) -> dict[str, Any]:
        """For ``/state``: every cluster by name."""
        return {"clusters": {name: shown(desk) for name, desk in self.desks.items()}}

    def health(self) -> tuple[bool, list[str]]:
        """Whether it lives: nothing hangs."""
        at_s = self._clock()
        wrong = [
            f"cluster {name}: has not been looked after for {at_s - desk.ticked_s:.0f} s"
            for name, desk in self.desks.items()
            if at_s - desk.ticked_s > _STILL_S
        ]
        longest_s = _STUCK_PLANS * self.config.fleet.plan_timeout_s
        for name, desk in self.desks.items():
            since_s = desk.thinking.statistics.since_s
            if since_s is not None and at_s - since_s > longest_s * max(1, len(self.desks)):
                wrong.append(f"cluster {name}: a plan takes {at_s - since_s:.0f} s")
        return not wrong, wrong

    def ready(self) -> tuple[bool, list[str]]:
        """Whether it does its work: it hears the broker, somebody speaks, and plans are made."""
        wrong = []
        if self._pooled is not None and not self._pooled.statistics.connected:
            wrong.append("the broker is not reached")
        for name, desk in self.desks.items():
            if not desk.listener.statistics.connected:
                wrong.append(f"cluster {name}: the broker is not reached")
            elif not desk.speaks and not desk.speakership.holder:
                wrong.append(f"cluster {name}: nobody speaks yet")
            if desk.thinking.trouble:
                wrong.append(f"cluster {name}: {desk.thinking.trouble}")
        return not wrong, wrong

    # ------------------------------------------------------------ inside

    def _say_start(self) -> None:
        host, port = self.admin.address
        structlog.get_logger("igniterd").info(
            "started",
            mode="fleet",
            broker=str(self._broker),
            clusters=",".join(self.config.fleet.clusters),
            metrics=f"{host}:{port}",
        )
        self._notifier.ready("listening")

    def _pool_listener(self) -> MqttListener:
        name = f"igniterd-fleet-{self.config.fleet.name}-{uuid.uuid4().hex[:12]}"
        listener = MqttListener(self._broker, name, self._take_pooled, clock=self._clock)
        listener.want({HINTS: 0, CLAIMS: 1})
        return listener

    def _take_pooled(self, heard: Heard) -> None:
        topic = parse_topic(heard.topic)
        if topic is not None and topic.kind == "hint":
            self._pool.hint(topic.cluster)
        elif topic is not None:
            self._take_pooled_claim(topic.cluster, heard)

    def _take_pooled_claim(self, cluster: str, heard: Heard) -> None:
        try:
            claim = read_claim(heard.payload, cluster)
        except Refused as error:
            self._once.failed("speaker", f"{heard.topic}: {error}", says="is not understood")
            return
        self._once.worked("speaker", says="is understood again")
        if claim is not None:
            self._pool.claim(cluster, heard.at_s, released=claim.released)

    async def _share(self) -> None:
        """Take clusters that nobody speaks for, and let others go."""
        at_s = self._clock()
        for cluster in self._pool.taking(self.desks.keys(), at_s):
            structlog.get_logger("igniterd").info("takes a cluster", cluster=cluster)
            await self.open(cluster)
        held = {
            name: Held(desk.speaks, desk.others, bool(desk.seen.hosts or desk.seen.left_out))
            for name, desk in self.desks.items()
        }
        for cluster in self._pool.leaving(held, at_s):
            structlog.get_logger("igniterd").info("lets a cluster go", cluster=cluster)
            await self.leave(cluster)

    async def _tick(self) -> None:
        if self._pooled is not None:
            await self._share()
        well, _ = self.health()
        if well:  # else systemd starts it anew
            said = "; ".join(sentence(desk) for desk in self.desks.values())
            self._notifier.alive(said or "no cluster yet")
        try:
            async with asyncio.timeout(TICK_S):
                await self.stopping.wait()
        except TimeoutError:
            return
