"""The demo as it is played: set-up, phase after phase, and the recording of it all."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from igniterd.demo.environment import Stage, check, daemon, predicted, stage
from igniterd.demo.measure import short_of_cpu
from igniterd.demo.recording import REQUESTS, Applied, PhaseResult, Recording
from igniterd.demo.scenario import DemoPhase, Scenario
from igniterd.demo.terminal import DemoConsole, moved, progress
from igniterd.demo.watch import Watch, watching
from igniterd.errors import CannotRun
from igniterd.lab.load.load import LoadProcess, LoadSpec, Phase, RequestLog, load
from igniterd.lab.programs.process import Running
from igniterd.records import Mode

_LOOK_EVERY_S = 0.25
_START_S = 60.0
_SILENT_S = 8.0
"""A generator without a line of progress for this long hangs."""


@dataclass
class DemoRun:
    """The running demo."""

    scenario: Scenario
    stage: Stage
    load: LoadProcess
    watch: Watch
    teller: DemoConsole
    stack: AsyncExitStack
    daemon: Running | None = None
    mode: Mode | None = None
    told: int = 0
    played: list[PhaseResult] = field(default_factory=list)

    async def play(self, act: DemoPhase) -> None:
        """One phase: traffic, daemon, settling, measuring."""
        rates = self.scenario.rates(act)
        begin_s = time.time()
        await self.load.change(Phase(act.key, None, rates))
        self.teller.quiet()
        offered = ", ".join(f"{model} {rate:g}/s" for model, rate in rates.items())
        self.teller.say(f"{act.title}: {act.said}", "bold")
        starts = act.mode is not None and act.mode is not self.mode
        since = " from the daemon's first tick" if starts else ""
        self.teller.say(
            f"offered {offered}; {act.settle_s:.0f} s to settle{since}, then "
            f"{act.measured_s:.0f} s measured"
        )
        await self._with_daemon(act.mode)
        from_s = await self._first_tick() if starts else begin_s
        await self._wait(f"{act.title}: settling", from_s + act.settle_s)
        measured_s = time.time()
        await self._wait(f"{act.title}: measuring", measured_s + act.measured_s)
        self.played.append(
            PhaseResult(
                key=act.key,
                title=act.title,
                said=act.said,
                mode=act.mode.value if act.mode else None,
                judged=act.judged,
                rates_per_s=rates,
                begin_s=begin_s,
                measured_s=measured_s,
                end_s=time.time(),
            )
        )

    async def stay(self) -> None:
        """Go on as it is until cancelled."""
        self.teller.say(
            "everything goes on running until Ctrl-C; the daemon answers at "
            f"http://{self.stage.admin}/",
            "bold",
        )
        await self._wait("running on", float("inf"))

    async def _with_daemon(self, mode: Mode | None) -> None:
        if mode is self.mode:
            return
        await self.stack.aclose()
        self.daemon, self.mode = None, mode
        if mode is not None:
            self.teller.say(
                f"$ igniterd run --config {_short(self.stage.config)}"
                + (f" --mode {mode}" if mode is not Mode.ACT else "")
            )
            self.teller.say(
                f"look in meanwhile: http://{self.stage.admin}/ (also /state and /metrics)"
            )
            self.daemon = await self.stack.enter_async_context(daemon(self.stage, mode))

    async def _first_tick(self) -> float:
        """Wait for the daemon's first tick; when it was. Raises :class:`CannotRun` when none
        comes."""
        began_s, before = time.time(), len(self.watch.samples)
        while len(self.watch.samples) == before:
            left_s = began_s + _START_S - time.time()
            if left_s < 0:
                raise CannotRun(
                    f"the daemon finished no tick within {_START_S:.0f} s: "
                    f"{self.daemon.log_end() if self.daemon else ''}"
                )
            await self._wait("the daemon starts", time.time() + min(left_s + 0.01, _LOOK_EVERY_S))
        self.teller.say(f"the daemon's first tick, {time.time() - began_s:.1f} s after its start")
        return time.time()

    async def _wait(self, what: str, until_s: float) -> None:
        """Watch over everything until ``until_s``. Raises :class:`CannotRun` when the daemon or the
        generator is gone."""
        while (left_s := until_s - time.time()) > 0:
            line = self.load.progress[-1] if self.load.progress else None
            if line is not None and time.time() - line["at_s"] > _SILENT_S:
                raise CannotRun(f"the load generator has been silent for {_SILENT_S:.0f} s")
            if self.daemon is not None and not self.daemon.alive:
                raise CannotRun(f"the daemon ended: {self.daemon.log_end()}")
            for move in self.watch.moves[self.told :]:
                self.teller.say(f"igniterd moved {moved(move)}", "cyan" if move.ok else "red")
            self.told = len(self.watch.moves)
            self.teller.now(
                progress(
                    what,
                    left_s,
                    line,
                    {m.name: self.scenario.slo_ms(m.name) for m in self.scenario.models},
                )
            )
            await asyncio.sleep(min(_LOOK_EVERY_S, left_s))


async def play(
    scenario: Scenario,
    folder: Path,
    teller: DemoConsole,
    show: Callable[[Recording, RequestLog], None],
    *,
    keep: bool = False,
) -> None:
    """Play all of it in ``folder`` (empty) and hand what was seen to ``show``; with ``keep``, go on
    running after that until cancelled.

    Raises :class:`CannotRun` when a part does not come up or ends early. Everything started is
    stopped on the way out, also when cancelled.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began_s = time.time()
    _about_the_machine(teller)
    teller.say(
        "starting tritonserver, and MPS control and an MQTT broker where this machine has them"
    )
    async with _set_up(scenario, folder, teller) as theatre:
        for act in scenario.acts:
            await theatre.play(act)
        teller.quiet()
        if keep:
            log = await asyncio.to_thread(RequestLog.read, folder / REQUESTS)
            log = log.where(log.scheduled_s < theatre.played[-1].end_s)
        else:
            teller.say("stopping the load, waiting for every answer")
            log = await theatre.load.stop(timeout_s=30.0)
            # now: the daemon's last word to the broker is a part of the recording
            await theatre.stack.aclose()
        recording = await _recorded(theatre, began_s, log)
        recording.save(folder)
        show(recording, log)
        if keep:
            await theatre.stay()
    teller.quiet()


@asynccontextmanager
async def _set_up(scenario: Scenario, folder: Path, teller: DemoConsole) -> AsyncIterator[DemoRun]:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(stage(scenario, folder))
        for note in here.notes:
            teller.say(note, "yellow")
        teller.say(
            f"tritonserver serves {', '.join(m.name for m in scenario.models)} at "
            f"{here.host.triton.url}"
        )
        teller.say(f"$ igniterd check --live --config {_short(here.config)}")
        teller.say(
            "(the first time on a machine this compiles the model, which takes a minute or two)",
            "dim",
        )
        for line in await check(here):
            teller.say(line, "dim")
        broker = here.host.broker.port if here.host.broker else None
        watch = await stack.enter_async_context(watching(here.admin, broker))
        first = Phase(scenario.acts[0].key, None, scenario.rates(scenario.acts[0]))
        spec = LoadSpec(here.host.triton.url, (first,), seed=scenario.seed)
        sender = await stack.enter_async_context(load(spec, folder / REQUESTS))
        await sender.until_sent(1, timeout_s=20.0)
        daemons = await stack.enter_async_context(AsyncExitStack())
        yield DemoRun(scenario, here, sender, watch, teller, daemons)


async def _recorded(theatre: DemoRun, began_s: float, log: RequestLog) -> Recording:
    scenario, watch = theatre.scenario, theatre.watch
    batch = scenario.host().models
    notes = [*theatre.stage.notes, *short_of_cpu(log, theatre.played)]
    return Recording(
        began_s=began_s,
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        slow_factor=scenario.slow_factor,
        slos_ms={m.name: scenario.slo_ms(m.name) for m in scenario.models},
        initial={m.name: Applied(share=None, max_batch_size=m.max_batch_size) for m in batch},
        phases=theatre.played,
        samples=watch.samples,
        moves=watch.moves,
        messages=watch.messages,
        forecast_p99_ms=await _stood_still(theatre),
        notes=notes,
    )


async def _stood_still(theatre: DemoRun) -> dict[str, float | None]:
    """What the model expects of the last phase's traffic under the plan of the first steered
    phase."""
    steered = next((p for p in theatre.played if p.key == "steered"), None)
    last = theatre.played[-1]
    if steered is None or last is steered:
        return {}
    before = [
        s for s in theatre.watch.samples if steered.begin_s <= s.at_s < steered.end_s and s.applied
    ]
    if not before:
        return {}
    return await predicted(
        theatre.stage, theatre.scenario, last.rates_per_s, before[-1].applied, before[-1].bias
    )


def _about_the_machine(teller: DemoConsole) -> None:
    cores, busy = os.cpu_count() or 1, os.getloadavg()[0]
    if busy > cores:
        teller.say(
            f"other programs keep this machine busy (load {busy:.1f} on {cores} cores): "
            "latencies may suffer from that",
            "yellow",
        )


def _short(path: Path) -> str:
    """``path`` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
