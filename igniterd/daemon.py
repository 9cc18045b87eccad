"""The composition root: builds the clients, wires the stages, paces the ticks, and tells systemd how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from igniterd.adopt import Terms, adopt
from igniterd.clients.admin import AdminServer
from igniterd.clients.lock import HostLock
from igniterd.clients.metrics import Metrics
from igniterd.clients.mps import MpsControl
from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.nvml import NvmlClient
from igniterd.clients.once import Once
from igniterd.clients.processes import ProcessTable
from igniterd.clients.resident import give_back
from igniterd.clients.shares import reach_of
from igniterd.clients.systemd import Notifier
from igniterd.clients.triton import TritonClient
from igniterd.clients.triton_channel import TlsFiles
from igniterd.config import Config, Triton
from igniterd.errors import ConfigError, IgniterdError
from igniterd.history import History
from igniterd.knowledge import load_knowledge
from igniterd.loop import Carry, Knowledge, Loop
from igniterd.memory import Memory
from igniterd.observe import Sources
from igniterd.records import Tick
from igniterd.report import Reporter
from igniterd.resume import resumed

OVERRUN_SAID_EVERY_S = 60.0
ADOPT_CALL_S = 5.0  # longest wait for one answer while a model is given a process of its own
CLOSE_S = 5.0  # longest wait for anything to be closed; systemd's TimeoutStopSec is 20


def triton_client(server: Triton, config: Config, timeout_s: float | None = None) -> TritonClient:
    """The client of one configured Triton. Answers may take ``timeout_s``, by default what a tick allows."""
    tls = TlsFiles(server.ca_file, server.key_file, server.cert_file) if server.ca_file else None
    return TritonClient(
        server.name,
        server.url,
        server.metrics_url,
        http_url=server.http_url,
        timeout_s=timeout_s or config.loop.io_timeout_s,
        reload_timeout_s=server.reload_timeout_s,
        headers=server.header,
        tls=tls,
        gpus={model.name: model.gpu for model in config.model if model.gpu is not None},
        shares_dir=str(config.shares),
        reach=reach_of(server),
    )


def nvml_client(config: Config) -> NvmlClient | None:
    """The client of this host's boards; None where they cannot be read."""
    source = config.gpu.source
    if source == "none":
        return None
    if source.startswith("emulated:"):
        # imported by name: the emulator is a way to run without a GPU, not a part of the daemon
        library: Any = importlib.import_module("igniterd.emulator.board").EmulatedNvml(Path(source.removeprefix("emulated:")))
    else:
        library = importlib.import_module("pynvml")
    return NvmlClient(library, timeout_s=config.loop.io_timeout_s)


def mps_client(config: Config) -> MpsControl | None:
    """The client of this host's MPS control daemon; None where MPS is not used."""
    if not config.mps.enabled:
        return None
    return MpsControl(config.mps.control, config.mps.pipe_directory, timeout_s=2 * config.loop.io_timeout_s)


def mqtt_publisher(config: Config) -> MqttPublisher | None:
    """Who speaks to the broker; None without one. Raises :class:`igniterd.errors.CannotRun` for a file that cannot be read."""
    mqtt = config.mqtt
    if mqtt is None:
        return None
    return MqttPublisher(
        mqtt.url,
        cluster=config.host.cluster,
        host=config.host.name,
        username=mqtt.username,
        password_file=mqtt.password_file,
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
    )


@dataclass(frozen=True, slots=True)
class Fresh:
    """What to begin anew with after a reload of the configuration."""

    config: Config
    knowledge: Knowledge
    carry: Carry
    """What is known and still true of the models that stay."""


class Daemon:
    """One host's igniterd. ``run`` returns when it is told to stop, or to take up a changed configuration; nothing that is applied is
    taken back."""

    def __init__(
        self,
        config: Config,
        *,
        knowledge: Knowledge | None = None,
        carry: Carry | None = None,
        reread: Callable[[], Config] | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``knowledge``: where the profiles are read already; ``carry``: what the daemon before this one left, when the configuration was
        read again; ``reread`` reads it again, for SIGHUP."""
        self.config = config
        self.clock = clock
        self.notifier = notifier or Notifier()
        self.log = structlog.get_logger("igniterd")
        self.stopping, self.rereading = asyncio.Event(), asyncio.Event()
        knowledge = knowledge or load_knowledge(config)
        self.tritons = {server.name: triton_client(server, config) for server in config.triton}
        self.nvml = nvml_client(config)
        sources = Sources(
            tritons=self.tritons,
            models={name: tuple(m.name for m in config.model if m.triton == name) for name in self.tritons},
            boards=self.nvml,
            mps=mps_client(config),
            processes=ProcessTable(),
            gpus={m.name: m.gpu for m in config.model if m.gpu is not None},
            mps_interval_s=config.mps.interval_s,
            timeout_s=config.loop.io_timeout_s,
        )
        self.publisher = mqtt_publisher(config)
        self.metrics = Metrics(config, mqtt=self.publisher.statistics if self.publisher else None)
        self.history = History(config.state.directory / "history.db")
        self.reporter = Reporter(config, metrics=self.metrics.update, publisher=self.publisher, history=self.history.record)
        self.loop = Loop(config, sources, self.tritons, knowledge, self.reporter, adopter=self._adopt)
        self.memory = Memory(config.state.directory / "learnt.json", {m.name: knowledge.identities.get(m.name, "") for m in config.model})
        carry = carry or Carry()
        self.loop.carry = replace(carry, belief={**self.memory.recall(clock(), time.time()), **carry.belief})
        self.admin = AdminServer(
            *config.metrics.address, metrics=self.metrics.render, state=lambda: self.reporter.state, health=self.health
        )
        self.lock = HostLock(config.state.directory, [t.url for t in config.triton] if config.loop.mode == "act" else ())
        self._reread = reread
        self._rereading: asyncio.Task[tuple[Config, Knowledge] | None] | None = None
        self._once = Once("loop")
        self._last_tick_s: float | None = None
        self._overrun_said_s = float("-inf")

    def health(self) -> tuple[bool, list[str]]:
        """Whether ticks are being finished and Triton answers; the reasons when not."""
        if self._last_tick_s is None:
            return False, ["no tick finished yet"]
        reasons = ["the last tick failed: see the log"] if self._once.failing("tick") else []
        age_s = self.clock() - self._last_tick_s
        if age_s > 5 * self.config.loop.interval_s:
            reasons.append(f"the last tick was finished {age_s:.0f} s ago")
        gaps = self.reporter.state.get("gaps", ())
        about = ("nvml", "processes", "share:")  # the daemon works without them, and says so elsewhere
        reasons += [f"{gap['source']}: {gap['reason']}" for gap in gaps if not gap["source"].startswith(about)]
        return not reasons, reasons

    async def _adopt(self, model: str) -> str:
        """Give a model a process of its own; returns why not, or an empty string."""
        server = next(s for s in self.config.triton if s.name == self.config.by_name()[model].triton)
        terms = Terms(tuple(server.repository), self.config.engines.environment)
        client = triton_client(server, self.config, ADOPT_CALL_S)  # no tick waits for it
        try:
            found = await adopt(client, model, terms)
        finally:
            await client.close()
            self.tritons[server.name].read_configs_again()
        return "" if found.ok else found.why

    async def run(self) -> Fresh | None:
        """Tick until told to stop (SIGTERM, SIGINT, or ``stopping`` set): None. After SIGHUP, if the configuration read again is right:
        what to begin anew with.

        Raises :class:`CannotRun` when another igniterd has this host, or the admin address cannot be had.
        """
        signals = {signal.SIGTERM: self.stopping, signal.SIGINT: self.stopping}
        if self._reread is not None:
            signals[signal.SIGHUP] = self.rereading
        for number, event in signals.items():
            with contextlib.suppress(RuntimeError):  # not in the main thread: the caller sets the event
                asyncio.get_running_loop().add_signal_handler(number, event.set)
        self.log.info("starting", host=self.config.host.name, mode=self.config.loop.mode, models=len(self.config.model))
        fresh: Fresh | None = None
        try:
            self.lock.take()
            await self.admin.start()
            if self.publisher is not None:
                await self.publisher.start()
            fresh = await self._tick_forever()
        finally:
            if fresh is None:
                self.notifier.stopping()
            await self._close()
        return fresh

    async def _tick_forever(self) -> Fresh | None:
        interval_s, next_s = self.config.loop.interval_s, self.clock()
        while not self.stopping.is_set():
            tick = await self._turn()
            fresh = self._fresh()
            if fresh is not None:
                return fresh
            next_s += interval_s
            late_s = self.clock() - next_s
            if late_s > 0:  # never caught up: a burst of ticks would help nobody
                self._say_overrun(late_s, tick)
                next_s = self.clock()
            if await self._pause(max(0.0, next_s - self.clock())):
                next_s = self.clock()
        return None

    async def _turn(self) -> Tick | None:
        """One tick, told to everybody. One that fails is said once and costs itself only: the next starts from the same carry.

        The watchdog is fed by finished ticks alone, so that systemd restarts a daemon whose ticks go on failing.
        """
        try:
            tick = await self.loop.tick(self.clock())
            self._told(tick)
            self.memory.keep(self.loop.carry.belief, tick.at_s, tick.wall_time_s)
        except Exception as error:  # whatever it is, a host that is watched badly is better than one that is not watched
            self._once.failed("tick", repr(error), exc_info=True)
            return None
        self._once.worked("tick")
        return tick

    def _fresh(self) -> Fresh | None:
        """A changed configuration, once it is read, its profiles are fitted, and no model is being reloaded."""
        if self.rereading.is_set() and self._rereading is None and self._reread is not None:
            self.rereading.clear()
            self.notifier.reloading()
            self._rereading = asyncio.create_task(self._read_again(self._reread), name="reread")
        if self._rereading is None or not self._rereading.done() or self.loop.acting is not None:
            return None
        read, self._rereading = self._rereading.result(), None
        if read is None:
            self.notifier.ready("the configuration is as it was")
            return None
        return Fresh(*read, resumed(self.loop.carry, self.config, self.loop.knowledge, *read))

    async def _read_again(self, reread: Callable[[], Config]) -> tuple[Config, Knowledge] | None:
        """Everything that can be wrong with a configuration is found while the old one still runs."""
        try:
            config = await asyncio.to_thread(reread)
            knowledge = await asyncio.to_thread(load_knowledge, config)
        except (IgniterdError, OSError) as error:
            problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
            self.log.error("the changed configuration is not taken up; the old one stays", problems=problems)
            return None
        self.log.info("the configuration was read again: beginning anew with it", models=len(config.model), mode=config.loop.mode)
        return config, knowledge

    async def _pause(self, seconds: float) -> bool:
        """Wait for the next tick, for the end of a step under way (True: the schedule starts anew), or to be told to stop."""
        stop = asyncio.ensure_future(self.stopping.wait())
        acting = self.loop.acting
        await asyncio.wait({stop} | ({acting} if acting else set()), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return acting is not None and acting.done()

    def _told(self, tick: Tick) -> None:
        """READY with the first tick, the watchdog fed with every one."""
        status = f"{tick.plan.outcome.value}: {tick.plan.why}"
        if self._last_tick_s is None:
            self.notifier.ready(status)
            give_back()  # LLVM has loaded the kernels and is not needed again
        self.notifier.alive(status)
        self._last_tick_s = self.clock()
        if self.publisher is not None:
            healthy, reasons = self.health()
            self.publisher.set_status("online" if healthy else "degraded", "; ".join(reasons))

    def _say_overrun(self, late_s: float, tick: Tick | None) -> None:
        if tick is not None and self.clock() - self._overrun_said_s >= OVERRUN_SAID_EVERY_S:
            self._overrun_said_s = self.clock()
            slowest = max(tick.stage_s, key=lambda stage: tick.stage_s[stage])
            self.log.warning("a tick took longer than loop.interval_s", late_s=round(late_s, 3), slowest_stage=slowest)

    async def _close(self) -> None:
        """Everything within its deadline, and whatever one of them does, the others too."""
        left = await self.loop.close()
        closing: dict[str, Awaitable[None]] = {"admin": self.admin.close()}
        closing |= {f"triton:{name}": client.close() for name, client in self.tritons.items()}
        if self.publisher is not None:
            closing["mqtt"] = self.publisher.close()
        if self.nvml is not None:
            closing["nvml"] = self.nvml.close()
        tasks = {asyncio.ensure_future(each): name for name, each in closing.items()}
        await asyncio.wait(tasks, timeout=CLOSE_S)
        for task, name in tasks.items():
            if not task.done():
                self.log.warning("left behind at the end", what=name, reason=f"not closed within {CLOSE_S:g} s")
            elif not task.cancelled() and task.exception() is not None:
                self.log.warning("left behind at the end", what=name, reason=repr(task.exception()))
        if self._rereading is not None:
            self._rereading.cancel()
        self.memory.close(self.loop.carry.belief, self.clock(), time.time())
        self.history.close()
        self.notifier.close()
        self.lock.release()
        self.log.info("stopped; what is applied goes on serving", **({"left": left} if left else {}))
