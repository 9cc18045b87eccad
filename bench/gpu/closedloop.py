"""Service times: the profile as a user takes it, then co-locations that were not profiled against
what the model makes of that profile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.stage import ROOT, Stage
from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.client import TritonClient
from igniterd.errors import CannotRun
from igniterd.lab.programs.process import Running, running
from igniterd.perf.api import Tenant
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.profiler.drive import Source, source
from igniterd.profiler.inputs import feed_of
from igniterd.profiler.measure import Effort, Meter
from igniterd.profiler.partial import Partial, partial_path
from igniterd.profiler.server import Server

Say = Callable[[str], None]
START_S, RESTORE_S = 15.0, 40.0
"""What `igniterd profile` takes beyond its budget to start and look at the board; the longest it
may take to put the server back."""
LEAST_POINTS = 3
"""A model with fewer cannot be fitted."""
LEVEL = 0.95
EFFORT = Effort(error=0.01, most_s=1.5)
SHARES = (0.25, 0.35, 0.4)
"""Of three models together; no profiled co-run has these."""
BATCHES = ((0.375, 0.75, 1.0), (1.0, 0.375, 0.75))
"""Of the largest batch, for the three models."""


def client_of(stage: Stage) -> TritonClient:
    return TritonClient(
        "bench", stage.triton.url, timeout_s=10.0, reload_timeout_s=120.0, config_max_age_s=3600.0
    )


def environment() -> dict[str, str]:
    """For igniterd in a process of its own."""
    before = os.environ.get("PYTHONPATH", "")
    return os.environ | {
        "PYTHONPATH": f"{ROOT}:{before}" if before else str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


# ---------------------------------------------------------------- the profile


async def profile(stage: Stage, folder: Path, allowed_s: float, say: Say) -> None:
    """``igniterd profile`` on all models; what it measured is found by :func:`profiled`, also when
    this is stopped on the way."""
    command = [
        *(sys.executable, "-m", "igniterd", "profile", *stage.models, "-o", str(_output(folder)))
    ]
    command += [
        "--triton",
        stage.triton.url,
        "--gpu",
        stage.board,
        "--state",
        str(folder / "state"),
    ]
    command += ["--max-batch", str(stage.max_batch), "--min-share", str(stage.min_share)]
    command += ["--budget", f"{max(1.0, allowed_s - START_S):.0f}"]
    if stage.sm_count is not None:
        command += ["--sm-count", str(stage.sm_count), "--board-name", stage.kind]
    async with running(
        "igniterd profile", command, log=folder / "profile.log", env=environment(), stop_s=RESTORE_S
    ) as program:
        seen = 0
        while program.alive:
            seen = _told(program, seen, say)
            await asyncio.sleep(0.5)
        _told(program, seen, say)
        if not _output(folder).exists():
            raise CannotRun(f"igniterd profile ended without one: {program.log_end(3)}")


def profiled(folder: Path) -> Profile | None:
    """What was measured: the profile, or what an interrupted one left of the models it got to, or
    ``None``."""
    output = _output(folder)
    if output.exists():
        return Profile.load(output)
    with contextlib.suppress(CannotRun):
        partial = Partial.read(partial_path(output))
        partial.models = {
            name: done for name, done in partial.models.items() if len(done.solo) >= LEAST_POINTS
        }
        partial.settings = partial.settings.model_copy(update={"models": list(partial.models)})
        partial.co_runs = [
            run for run in partial.co_runs if all(t.model in partial.models for t in run.tenants)
        ]
        if partial.models:
            found = partial.profile(origin="igniterd profile, interrupted")
            found.save(output)
            return found
    return None


def _output(folder: Path) -> Path:
    return folder / "profile.json"


def _told(program: Running, seen: int, say: Say) -> int:
    """Pass on what the program has said since."""
    lines = program.log.read_text(errors="replace").splitlines() if program.log.exists() else []
    for line in lines[seen:]:
        say(f"  {line}")
    return len(lines)


# ---------------------------------------------------------------- co-locations


@dataclass(frozen=True, slots=True)
class Case:
    """Models kept busy at once: (model, batch) each, at the shares of ``arrangement``."""

    arrangement: int
    kind: str
    loads: tuple[tuple[str, int], ...]


def arrangements(models: Sequence[str]) -> list[dict[str, float]]:
    """Shares of three models at a time: the first three, and where there is a fourth, that one with
    the second and third."""
    first = dict(zip(models[:3], SHARES, strict=False))
    if len(models) < 4:
        return [first]
    return [first, {models[3]: SHARES[2], models[1]: SHARES[1], models[2]: SHARES[0]}]


def cases(models: Sequence[str], largest: int) -> Iterator[Case]:
    """What is measured, the most telling first within an arrangement; a few reloads lie between
    arrangements."""
    for number, shares in enumerate(arrangements(models)):
        names = list(shares)
        settings = [
            dict(zip(names, (max(1, round(f * largest)) for f in part), strict=False))
            for part in BATCHES
        ]
        for batches in settings if len(names) == len(SHARES) else ():
            yield Case(number, "triple", tuple((m, batches[m]) for m in names))
        for batches in settings if number == 0 else settings[:1]:
            for pair in itertools.combinations(names, 2):
                yield Case(number, "pair", tuple((m, batches[m]) for m in pair))
        for name in names:
            yield Case(number, "alone", ((name, settings[0][name]),))


async def together(
    stage: Stage,
    folder: Path,
    originals: Mapping[str, ModelConfig],
    found: Profile,
    allowed_s: float,
    say: Say,
    records: list[dict[str, Any]],
) -> list[str]:
    """Measure and predict every case there is time for into ``records``; returns what was left out.

    A record has the tenants with their measured and predicted mean service times, the 95 % bound of
    the prediction, and for pairs what is predicted from a profile without the co-runs of that pair.
    """
    until_s = time.monotonic() + allowed_s - 3.0
    model = SurfaceModel(found)
    client = client_of(stage)
    todo = list(cases(stage.models, stage.max_batch))
    longest_s, arrange_s, arranged = 4.0, 0.0, -1
    try:
        server, meter = Server(client, originals, folder / "state" / "shares"), Meter(client, None)
        async with AsyncExitStack() as stack:
            sources = {
                n: await stack.enter_async_context(source(client, feed_of(c, stage.max_batch)))
                for n, c in originals.items()
            }
            while todo:
                reloads_s = 0.0 if todo[0].arrangement == arranged else arrange_s
                if time.monotonic() + reloads_s + longest_s >= until_s:
                    break
                case, began_s = todo.pop(0), time.monotonic()
                shares = arrangements(stage.models)[case.arrangement]
                if case.arrangement != arranged:
                    arranged = case.arrangement
                    await _arrange(server, shares, stage.max_batch)
                    arrange_s = max(arrange_s, time.monotonic() - began_s)
                    began_s = time.monotonic()
                records.append(await _measured(case, shares, sources, meter, model, found, say))
                longest_s = max(longest_s if records[1:] else 0.0, time.monotonic() - began_s)
                say(f"  {_worded(records[-1])}")
    finally:
        await client.close()
    return (
        [f"together: {len(todo)} of {len(todo) + len(records)} co-locations, for want of time"]
        if todo
        else []
    )


async def _arrange(server: Server, shares: Mapping[str, float], largest: int) -> None:
    """Nobody executes meanwhile, so the order does not matter."""
    await asyncio.gather(*(server.apply(model, share, largest) for model, share in shares.items()))


async def _measured(
    case: Case,
    shares: Mapping[str, float],
    sources: Mapping[str, Source],
    meter: Meter,
    model: SurfaceModel,
    found: Profile,
    say: Say,
) -> dict[str, Any]:
    tenants = [Tenant(name, batch, shares[name]) for name, batch in case.loads]
    seen = await meter.measure_undisturbed(
        [(sources[name], batch) for name, batch in case.loads], EFFORT, say
    )
    told = await asyncio.to_thread(model.predict, tenants, level=LEVEL)
    withheld = (
        await asyncio.to_thread(_without(found, case).predict, tenants)
        if case.kind == "pair"
        else None
    )
    return {
        "kind": case.kind,
        "tenants": [
            {
                "model": tenant.model,
                "batch": int(tenant.batch),
                "share": tenant.share,
                "measured_ms": round(mean.ms, 4),
                "measured_error": round(mean.error, 5),
                "busy": round(seen.utilisation[i], 3),
                "predicted_ms": round(told[i].latency_ms, 4),
                "upper_ms": round(told[i].upper_ms, 4),
                **({} if withheld is None else {"withheld_ms": round(withheld[i].latency_ms, 4)}),
            }
            for i, (tenant, mean) in enumerate(zip(tenants, seen.means, strict=True))
        ],
    }


def _without(found: Profile, case: Case) -> SurfaceModel:
    """The model of a profile in which this pair was never run together."""
    pair = {name for name, _ in case.loads}
    kept = tuple(run for run in found.co_runs if {t.model for t in run.tenants} != pair)
    return SurfaceModel(found.model_copy(update={"co_runs": kept}))


def _worded(record: Mapping[str, Any]) -> str:
    parts = (
        f"{t['model']} b{t['batch']} {t['share']:.0%}: {t['measured_ms']:.2f} ms "
        f"({t['predicted_ms'] / t['measured_ms'] - 1:+.1%})"
        for t in record["tenants"]
    )
    return f"{record['kind']:6s} " + " | ".join(parts)
