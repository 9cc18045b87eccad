"""Is a request ever refused for what igniterd does? Every request counted, on a real Triton.

    python bench/refused.py [--day 30] [--kills 3] [--hang 200]

The board and the work of the models are emulated; Triton, its Python backend's processes, MPS
control and the daemon are real. One host is driven through a day of single requests, the nightly
batches, ``kill -9`` of the daemon and of Triton in the middle of reloads; all the while clients
also bring the owner's largest batch. Another, at the same time, has a model whose old copies do not
go. What is refused is told apart from what failed otherwise by the status of gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.refused_host import (
    BIG,
    LARGEST,
    PLANNED,
    Stage,
    Variant,
    batches,
    ensemble,
    plain,
    settled,
    shared,
    stage,
    warmed,
)
from igniterd.clients.processes import ProcessTable
from igniterd.lab.load.load import Phase, RequestLog
from igniterd.lab.programs import programs
from igniterd.records import Stub

DAY = {"alexnet": 50.0, "resnet50": 37.0, "vgg19": 18.0, "pipe": 4.0}
LEVELS = (0.5, 1.0, 1.6, 1.0, 0.5)
MIXES = (
    {"alexnet": 90.0, "resnet50": 20.0, "vgg19": 8.0},
    {"alexnet": 20.0, "resnet50": 40.0, "vgg19": 35.0},
)
NIGHT = {f"alexnet{BIG}": 3.0, f"resnet50{BIG}": 1.5, f"vgg19{BIG}": 0.7, f"pipe{BIG}": 3.0}
GONE = ("failed to connect", "Socket closed")
"""Of an error: the server was not there to refuse anything."""
REFUSALS = ("UNAVAILABLE", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")
RELOAD_S, HOLD_S, NIGHT_S, SHIFT_S = 40.0, 60.0, 15.0, 20.0
COMPILED_S = 180.0
"""Longest wait for a first tick: where nothing is cached yet, the kernels are compiled."""
HANGS = """

class TritonPythonModel(TritonPythonModel):
    def finalize(self):
        time.sleep(3600)
"""


async def reloading(on: Stage, timeout_s: float = RELOAD_S) -> bool:
    """Wait for a load that begins; whether one did."""
    before, ends_s = on.host.loads().total(), time.monotonic() + timeout_s
    while on.host.loads().total() == before:
        if time.monotonic() > ends_s:
            return False
        await asyncio.sleep(0.02)
    return True


def is_refusal(error: str) -> bool:
    return error.startswith(REFUSALS) and not any(words in error for words in GONE)


def told(title: str, log: RequestLog) -> None:
    """Sent, failed and refused of a part of the run."""
    failed = log.error[~log.ok]
    refused = [error for error in failed if is_refusal(error)]
    big = np.char.endswith(log.model, BIG)
    print(
        f"  {title:<42} sent {len(log):>5} ({int(big.sum())} of batch {LARGEST}), "
        f"failed {len(failed) - len(refused)}, refused {len(refused)}"
    )
    kinds = Counter(zip(log.model[~log.ok], failed, strict=True))
    for (model, error), count in kinds.most_common(3):
        print(f"      {count} of {model}: {error[:150]}")


def part(log: RequestLog, *names: str) -> RequestLog:
    return log.where(np.isin(log.phase, names))


async def day(on: Stage, length_s: float) -> dict[str, int]:
    """Single requests that rise and fall; the batches planned for them."""
    for level in LEVELS:
        rates = {model: level * rate for model, rate in DAY.items()}
        await on.load.change(Phase("day", None, rates))
        await asyncio.sleep(length_s / len(LEVELS))
    return batches(await on.daemon.state())


async def night(on: Stage) -> dict[str, int]:
    await on.load.change(Phase("night", None, NIGHT | {m: 0.2 * r for m, r in DAY.items()}))
    await asyncio.sleep(NIGHT_S)
    return batches(await on.daemon.state())


async def kills(on: Stage, number: int) -> int:
    """The daemon is killed when a reload has begun, and started again; how many were in one."""
    inside = 0
    for n in range(number):
        rates = MIXES[n % 2] | {"pipe": 4.0} | NIGHT
        await on.load.change(Phase("daemon killed", None, rates))
        inside += await reloading(on)
        await on.daemon.stop(kill=True)
        await on.daemon.start()
        await on.daemon.until(lambda s: s["tick"] >= 1, HOLD_S)
    return inside


async def crash(on: Stage, mix: Mapping[str, float]) -> tuple[bool, float, float, float]:
    """Triton is killed in a reload: whether in one, when it fell, was back, and all had shares."""
    await on.load.change(Phase("triton killed", None, dict(mix) | {"pipe": 4.0} | NIGHT))
    inside = await reloading(on)
    fell_s = time.time()
    os.kill(on.host.pid, signal.SIGKILL)
    await on.host.restart()
    back_s = time.time()
    tick = (await on.daemon.state()).get("tick", 0)
    done = await on.daemon.until(lambda s: s["tick"] > tick + 1 and shared(s), HOLD_S)
    return inside, fell_s, back_s, time.time() if done else float("nan")


async def plain_host(day_s: float, number: int) -> None:
    """Parts 1, 2, 3 and 5."""
    models = (plain("alexnet"), warmed("resnet50"), plain("vgg19"), ensemble("pipe", "alexnet"))
    async with stage(models, DAY) as on:
        began = on.host.loads()
        await on.daemon.until(lambda s: s["tick"] >= 1, COMPILED_S)
        took = await on.daemon.until(settled, HOLD_S)
        planned = await day(on, day_s)
        at_night = await night(on)
        steered = on.host.loads() - began
        inside = await kills(on, number)
        held = await on.daemon.until(shared, HOLD_S)
        reloads = on.host.loads() - began - steered
        crashed, fell_s, back_s, shares_s = await crash(on, MIXES[number % 2])
        await asyncio.sleep(3.0)
        log = await on.load.stop()
    print(f"clients may bring {LARGEST}, at most {PLANNED} may be planned")
    print(f"resnet50 warms up with {LARGEST}; pipe is an ensemble of alexnet")
    print(f"  settled at first: {took}; planned by day {planned}, by night {at_night}")
    told(f"1 take over and day, {steered.total()} reloads", part(log, "first", "day"))
    told("1 night", part(log, "night"))
    told(f"2, 3 daemon killed, {inside} of {number} in a reload", part(log, "daemon killed"))
    print(f"      {reloads.total()} reloads meanwhile; shares for all afterwards: {held}")
    last = part(log, "triton killed")
    up = last.scheduled_s + last.latency_ms / 1e3 < fell_s
    answered = last.scheduled_s[last.ok & (last.scheduled_s > back_s)]
    first_s = float(answered.min()) if len(answered) else float("inf")
    down = ~up & (last.scheduled_s < first_s)
    told(f"5 before Triton was killed (in a reload: {crashed})", last.where(up))
    told(f"5 while it was down, {first_s - fell_s:.1f} s", last.where(down))
    again = last.where(~up & ~down)
    told("5 after the first answer", again)
    if again.failed:
        late = again.scheduled_s[~again.ok] - back_s
        print(f"      of {late.min():.1f} to {late.max():.1f} s after it was ready")
    took_s = shares_s - back_s
    print(f"      ready after {back_s - fell_s:.1f} s; shares for all {took_s:.1f} s later")


@dataclass
class Hung:
    """What was seen of a model whose old copies do not go."""

    copies: int = 0
    """Alive at a time, at most."""
    states: Counter[str] = field(default_factory=Counter)
    why: str = ""
    reloads: Counter[str] = field(default_factory=Counter)
    log: RequestLog | None = None

    def look(self, stubs: tuple[Stub, ...], pid: int, state: Mapping[str, Any]) -> None:
        ours = [s for s in stubs if s.server_pid == pid and "/hanging/" in s.path]
        self.copies = max(self.copies, len(ours))
        for model in state.get("models", ()):
            if model["name"] == "hanging":
                self.states[model["state"] or "-"] += 1
                self.why = model["why"]


async def hanging_host(length_s: float) -> Hung:
    """Part 4: ``finalize()`` of a model takes an hour, and its load asks for other shares."""
    big = {f"hanging{BIG}": 0.5}
    rates = ({"alexnet": 90.0, "hanging": 10.0}, {"alexnet": 20.0, "hanging": 45.0})
    models = (plain("alexnet"), Variant(plain("hanging", "resnet50"), code=HANGS))
    async with stage(models, rates[0] | big) as on:
        await on.daemon.until(lambda s: s["tick"] >= 1, COMPILED_S)
        seen, before, table, turn = Hung(), on.host.loads(), ProcessTable(), 0
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < length_s:
            if int(now_s / SHIFT_S) > turn:
                turn += 1
                await on.load.change(Phase("hang", None, rates[turn % 2] | big))
            seen.look(await table.read(), on.host.pid, await on.daemon.state())
            await asyncio.sleep(0.5)
        seen.reloads = on.host.loads() - before
        seen.log = await on.load.stop()
    return seen


def told_of_hanging(seen: Hung, length_s: float) -> None:
    assert seen.log is not None
    told(f"4 old copies stay, {length_s:.0f} s of shifting load", seen.log)
    print(f"      reloads {dict(seen.reloads)}; copies of hanging alive at most {seen.copies}")
    print(f"      its states (looks): {dict(seen.states)}; {seen.why}")


async def both(day_s: float, number: int, hang_s: float) -> Hung:
    """Both hosts at the same time."""
    _, seen = await asyncio.gather(plain_host(day_s, number), hanging_host(hang_s))
    return seen


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--day", type=float, default=30.0, help="seconds of single requests")
    parser.add_argument("--kills", type=int, default=3, help="of the daemon")
    parser.add_argument("--hang", type=float, default=200.0, help="seconds beside old copies")
    args = parser.parse_args()
    began_s = time.monotonic()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}, tritonserver {programs.SERVER}")
    told_of_hanging(asyncio.run(both(args.day, args.kills, args.hang)), args.hang)
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
