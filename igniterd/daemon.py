"""The composition root: builds the clients, wires the stages, paces the ticks, and tells systemd how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import structlog

from igniterd.clients.admin import AdminServer
from igniterd.clients.metrics import Metrics
from igniterd.clients.mps import MpsControl
from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.nvml import NvmlClient
from igniterd.clients.systemd import Notifier
from igniterd.clients.triton import TlsFiles, TritonClient
from igniterd.config import Config, Triton
from igniterd.decide import Oracles
from igniterd.errors import CannotRun, ProfileError
from igniterd.history import History
from igniterd.loop import Carry, Knowledge, Loop
from igniterd.memory import Memory, identity
from igniterd.model import PerformanceModel, Profile, load_model
from igniterd.model.api import Tenant
from igniterd.model.oracle import Demand, Oracle
from igniterd.observe import Sources
from igniterd.records import Allocation, Tick
from igniterd.report import Reporter

OVERRUN_SAID_EVERY_S = 60.0
FIT_TIMEOUT_S = 60.0
SLOW_COMPILE_S = 3.0


def triton_client(server: Triton, config: Config) -> TritonClient:
    """The client of one configured Triton."""
    tls = TlsFiles(server.ca_file, server.key_file, server.cert_file) if server.ca_file else None
    return TritonClient(
        server.name,
        server.url,
        server.metrics_url,
        timeout_s=config.loop.io_timeout_s,
        reload_timeout_s=server.reload_timeout_s,
        headers=server.header,
        tls=tls,
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


def fitted(profile: Profile) -> PerformanceModel:
    """igniterd's model of ``profile``, fitted in a process of its own: the solvers take 80 MB that this one would never give back.

    Raises :class:`ProfileError` as the fit does, :class:`CannotRun` when it takes longer than a minute or its process dies.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(load_model, profile).result(timeout=FIT_TIMEOUT_S)
        except (BrokenProcessPool, TimeoutError) as error:
            raise CannotRun(f"the model could not be fitted to the profile: {error!r}") from error


def load_knowledge(config: Config) -> Knowledge:
    """Read the profiles the configuration names and fit the model to them.

    Raises :class:`ProfileError` naming the model and the file for one that is unreadable, lacks the model, or is for another board
    than the others.
    """
    profiled: dict[str, str] = {}
    merged: Profile | None = None
    for model in config.model:
        if model.profile is None:
            continue
        profile, name = Profile.load(model.profile), model.profile_model or model.name
        if name not in profile.models:
            raise ProfileError(
                f"model {model.name}: {model.profile} profiles {', '.join(profile.models)}, not {name}; "
                "set profile_model, or profile this model"
            )
        profiled[model.name] = name
        merged = profile if merged is None else merged.merge(profile)
    if merged is None:
        return Knowledge()
    predictor, level = fitted(merged), config.decide.level
    oracles = Oracles(promises=Oracle(predictor, level=level), expects=Oracle(predictor, level=level, upper=False))
    _check_slos(config, profiled, oracles.expects)
    _compile(oracles, next(iter(profiled.values())))
    identities = {name: identity(merged, model) for name, model in profiled.items()}
    return Knowledge(profiled, oracles, identities, merged.board.name, merged.board.sm_count)


def _compile(oracles: Oracles, model: str) -> None:
    """Ask once for what a decision asks for: on a machine where numba has cached nothing yet this takes a minute, and must not happen
    inside a tick."""
    began_s = time.monotonic()
    demand = Demand("compile", model, 10.0, 100.0, max_batch=2)
    allocations = {"compile": Allocation(1.0, 2, 1000)}
    oracles.promises.together([demand], allocations)
    oracles.expects.served(demand, allocations["compile"], [Tenant(model, 1.0, 0.5, 0.5)])
    if time.monotonic() - began_s > SLOW_COMPILE_S:
        took_s = round(time.monotonic() - began_s, 1)
        structlog.get_logger("igniterd").info("compiled the model's kernels; later starts take them from numba's cache", took_s=took_s)


def _check_slos(config: Config, profiled: dict[str, str], oracle: Oracle) -> None:
    """Refuse an SLO below the fastest possible latency: no share on this board could ever hold it."""
    problems = []
    for model in config.model:
        if model.name not in profiled:
            continue
        mean_ms, _ = oracle.model.service_curve_ms(profiled[model.name], model.max_share, (), 1, level=oracle.level)
        fastest_ms = float(mean_ms[0])
        if fastest_ms > model.slo_p99_ms:
            problems.append(
                f"model {model.name}: slo_p99_ms = {model.slo_p99_ms:g}, but one request alone takes {fastest_ms:.3g} ms "
                f"with max_share = {model.max_share:g} on this board"
            )
    if problems:
        raise CannotRun("; ".join(problems))


class Daemon:
    """One host's igniterd. ``run`` returns when it is told to stop; nothing that is applied is taken back."""

    def __init__(self, config: Config, *, notifier: Notifier | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.clock = clock
        self.notifier = notifier or Notifier()
        self.log = structlog.get_logger("igniterd")
        self.stopping = asyncio.Event()
        knowledge = load_knowledge(config)
        self.tritons = {server.name: triton_client(server, config) for server in config.triton}
        self.nvml = nvml_client(config)
        sources = Sources(
            tritons=self.tritons,
            models={name: tuple(m.name for m in config.model if m.triton == name) for name in self.tritons},
            boards=self.nvml,
            mps=mps_client(config),
            gpus={m.name: m.gpu for m in config.model if m.gpu is not None},
            mps_interval_s=config.mps.interval_s,
            timeout_s=config.loop.io_timeout_s,
        )
        self.publisher = self._publisher()
        self.metrics = Metrics(config, mqtt=self.publisher.statistics if self.publisher else None)
        self.history = History(config.state.directory / "history.db")
        self.reporter = Reporter(config, metrics=self.metrics.update, publisher=self.publisher, history=self.history.record)
        self.loop = Loop(config, sources, self.tritons, knowledge, self.reporter)
        self.memory = Memory(config.state.directory / "learnt.json", {m.name: knowledge.identities.get(m.name, "") for m in config.model})
        self.loop.carry = Carry(belief=self.memory.recall(clock(), time.time()))
        self.admin = AdminServer(
            *config.metrics.address, metrics=self.metrics.render, state=lambda: self.reporter.state, health=self.health
        )
        self._last_tick_s: float | None = None
        self._overrun_said_s = float("-inf")

    def _publisher(self) -> MqttPublisher | None:
        mqtt = self.config.mqtt
        if mqtt is None:
            return None
        return MqttPublisher(
            mqtt.url,
            cluster=self.config.host.cluster,
            host=self.config.host.name,
            username=mqtt.username,
            password_file=mqtt.password_file,
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
        )

    def health(self) -> tuple[bool, list[str]]:
        """Whether ticks are being finished and Triton answers; the reasons when not."""
        if self._last_tick_s is None:
            return False, ["no tick finished yet"]
        reasons = []
        age_s = self.clock() - self._last_tick_s
        if age_s > 5 * self.config.loop.interval_s:
            reasons.append(f"the last tick was finished {age_s:.0f} s ago")
        reasons += [f"{gap['source']}: {gap['reason']}" for gap in self.reporter.state.get("gaps", ()) if gap["source"] != "nvml"]
        return not reasons, reasons

    async def run(self) -> None:
        """Tick until told to stop (SIGTERM, SIGINT, or ``stopping`` set)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # not in the main thread: the caller sets `stopping`
                asyncio.get_running_loop().add_signal_handler(number, self.stopping.set)
        self.log.info("starting", host=self.config.host.name, mode=self.config.loop.mode, models=len(self.config.model))
        await self.admin.start()
        if self.publisher is not None:
            await self.publisher.start()
        try:
            await self._tick_forever()
        finally:
            self.notifier.stopping()
            await self._close()
            self.log.info("stopped; what is applied goes on serving")

    async def _tick_forever(self) -> None:
        interval_s, next_s = self.config.loop.interval_s, self.clock()
        while not self.stopping.is_set():
            tick = await self.loop.tick(self.clock())
            self._told(tick)
            self.memory.keep(self.loop.carry.belief, tick.at_s, tick.wall_time_s)
            next_s += interval_s
            late_s = self.clock() - next_s
            if late_s > 0:  # never caught up: a burst of ticks would help nobody
                self._say_overrun(late_s, tick)
                next_s = self.clock()
            if await self._pause(max(0.0, next_s - self.clock())):
                next_s = self.clock()

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
        self.notifier.alive(status)
        self._last_tick_s = self.clock()
        if self.publisher is not None:
            healthy, reasons = self.health()
            self.publisher.set_status("online" if healthy else "degraded", "; ".join(reasons))

    def _say_overrun(self, late_s: float, tick: Tick) -> None:
        if self.clock() - self._overrun_said_s >= OVERRUN_SAID_EVERY_S:
            self._overrun_said_s = self.clock()
            slowest = max(tick.stage_s, key=lambda stage: tick.stage_s[stage])
            self.log.warning("a tick took longer than loop.interval_s", late_s=round(late_s, 3), slowest_stage=slowest)

    async def _close(self) -> None:
        await self.loop.close()
        await self.admin.close()
        if self.publisher is not None:
            await self.publisher.close()
        for client in self.tritons.values():
            await client.close()
        if self.nvml is not None:
            await self.nvml.close()
        self.history.close()
        self.memory.close(self.loop.carry.belief, self.clock(), time.time())
        self.notifier.close()
