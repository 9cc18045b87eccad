"""The closed loop: Triton as it comes, then the daemon, then a shift of the traffic; every request
counts."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.closedloop import LEVEL, Say, client_of, environment
from bench.gpu.openloop import LAST_S, MOST_PER_S, finite, own_requests
from bench.gpu.stage import Kind, Stage
from igniterd.clients.environments import ModelConfig
from igniterd.decide.search import find
from igniterd.demo.watch import Watch, watching
from igniterd.errors import CannotRun
from igniterd.lab.load.load import LoadProcess, LoadSpec, Phase, RequestLog, load
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.predict import Demand, LatencyPredictor

LEAST_S = 30.0
SLO_FACTOR = 3.0
"""SLOs are this many times what half the largest batch takes at a third of the GPU."""
USE = 0.75
"""Of the traffic that the model says fits."""
MARGIN = 0.9
"""Of the SLO: what the daemon plans for."""
SHIFT = (1.6, 1.0, 0.4)
PARTS = {"bare": (0.03, 0.11), "steered": (0.31, 0.19), "shifted": (0.19, 0.17)}
"""Of the time: to settle, then measured."""
TITLES = {"bare": "without", "steered": "igniterd", "shifted": "traffic shifted"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """SLOs (P99, ms), and requests a second before and after the shift."""

    slos_ms: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]


def traffic(found: Profile, names: Sequence[str]) -> Traffic:
    """Traffic that fits by the model with room to spare, whatever GPU this is. Raises
    :class:`CannotRun` where nothing fits."""
    predictor = LatencyPredictor(SurfaceModel(found), level=LEVEL)
    demands, slos = [], {}
    for name in names:
        largest = predictor.model.max_batch(name)
        curve = predictor.corrected_ms(
            Demand(name, name, 1.0, 1e9, max_batch=largest), 1.0 / len(names), ()
        )
        slos[name] = float(f"{SLO_FACTOR * curve[max(1, largest // 2) - 1]:.2g}")
        demands.append(
            Demand(
                name,
                name,
                0.2 * 1e3 * largest / float(curve[-1]),
                MARGIN * slos[name],
                max_batch=largest,
            )
        )
    shifted = [
        replace(d, rate_per_s=d.rate_per_s * by) for d, by in zip(demands, SHIFT, strict=False)
    ]
    return Traffic(slos, _fitting(predictor, demands), _fitting(predictor, shifted))


def _fitting(predictor: LatencyPredictor, demands: Sequence[Demand]) -> dict[str, float]:
    """The rates of ``demands`` times what makes them fill ``USE`` of the GPU."""
    scale = 1.0
    for _ in range(8):
        plan = find(predictor, [replace(d, rate_per_s=d.rate_per_s * scale) for d in demands])
        if plan.feasible:
            break
        scale /= 1.6
    else:
        raise CannotRun("the model finds no traffic that these SLOs allow")
    scale *= USE * plan.headroom
    scale = min(scale, MOST_PER_S / sum(d.rate_per_s for d in demands))
    return {d.model: round(d.rate_per_s * scale, 2) for d in demands}


async def steered(
    stage: Stage,
    folder: Path,
    originals: Mapping[str, ModelConfig],
    found: Profile,
    allowed_s: float,
    say: Say,
) -> dict[str, Any]:
    """Play it; the record. Raises :class:`CannotRun` without enough time, or when a part ends
    early."""
    if allowed_s < LEAST_S:
        raise CannotRun(f"{allowed_s:.0f} s were left, {LEAST_S:.0f} are needed")
    until_s = time.monotonic() + allowed_s - min(LAST_S, 0.1 * allowed_s)
    names = stage.models[:3]
    planned = await asyncio.to_thread(traffic, found, names)
    client = client_of(stage)
    try:
        await asyncio.gather(
            *(client.load(n, config, exact=True) for n, config in originals.items())
        )
        admin = f"127.0.0.1:{free_ports(1)[0]}"
        config = _configured(stage, folder, planned, admin)
        async with (
            own_requests(client, {n: originals[n] for n in names}) as requests,
            watching(admin, None) as watch,
        ):
            spec = LoadSpec(
                stage.triton.url, (Phase("bare", None, planned.before),), seed=9, requests=requests
            )
            async with load(spec, folder / "loop.csv") as sender:
                played = await _played(
                    stage, config, planned, sender, watch, until_s - time.monotonic(), say
                )
                log = await sender.stop(timeout_s=20.0)
    finally:
        await client.close()
    return _recorded(planned, played, log, watch)


async def _played(
    stage: Stage,
    config: Path,
    planned: Traffic,
    sender: LoadProcess,
    watch: Watch,
    seconds: float,
    say: Say,
) -> list[dict[str, Any]]:
    played: list[dict[str, Any]] = []

    async def play(key: str, rates: Mapping[str, float], program: Running | None) -> None:
        settle, measured = (part * seconds for part in PARTS[key])
        say(
            f"  {TITLES[key]}: "
            + ", ".join(f"{m} {r:g}/s" for m, r in rates.items())
            + f"; {settle:.0f} + {measured:.0f} s"
        )
        begin_s = time.time()
        await sender.change(Phase(key, None, rates))
        await _while_alive(program, settle)
        from_s = time.time()
        await _while_alive(program, measured)
        played.append(
            {
                "key": key,
                "rates_per_s": dict(rates),
                "begin_s": begin_s,
                "measured_s": from_s,
                "end_s": time.time(),
            }
        )

    await play("bare", planned.before, None)
    async with _daemon(stage, config) as program:
        await play("steered", planned.before, program)
        await play("shifted", planned.after, program)
    for move in watch.moves:
        say(
            f"  moved {move.model}: {move.before} -> "
            f"{move.after}{'' if move.ok else f', refused: {move.error}'}"
        )
    return played


async def _while_alive(program: Running | None, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        if program is not None and not program.alive:
            raise CannotRun(f"the daemon ended: {program.log_end()}")
        await asyncio.sleep(min(0.25, left_s))


@asynccontextmanager
async def _daemon(stage: Stage, config: Path) -> AsyncIterator[Running]:
    command = [
        sys.executable,
        "-m",
        "igniterd",
        "run",
        "--config",
        str(config),
        "--mode",
        "act",
        "--log-format",
        "json",
    ]
    libraries = stage.mps.control.environment() if stage.mps else {}
    async with running(
        "igniterd", command, log=config.parent / "daemon.log", env=environment() | libraries
    ) as program:
        yield program


def _configured(stage: Stage, folder: Path, planned: Traffic, admin: str) -> Path:
    """The daemon's configuration, as an administrator would write it."""
    lines = [
        '[host]\nname = "bench"\n',
        f'[[triton]]\nname = "main"\nurl = "{stage.triton.url}"\nmetrics_url = '
        f'"{stage.triton.metrics_url}"\nreload_timeout_s = 120\n',
        f'[gpu]\nsource = "{stage.board}"\n',
        f'[metrics]\nlisten = "{admin}"\n',
        f'[state]\ndirectory = "{folder / "state"}"\n',
    ]
    if stage.mps is not None:
        lines.append(
            f'[mps]\ncontrol = "{stage.mps.control.path}"\npipe_directory = '
            f'"{stage.mps.pipe_directory}"\n'
        )
    elif stage.kind is not Kind.EMULATED:
        lines.append("[mps]\nenabled = false\n")
    lines += [
        f'[[model]]\nname = "{name}"\nslo_p99_ms = {slo:g}\nprofile = "profile.json"\n'
        for name, slo in planned.slos_ms.items()
    ]
    path = folder / "igniterd.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _recorded(
    planned: Traffic, played: list[dict[str, Any]], log: RequestLog, watch: Watch
) -> dict[str, Any]:
    zero_s = played[0]["begin_s"]
    figures = []
    for phase in played:
        for name, slo in planned.slos_ms.items():
            seen = log.of(name, phase["measured_s"], phase["end_s"])
            p50, p99 = (seen.quantile_ms(q) for q in (0.5, 0.99))
            figures.append(
                {
                    "phase": phase["key"],
                    "model": name,
                    "rate_per_s": phase["rates_per_s"][name],
                    "requests": len(seen),
                    "failed": log.of(name, phase["begin_s"], phase["end_s"]).failed,
                    "p50_ms": finite(p50),
                    "p99_ms": finite(p99),
                    "slo_ms": slo,
                    "attainment": finite(seen.attainment(slo)),
                    "held": bool(p99 <= slo),
                }
            )
    times = ("begin_s", "measured_s", "end_s")
    return {
        "slos_ms": planned.slos_ms,
        "phases": [
            {**p, "title": TITLES[p["key"]], **{t: round(p[t] - zero_s, 2) for t in times}}
            for p in played
        ],
        "figures": figures,
        "requests": len(log),
        "failed": log.failed,
        "moves": [
            {
                **m.model_dump(),
                "at_s": round(m.at_s - zero_s, 2),
                "duration_s": round(m.duration_s, 2),
            }
            for m in watch.moves
        ],
        "shares": [
            {
                "at_s": round(s.at_s - zero_s, 2),
                "outcome": s.outcome,
                **{m: a.share for m, a in s.applied.items()},
            }
            for s in watch.samples
        ],
        "p99_by_second": {n: _by_second(log.of(n), zero_s) for n in planned.slos_ms},
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def _by_second(log: RequestLog, zero_s: float) -> list[tuple[int, float | None]]:
    """(second, P99 of the requests due in it)."""
    second = np.floor(log.scheduled_s - zero_s).astype(int)
    return [(int(s), finite(log.where(second == s).quantile_ms(0.99))) for s in np.unique(second)]
