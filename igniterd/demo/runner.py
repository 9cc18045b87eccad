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

from igniterd.demo.environment import (
    PROFILE,
    Environment,
    check_live,
    running_daemon,
    start_environment,
)
from igniterd.demo.forecast import expected_p99_ms
from igniterd.demo.measure import short_of_cpu
from igniterd.demo.recording import REQUESTS, Applied, PhaseResult, Recording
from igniterd.demo.scenario import DemoPhase, Scenario
from igniterd.demo.terminal import DemoConsole, describe_move, progress
from igniterd.demo.watch import Watch, watching
from igniterd.errors import CannotRun
from igniterd.lab.load.load import LoadProcess, LoadSpec, Phase, RequestLog, load
from igniterd.lab.programs.process import Running
from igniterd.perf import Profile
from igniterd.records import Mode

_LOOK_EVERY_S = 0.25
_START_S = 60.0
_SILENT_S = 8.0
"""A generator without a line of progress for this long hangs."""


@dataclass
class DemoRun:
    """The running demo."""

    scenario: Scenario
    environment: Environment
    load: LoadProcess
    watch: Watch
    console: DemoConsole
    stack: AsyncExitStack
    daemon: Running | None = None
    mode: Mode | None = None
    shown_moves: int = 0
    results: list[PhaseResult] = field(default_factory=list)

    async def play(self, phase: DemoPhase) -> None:
        """One phase: traffic, daemon, settling, measuring."""
        rates = self.scenario.rates(phase)
        begin_s = time.time()
        await self.load.change(Phase(phase.key, None, rates))
        self.console.quiet()
        offered = ", ".join(f"{model} {rate:g}/s" for model, rate in rates.items())
        self.console.say(f"{phase.title}: {phase.said}", "bold")
        starts = phase.mode is not None and phase.mode is not self.mode
        since = " from the daemon's first tick" if starts else ""
        self.console.say(
            f"offered {offered}; {phase.settle_s:.0f} s to settle{since}, then "
            f"{phase.measured_s:.0f} s measured"
        )
        await self._with_daemon(phase.mode)
        from_s = await self._first_tick() if starts else begin_s
        await self._wait(f"{phase.title}: settling", from_s + phase.settle_s)
        measured_s = time.time()
        await self._wait(f"{phase.title}: measuring", measured_s + phase.measured_s)
        self.results.append(
            PhaseResult(
                key=phase.key,
                title=phase.title,
                said=phase.said,
                mode=phase.mode.value if phase.mode else None,
                judged=phase.judged,
                rates_per_s=rates,
                begin_s=begin_s,
                measured_s=measured_s,
                end_s=time.time(),
            )
        )

    async def run_on(self) -> None:
        """Go on as it is until cancelled."""
        self.console.say(
            "everything goes on running until Ctrl-C; the daemon answers at "
            f"http://{self.environment.admin}/",
            "bold",
        )
        await self._wait("running on", float("inf"))

    async def _with_daemon(self, mode: Mode | None) -> None:
        if mode is self.mode:
            return
        await self.stack.aclose()
        self.daemon, self.mode = None, mode
        if mode is not None:
            self.console.say(
                f"$ igniterd run --config {_short(self.environment.config)}"
                + (f" --mode {mode}" if mode is not Mode.ACT else "")
            )
            self.console.say(
                f"look in meanwhile: http://{self.environment.admin}/ (also /state and /metrics)"
            )
            self.daemon = await self.stack.enter_async_context(
                running_daemon(self.environment, mode)
            )

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
        self.console.say(f"the daemon's first tick, {time.time() - began_s:.1f} s after its start")
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
            for move in self.watch.moves[self.shown_moves :]:
                self.console.say(
                    f"igniterd moved {describe_move(move)}", "cyan" if move.ok else "red"
                )
            self.shown_moves = len(self.watch.moves)
            self.console.now(
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
    console: DemoConsole,
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
    _warn_if_busy(console)
    console.say(
        "starting tritonserver, and MPS control and an MQTT broker where this machine has them"
    )
    async with _start(scenario, folder, console) as run:
        for phase in scenario.phases:
            await run.play(phase)
        console.quiet()
        if keep:
            log = await asyncio.to_thread(RequestLog.read, folder / REQUESTS)
            log = log.where(log.scheduled_s < run.results[-1].end_s)
        else:
            console.say("stopping the load, waiting for every answer")
            log = await run.load.stop(timeout_s=30.0)
            # now: the daemon's last word to the broker is a part of the recording
            await run.stack.aclose()
        recording = await _record(run, began_s, log)
        recording.save(folder)
        show(recording, log)
        if keep:
            await run.run_on()
    console.quiet()


@asynccontextmanager
async def _start(scenario: Scenario, folder: Path, console: DemoConsole) -> AsyncIterator[DemoRun]:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(start_environment(scenario, folder))
        for note in here.notes:
            console.say(note, "yellow")
        console.say(
            f"tritonserver serves {', '.join(m.name for m in scenario.models)} at "
            f"{here.host.triton.url}"
        )
        console.say(f"$ igniterd check --live --config {_short(here.config)}")
        console.say(
            "(the first time on a machine this compiles the model, which takes a minute or two)",
            "dim",
        )
        for line in await check_live(here):
            console.say(line, "dim")
        broker = here.host.broker.port if here.host.broker else None
        watch = await stack.enter_async_context(watching(here.admin, broker))
        first = Phase(scenario.phases[0].key, None, scenario.rates(scenario.phases[0]))
        spec = LoadSpec(here.host.triton.url, (first,), seed=scenario.seed)
        sender = await stack.enter_async_context(load(spec, folder / REQUESTS))
        await sender.until_sent(1, timeout_s=20.0)
        daemons = await stack.enter_async_context(AsyncExitStack())
        yield DemoRun(scenario, here, sender, watch, console, daemons)


async def _record(run: DemoRun, began_s: float, log: RequestLog) -> Recording:
    scenario, watch = run.scenario, run.watch
    devices = run.environment.host.triton.spec.devices if scenario.boards else ()
    initial = {
        model.name: Applied(share=None, max_batch_size=model.max_batch_size, gpu=served.gpu)
        for served, model in zip(scenario.models, scenario.host().models, strict=True)
    }
    notes = [*run.environment.notes, *short_of_cpu(log, run.results)]
    return Recording(
        began_s=began_s,
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        slow_factor=scenario.slow_factor,
        slos_ms={m.name: scenario.slo_ms(m.name) for m in scenario.models},
        initial=initial,
        phases=run.results,
        samples=watch.samples,
        moves=watch.moves,
        messages=watch.messages,
        forecast_p99_ms=await _forecast_standing_still(run),
        notes=notes,
        gpus=[board.uuid for board in devices],
    )


async def _forecast_standing_still(run: DemoRun) -> dict[str, float | None]:
    """What the model expects of the last phase's traffic under the plan of the first steered
    phase."""
    steered = next((p for p in run.results if p.key == "steered"), None)
    last = run.results[-1]
    if steered is None or last is steered:
        return {}
    before = [
        s for s in run.watch.samples if steered.begin_s <= s.at_s < steered.end_s and s.applied
    ]
    if not before:
        return {}
    scenario, sample = run.scenario, before[-1]
    # in a thread: it may compile for a minute, and the programs are watched meanwhile
    return await asyncio.to_thread(
        expected_p99_ms,
        Profile.load(run.environment.folder / PROFILE),
        slos_ms={m.name: scenario.slo_ms(m.name) for m in scenario.models},
        rates_per_s=last.rates_per_s,
        allocations={name: applied.allocation() for name, applied in sample.applied.items()},
        bias=sample.bias,
    )


def _warn_if_busy(console: DemoConsole) -> None:
    cores, busy = os.cpu_count() or 1, os.getloadavg()[0]
    if busy > cores:
        console.say(
            f"other programs keep this machine busy (load {busy:.1f} on {cores} cores): "
            "latencies may suffer from that",
            "yellow",
        )


def _short(path: Path) -> str:
    """``path`` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
