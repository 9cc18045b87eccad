"""The composition root: paces the ticks, takes up a changed configuration, and tells systemd how it
goes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import structlog

from igniterd.adopt import adopt
from igniterd.adopt_compare import Terms
from igniterd.clients.admin import AdminServer
from igniterd.clients.systemd import Notifier
from igniterd.config import Config
from igniterd.decisions import Tick
from igniterd.edgelog import EdgeLogger
from igniterd.errors import CannotRun, ConfigError
from igniterd.estimate import ModelState
from igniterd.health import Health
from igniterd.loop import Loop
from igniterd.predictors import load_knowledge
from igniterd.profiled import Predictors
from igniterd.resident import trim_rss
from igniterd.setup import Setup, close_all, triton_client
from igniterd.state.carry import Carry
from igniterd.state.carry_over import resumed
from igniterd.state.history import History
from igniterd.state.lock import HostLock

OVERRUN_SAID_EVERY_S = 60.0
ADOPT_CALL_S = 5.0  # longest wait for one answer while a model is given a process of its own
PREPARE_S = 300.0  # longest wait for a changed configuration; fitting and compiling may take 210 s


@dataclass(frozen=True, slots=True)
class Prepared:
    """A changed configuration, ready to be taken up."""

    setup: Setup
    recalled: dict[str, ModelState]
    admin: AdminServer | None  # where it listens on another address than the one before it


class Daemon:
    """One host's igniterd. ``run`` returns when it is told to stop; nothing that is applied is
    taken back."""

    def __init__(
        self,
        config: Config,
        *,
        knowledge: Predictors | None = None,
        carry: Carry | None = None,
        reread: Callable[[], Config] | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``knowledge``: where the profiles are read already; ``carry``: what is known already;
        ``reread`` reads the configuration again, for SIGHUP."""
        self.clock = clock
        self.notifier = notifier or Notifier()
        self.log = structlog.get_logger("igniterd")
        self.stopping, self.rereading = asyncio.Event(), asyncio.Event()
        self.setup = Setup(config, knowledge or load_knowledge(config), self._adopt)
        carry = carry or Carry()
        remembered = self.setup.recall_states(clock())
        self.loop.carry = replace(carry, belief={**remembered, **carry.belief})
        self.health = Health(clock)
        self.health.follow(config)
        self.admin = self._admin(config)
        self.lock, self._locked = _lock(config), False
        self._shown = self.setup  # whose last tick the admin address shows
        self._reread = reread
        self._preparing: asyncio.Task[Prepared | None] | None = None
        self._once = EdgeLogger("loop", clock=clock)
        self._aside: set[asyncio.Task[None]] = set()
        self._first = self._owes_ready = True
        self._overrun_said_s = float("-inf")

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def loop(self) -> Loop:
        return self.setup.loop

    @property
    def history(self) -> History:
        return self.setup.history

    def _admin(self, config: Config) -> AdminServer:
        return AdminServer(
            *config.metrics.address,
            metrics=lambda accept: self._shown.metrics.render(accept),  # noqa: PLW0108  whose, changes
            state=lambda: self._shown.reporter.state,
            health=self.health.alive,
            ready=self.health.ready,
            hosts=config.metrics.hosts,
        )

    async def _adopt(self, model: str) -> str:
        """Give a model a process of its own; returns why not, or an empty string."""
        told = self.config.by_name()[model]
        server = next(s for s in self.config.triton if s.name == told.triton)
        terms = Terms(tuple(server.repository), self.config.engines.environment)
        client = triton_client(server, self.config, ADOPT_CALL_S)  # no tick waits for it
        try:
            found = await adopt(client, told.name, terms)
        finally:
            await client.close()
            self.setup.tritons[server.name].read_configs_again()
        return "" if found.ok else found.why

    async def run(self) -> None:
        """Tick until told to stop (SIGTERM, SIGINT, or ``stopping`` set). SIGHUP, or ``rereading``
        set, takes up the configuration as it is then.

        Raises :class:`CannotRun` when another igniterd has this host, or the admin address cannot
        be had.
        """
        self._listen_to_signals()
        self.log.info(
            "starting",
            host=self.config.host.name,
            mode=self.config.loop.mode,
            models=len(self.config.model),
        )
        try:
            self.lock.take()
            self._locked = True
            await self.admin.start()
            self.setup.begin()
            await self.setup.start()
            await self._tick_forever()
        finally:
            self.notifier.stopping()
            await self._close()

    def _listen_to_signals(self) -> None:
        signals = {signal.SIGTERM: self.stopping, signal.SIGINT: self.stopping}
        if self._reread is not None:
            signals[signal.SIGHUP] = self.rereading
        running = asyncio.get_running_loop()
        for number, event in signals.items():
            # not in the main thread: the caller sets the event
            with contextlib.suppress(RuntimeError):
                running.add_signal_handler(number, event.set)
        running.set_exception_handler(self._unforeseen)

    def _unforeseen(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What ended a task or a callback that nobody waits for: one line for each kind."""
        error = context.get("exception")
        kind = f"{context.get('message', '')} {type(error).__name__}"
        self._once.failed(kind, repr(error), exc_info=error)

    async def _tick_forever(self) -> None:
        next_s = self.clock()
        while not self.stopping.is_set():
            tick = await self._turn()
            if self._took_up():
                next_s = self.clock()
                continue
            next_s += self.config.loop.interval_s
            late_s = self.clock() - next_s
            if late_s > 0:  # never caught up: a burst of ticks would help nobody
                self._say_overrun(late_s, tick)
                next_s = self.clock()
            if await self._pause(max(0.0, next_s - self.clock())):
                next_s = self.clock()

    async def _turn(self) -> Tick | None:
        """One tick, told to everybody. One that fails is said once and costs itself only: the next
        starts from the same carry.

        The watchdog is fed by finished ticks alone, so that systemd restarts a daemon whose ticks
        go on failing.
        """
        try:
            tick = await self.loop.tick(self.clock())
            self._announce(tick)
            self.setup.memory.keep(self.loop.carry.belief, tick.at_s, tick.wall_time_s)
        # whatever it is, a host that is watched badly is better than one that is not watched
        except Exception as error:
            self._once.failed("tick", repr(error), exc_info=True)
            self.health.failed()
            return None
        self._once.worked("tick")
        return tick

    # ------------------------------------------------------------ a changed configuration

    def _took_up(self) -> bool:
        """Whether a changed configuration was taken up just now: one that is prepared beside the
        ticks, once no model is being reloaded. Whoever asks meanwhile is heard: the last one
        counts."""
        task, reread = self._preparing, self._reread
        if self.rereading.is_set() and reread is not None and (task is None or task.done()):
            self.rereading.clear()
            self.notifier.reloading()
            stale = None if task is None else task.result()
            self._preparing = asyncio.create_task(self._prepare(reread, stale), name="reread")
            return False
        if task is None or not task.done() or self.loop.acting is not None:
            return False
        prepared, self._preparing = task.result(), None
        if prepared is None or not self._exchange(prepared):
            self.notifier.ready("the configuration is as it was")
            return False
        return True

    async def _prepare(
        self, reread: Callable[[], Config], stale: Prepared | None
    ) -> Prepared | None:
        """Everything that can be wrong with a configuration is found while the old one still runs.
        ``stale`` is what was prepared before and is not taken up; it may have the same address."""
        setup: Setup | None = None
        try:
            async with asyncio.timeout(PREPARE_S):
                if stale is not None:
                    await self._drop(stale)
                config = await asyncio.to_thread(reread)
                knowledge = await asyncio.to_thread(load_knowledge, config)
                setup = await asyncio.to_thread(Setup, config, knowledge, self._adopt, self.setup)
                recalled = await asyncio.to_thread(setup.recall_states, self.clock())
                admin = await self._moved_admin(config)
        except Exception as error:  # whatever it is, the one that runs goes on
            if setup is not None:
                self._beside(setup.close(self.setup), "refused configuration")
            self._refuse(error)
            return None
        return Prepared(setup, recalled, admin)

    async def _moved_admin(self, config: Config) -> AdminServer | None:
        """The admin address where it is another one than now: listening, or nothing has changed."""
        if config.metrics.address == self.config.metrics.address:
            return None
        admin = self._admin(config)
        if config.metrics.address[1] == self.admin.address[1]:  # of one port, two may not be had
            await self.admin.close()
        try:
            await admin.start()
        except CannotRun:
            await self.admin.start()
            raise
        return admin

    def _refuse(self, error: Exception) -> None:
        problems = (
            list(error.problems) if isinstance(error, ConfigError) else [str(error) or repr(error)]
        )
        if isinstance(error, TimeoutError):
            problems = [f"not read, fitted and checked within {PREPARE_S:g} s"]
        self.log.error(
            "the changed configuration is not taken up; the old one stays", problems=problems
        )

    def _exchange(self, prepared: Prepared) -> bool:
        """From here to the end nothing waits, so that no tick is missed; what goes is closed beside
        them."""
        old, new, now_s = self.setup, prepared.setup, self.clock()
        try:
            self._lock_anew(new.config)
        except CannotRun as error:
            self._beside(self._drop(prepared), "refused configuration")
            self._refuse(error)
            return False
        carry = resumed(self.loop.handed_on(), old.config, old.knowledge, new.config, new.knowledge)
        new.loop.carry = replace(carry, belief={**prepared.recalled, **carry.belief})
        if new.memory is not old.memory:
            last = asyncio.to_thread(old.memory.close, self.loop.carry.belief, now_s, time.time())
            self._beside(last, "learnt.json")
        self.setup, self._owes_ready = new, True
        new.begin()
        self.health.follow(new.config)
        self._beside(new.start(old), "old configuration")
        if prepared.admin is not None:
            self._beside(self.admin.close(), "old admin address")
            self.admin = prepared.admin
        self.admin.admit(new.config.metrics.hosts)
        models, mode = len(new.config.model), new.config.loop.mode
        self.log.info(
            "the configuration was read again: going on with it", models=models, mode=mode
        )
        return True

    def _lock_anew(self, config: Config) -> None:
        """The locks that ``config`` wants. They may be partly the same, which cannot be had
        twice."""
        if _locked_by(config) == _locked_by(self.config):
            return
        lock = _lock(config)
        self.lock.release()
        try:
            lock.take()
        except CannotRun:
            self.lock.take()
            raise
        self.lock = lock

    async def _drop(self, prepared: Prepared) -> None:
        await prepared.setup.close(self.setup)
        if prepared.admin is not None:
            await prepared.admin.close()
            await self.admin.start()

    def _beside(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Beside the ticks, and not forgotten: an error in it is said."""
        task = asyncio.create_task(work, name=what)
        self._aside.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._aside.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.log.warning("left behind", what=what, reason=repr(error))

        task.add_done_callback(ended)

    # ------------------------------------------------------------ pacing, and what is told

    async def _pause(self, seconds: float) -> bool:
        """Wait for the next tick, for the end of a step under way (True: the schedule starts anew),
        or to be told to stop."""
        stop = asyncio.ensure_future(self.stopping.wait())
        acting = self.loop.acting
        await asyncio.wait(
            {stop} | ({acting} if acting else set()),
            timeout=seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        stop.cancel()
        return acting is not None and acting.done()

    def _announce(self, tick: Tick) -> None:
        """READY with the first tick of a configuration, the watchdog fed with every one."""
        status = f"{tick.plan.outcome.value}: {tick.plan.why}"
        self._shown = self.setup
        self.health.finished(tick)
        if self._owes_ready:
            self.notifier.ready(status)
            self._owes_ready = False
        if self._first:
            trim_rss()  # LLVM has loaded the kernels and is not needed again
            self._first = False
        self.notifier.alive(status)
        if self.setup.publisher is not None:
            whole, reasons = self.health.whole()
            self.setup.publisher.set_status("online" if whole else "degraded", "; ".join(reasons))

    def _say_overrun(self, late_s: float, tick: Tick | None) -> None:
        if tick is not None and self.clock() - self._overrun_said_s >= OVERRUN_SAID_EVERY_S:
            self._overrun_said_s = self.clock()
            slowest = max(tick.stage_s, key=lambda stage: tick.stage_s[stage])
            self.log.warning(
                "a tick took longer than loop.interval_s",
                late_s=round(late_s, 3),
                slowest_stage=slowest,
            )

    async def _close(self) -> None:
        """Everything within its deadline, and whatever one of them does, the others too. What
        another igniterd has, because this one was refused, is not written."""
        left = await self.loop.close()
        if self._preparing is not None:
            self._preparing.cancel()
        others = {task.get_name(): task for task in self._aside}
        await asyncio.gather(close_all({"admin": self.admin.close(), **others}), self.setup.close())
        if self._locked:
            self.setup.memory.close(self.loop.carry.belief, self.clock(), time.time())
        self.notifier.close()
        self.lock.release()
        self.log.info(
            "stopped; what is applied goes on serving", **({"left": left} if left else {})
        )


def _locked_by(config: Config) -> tuple[object, ...]:
    acts_on = (
        tuple(sorted(server.url for server in config.triton)) if config.loop.mode == "act" else ()
    )
    return config.state.directory, acts_on


def _lock(config: Config) -> HostLock:
    acts_on = [server.url for server in config.triton] if config.loop.mode == "act" else ()
    return HostLock(config.state.directory, acts_on)
