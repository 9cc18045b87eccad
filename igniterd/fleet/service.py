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
from igniterd.clients.mqtt_broker import Broker, broker_of
from igniterd.clients.mqtt_listener import Heard, MqttListener
from igniterd.clients.systemd import Notifier
from igniterd.edgelog import EdgeLogger
from igniterd.errors import CannotRun, ConfigError, Refused
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.desk import Desk, read_claim
from igniterd.fleet.parts import Parts, real_parts
from igniterd.fleet.pool import CLAIMS, HINTS, Held, Pool
from igniterd.fleet.readings import reading, sentence, shown
from igniterd.fleet.sections import ALL
from igniterd.messages.topics import parse_topic

TICK_S = 1.0
_READ_S = 30.0
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
        reread: Callable[[], FleetConfig] | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = boot_s,
    ) -> None:
        """``reread`` reads the configuration again, for SIGHUP; without it that is the end. Raises
        :class:`igniterd.errors.CannotRun` for files that cannot be read."""
        self.config, self._clock, self._reread = config, clock, reread
        self._given_parts, self._parts = parts, _parts_of(config, parts)
        self._broker = broker_of(config.broker)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._notifier = Notifier() if notifier is None else notifier
        self.desks: dict[str, Desk] = {}
        self._once = EdgeLogger("fleet")
        self.stopping, self.rereading = asyncio.Event(), asyncio.Event()
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
        """Until SIGTERM, SIGINT or :attr:`stopping`. SIGHUP, or :attr:`rereading`, takes up the
        configuration as it is then. Raises :class:`CannotRun` when the admin address cannot be
        had."""
        loop = asyncio.get_running_loop()
        signals = {signal.SIGTERM: self.stopping, signal.SIGINT: self.stopping}
        if self._reread is not None:
            signals[signal.SIGHUP] = self.rereading
        for number, event in signals.items():
            loop.add_signal_handler(number, event.set)
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
                if self.rereading.is_set() and self._reread is not None:
                    self.rereading.clear()
                    await self._read_again(self._reread)
        finally:
            self._notifier.stopping()
            await self.close()
            for number in signals:
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

    # ------------------------------------------------------------ another configuration

    async def _read_again(self, reread: Callable[[], FleetConfig]) -> None:
        """Take up the configuration as it is now. One that is wrong is said, and the old stays."""
        log = structlog.get_logger("igniterd")
        try:
            async with asyncio.timeout(_READ_S):
                config = await asyncio.to_thread(reread)
            broker, parts = broker_of(config.broker), _parts_of(config, self._given_parts)
            _same_address(self.config, config)
        except (CannotRun, TimeoutError) as error:
            problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
            if isinstance(error, TimeoutError):
                problems = [f"not read within {_READ_S:g} s"]
            log.error(
                "the changed configuration is not taken up; the old one stays", problems=problems
            )
            return
        stay = self._staying(config, broker)
        await self._let_go(stay, pooled=ALL in stay)
        if self._pooled is None:
            self._pool = Pool(config.fleet.most_clusters, config.fleet.lease_s)
        self.config, self._broker, self._parts = config, broker, parts
        self.admin.admit(config.metrics.hosts)
        for cluster in config.fleet.clusters:
            if cluster == ALL:
                await self._listen_for_all()
            elif cluster not in self.desks:
                await self.open(cluster)
        log.info(
            "the configuration was read again: going on with it",
            clusters=",".join(config.fleet.clusters),
            goes_on=",".join(sorted(stay)),
        )

    def _staying(self, config: FleetConfig, broker: Broker) -> set[str]:
        """The clusters that this configuration says nothing new of."""
        if broker != self._broker or _terms(config) != _terms(self.config):
            return set()
        named = set(config.fleet.clusters)
        if ALL in named and self._pooled is not None:
            return {ALL, *self.desks}
        return named & self.desks.keys()

    async def _let_go(self, stay: set[str], *, pooled: bool) -> None:
        """Another ``igniterd fleet``, or this one anew, speaks for the others at once."""
        going = [self.desks.pop(name).close() for name in [*self.desks] if name not in stay]
        if self._pooled is not None and not pooled:
            going.append(self._pooled.close())
            self._pooled = None
        await asyncio.gather(*going)

    async def _listen_for_all(self) -> None:
        if self._pooled is None:
            self._pooled = self._pool_listener()
            await self._pooled.start()

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


def _parts_of(config: FleetConfig, given: Parts | None) -> Parts:
    return given or real_parts(anywhere=config.fleet.anywhere)


def _terms(config: FleetConfig) -> dict[str, Any]:
    """What every desk works by."""
    return config.fleet.model_dump(exclude={"clusters"})


def _same_address(old: FleetConfig, new: FleetConfig) -> None:
    """Raises :class:`ConfigError` for another admin address: who looks there would find nobody."""
    if new.metrics.address != old.metrics.address:
        raise ConfigError(
            "[metrics]",
            [
                f"metrics.listen: only a restart changes it (found {new.metrics.listen!r}; it is "
                f"{old.metrics.listen!r})"
            ],
        )
