"""``python -m bench.gpu [--emulated]``: everything that needs a GPU, measured in one go. See
``run.sh``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu import closedloop, loop, machine, openloop, report
from bench.gpu.budget import Budget
from bench.gpu.stage import ROOT, SLOW_FACTOR, Kind, Stage, needed, staged
from igniterd.clients.environments import ModelConfig
from igniterd.errors import CannotRun, IgniterdError
from igniterd.lab.gpu.nvml import NAME as EMULATED_NAME
from igniterd.perf.profile import Profile

PHASES = {"start": 40.0, "profile": 190.0, "together": 80.0, "tails": 55.0, "loop": 115.0}
"""How the budget is divided."""
STOP_S = 15.0
"""Kept back to stop everything and to write."""
COMPILE_S = 150.0
REMARKS = {
    Kind.GPU: "PyTorch networks with random weights on a real GPU behind Triton",
    Kind.EMULATED: f"Emulated GPU: times of measured V100 tables, {SLOW_FACTOR:g} times slower. "
    "These are not figures of a GPU.",
    Kind.CPU: "PyTorch networks on the CPU, shares without effect: shows that the harness runs. "
    "These are not figures of a GPU.",
}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Harness:
    """One run; ``results`` is on disk after every phase."""

    def __init__(
        self, kind: Kind, folder: Path, output: Path, budget: Budget, given: Profile | None = None
    ) -> None:
        """``given`` is used in place of a profile of its own."""
        self.folder, self.output, self.budget, self._given = folder, output, budget, given
        self.results: dict[str, Any] = {
            "what": "igniterd GPU harness",
            "mode": kind.value,
            "remark": REMARKS[kind],
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine.described(),
            "notes": [],
            "incomplete": budget.incomplete,
            "spent_s": budget.spent_s,
            "took_s": 0.0,
        }
        self._kind, self._began_s = kind, time.monotonic()
        self._stage: Stage | None = None
        self._originals: dict[str, ModelConfig] = {}
        self._profile: Profile | None = None

    async def run(self) -> None:
        """All phases; what fails is in ``incomplete``. Everything started is stopped on the way
        out."""
        async with AsyncExitStack() as stack:
            compiling = asyncio.create_task(_compiled(), name="compile")
            stack.push_async_callback(_cancelled, compiling)
            await self._phase("start", lambda _: self._start(stack, compiling), most_s=COMPILE_S)
            if self._stage is None:
                self.budget.lacks(
                    f"{', '.join(p for p in PHASES if p != 'start')}: nothing could be started"
                )
                return
            for name, work in (
                ("profile", self._profiled),
                ("together", self._together),
                ("tails", self._tails),
                ("loop", self._loop),
            ):
                await self._phase(name, work)

    def finish(self) -> None:
        """Write what there is, with a picture."""
        self._save()
        if "profile" not in self.results:
            return  # nothing to draw
        with contextlib.suppress(OSError):
            report.draw(self.results, self.output.with_suffix(".png"))

    async def _phase(
        self, name: str, work: Callable[[float], Awaitable[None]], most_s: float | None = None
    ) -> None:
        say(f"[{time.monotonic() - self._began_s:4.0f} s] {name}")
        ended = await self.budget.phase(name, work, most_s=most_s)
        if not ended:
            say(f"  left out: {self.budget.incomplete[-1]}")
        self._save()

    def _save(self) -> None:
        self.results["took_s"] = round(time.monotonic() - self._began_s, 1)
        report.save(self.results, self.output)

    async def _start(self, stack: AsyncExitStack, compiling: asyncio.Task[None]) -> None:
        needed()
        self.results["gpu"] = await asyncio.to_thread(self._described)
        self._stage = await stack.enter_async_context(staged(self._kind, self.folder))
        self.results["notes"] += self._stage.notes
        for note in self._stage.notes:
            say(f"  note: {note}")
        client = closedloop.client_of(self._stage)
        try:
            self.results["triton"] = (await client.server()).version
            self._originals = {name: await client.config(name) for name in self._stage.models}
        finally:
            await client.close()
        say(
            f"  Triton {self.results['triton']} serves {', '.join(self._stage.models)}; waiting "
            "for igniterd's model to be compiled"
        )
        await compiling

    def _described(self) -> dict[str, Any]:
        if self._kind is Kind.EMULATED:
            return {"name": EMULATED_NAME, "slow_factor": SLOW_FACTOR}
        return {**machine.board(), "torch": machine.torch_here()}

    @property
    def _running(self) -> Stage:
        if self._stage is None:
            raise CannotRun("nothing was started")
        return self._stage

    @property
    def _known(self) -> Profile:
        if self._profile is None:
            raise CannotRun("there is no profile")
        return self._profile

    async def _profiled(self, allowed_s: float) -> None:
        stage = self._running
        if self._given is not None:
            self._given.save(self.folder / "profile.json")
            self.results["notes"].append("the profile was given, not measured")
        try:
            if self._given is None:
                await closedloop.profile(stage, self.folder, allowed_s, say)
        finally:  # what was measured before it was stopped is of use
            found = closedloop.profiled(self.folder)
            if found is not None:
                self._take(stage, found)

    def _take(self, stage: Stage, found: Profile) -> None:
        """Go on with this profile, and with the models that are in it."""
        self._profile = found
        models = {
            n: {"points": len(m.solo), "memory_bytes": m.memory_bytes}
            for n, m in found.models.items()
        }
        told = {"models": models, "co_runs": len(found.co_runs), "origin": found.origin}
        self.results["profile"] = told | (
            {"measured": json.loads(found.dump())} if self._given is None else {}
        )
        if absent := [name for name in stage.models if name not in found.models]:
            self.budget.lacks(
                f"profile: {', '.join(absent)}, for want of time; left out from here on"
            )
            self._stage = replace(stage, models=tuple(m for m in stage.models if m in found.models))
        expected = len(found.models) * (len(found.models) - 1)
        if len(found.co_runs) < expected:
            self.budget.lacks(
                f"profile: {expected - len(found.co_runs)} of {expected} co-runs, for want of time"
            )

    async def _together(self, allowed_s: float) -> None:
        records: list[dict[str, Any]] = []
        try:
            missing = await closedloop.together(
                self._running, self.folder, self._originals, self._known, allowed_s, say, records
            )
            self.budget.incomplete.extend(missing)
        finally:  # what was measured before it was stopped counts too
            self.results["together"] = records
            self.results["service_time"] = report.summed(records)

    async def _tails(self, allowed_s: float) -> None:
        self.results["tails"] = await openloop.tails(
            self._running, self.folder, self._originals, self._known, allowed_s, say
        )

    async def _loop(self, allowed_s: float) -> None:
        self.results["loop"] = await loop.steered(
            self._running, self.folder, self._originals, self._known, allowed_s, say
        )


COMPILE = """
from igniterd.perf import builtin_profile, load_model
from igniterd.predictors import _compile
_compile(load_model(builtin_profile("v100")), 0.95, "alexnet")
"""


async def _compiled() -> None:
    """Have igniterd's model compiled before anything is measured beside it; on later runs it comes
    from numba's cache."""
    child = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-c",
            "from igniterd.predictors import _compile; _compile(None, 0.95, '')",
        ),
        stdout=asyncio.subprocess.DEVNULL,
        env=closedloop.environment(),
    )
    try:
        await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def measured(asked: argparse.Namespace, folder: Path) -> Harness:
    """The whole run, ended in order by SIGINT and SIGTERM."""
    budget = Budget(max(1.0, asked.budget - STOP_S), PHASES)
    given = None if asked.profile is None else Profile.load(asked.profile)
    harness = Harness(asked.kind, folder, asked.output, budget, given)
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel if task else lambda: None)
    try:
        await harness.run()
    except asyncio.CancelledError:
        budget.lacks("the rest: stopped by a signal")
    return harness


def main() -> int:
    """Exit status 0 when everything was measured, 1 when something is missing (the JSON says
    what)."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu/run.sh", description="profile, predict and steer real networks on a GPU"
    )
    parser.add_argument(
        "--emulated",
        dest="kind",
        action="store_const",
        const=Kind.EMULATED,
        default=Kind.GPU,
        help="without a GPU",
    )
    parser.add_argument(
        "--cpu",
        dest="kind",
        action="store_const",
        const=Kind.CPU,
        help="the networks on the CPU, to try the harness out",
    )
    parser.add_argument(
        "--budget", type=float, default=480.0, metavar="SECONDS", help="longest time in all (480)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="the JSON; the picture lies beside it (out/gpu-MODE.json)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep configurations and logs in this new folder",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="use this profile of the same models and board, measure none",
    )
    asked = parser.parse_args()
    asked.output = (asked.output or ROOT / "out" / f"gpu-{asked.kind}.json").absolute()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    if asked.keep is not None and asked.keep.exists():
        parser.error(f"--keep {asked.keep}: is there already; give a new folder")
    try:
        with tempfile.TemporaryDirectory(prefix="igniterd-") as temporary:
            folder = (asked.keep or Path(temporary) / "run").absolute()
            folder.mkdir(parents=True)
            harness = asyncio.run(measured(asked, folder))
    except IgniterdError as problem:
        say(str(problem))
        return 1
    harness.finish()
    say(f"\n{report.text(harness.results)}\n{asked.output}")
    if "profile" in harness.results:
        say(str(asked.output.with_suffix(".png")))
    return 1 if harness.budget.incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
