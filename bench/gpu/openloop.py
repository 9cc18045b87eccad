"""P99 under Poisson arrivals, three models together at fixed shares, against what the model
predicts of it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.closedloop import LEVEL, SHARES, Say, client_of
from bench.gpu.stage import Stage
from igniterd.clients.environments import ModelConfig, base_env_of
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config_change import with_allocation
from igniterd.errors import CannotRun, NotNow
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog, load
from igniterd.perf.api import Tenant
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.predict import Demand, LatencyPredictor, quantised
from igniterd.profiler.drive import source
from igniterd.profiler.inputs import feed_of
from igniterd.records import Allocation

LOADS = (0.35, 0.6)
"""Of what full batches could serve beside neighbours that are as busy."""
LONE_S, LONE_PER_S = 6.0, 3.0
WARM = 0.15
"""Of a stretch: not counted."""
MOST_PER_S = 1200.0
"""All models together: what one generator sends on time."""
LAST_S = 12.0
"""For the last answers: a request without one is given up after 10 s."""
_LEAST_S = 2.0


@asynccontextmanager
async def own_requests(
    client: TritonClient, originals: Mapping[str, ModelConfig]
) -> AsyncIterator[dict[str, str]]:
    """A request of one item for each model, for the load generator; large inputs lie in shared
    memory while the context lasts."""
    async with AsyncExitStack() as stack:
        made = {}
        for name, config in originals.items():
            requests = await stack.enter_async_context(source(client, feed_of(config, 1)))
            made[name] = base64.b64encode(requests.request(1)).decode()
        yield made


async def tails(
    stage: Stage,
    folder: Path,
    originals: Mapping[str, ModelConfig],
    found: Profile,
    allowed_s: float,
    say: Say,
) -> list[dict[str, Any]]:
    """A record for each model at each load: offered, measured and predicted. Raises
    :class:`CannotRun` without enough time."""
    began_s, lone_s, last_s = (
        time.monotonic(),
        min(LONE_S, 0.25 * allowed_s),
        min(LAST_S, 0.2 * allowed_s),
    )
    names, largest = stage.models[:3], max(1, stage.max_batch // 2)
    allocations = {
        name: Allocation(share, largest) for name, share in zip(names, SHARES, strict=False)
    }
    predictor = LatencyPredictor(SurfaceModel(found), level=LEVEL, upper=False)
    client = client_of(stage)
    try:
        await _allocate(client, originals, allocations, folder / "state" / "shares")
        each_s = (allowed_s - (time.monotonic() - began_s) - lone_s - last_s) / len(LOADS)
        if each_s < _LEAST_S:
            raise CannotRun(
                f"for want of time: {max(0.0, each_s):.1f} s were left for each load, and "
                f"{_LEAST_S:.0f} are needed"
            )
        async with own_requests(client, {n: originals[n] for n in names}) as requests:
            spec = LoadSpec(
                stage.triton.url,
                (Phase("lone", None, dict.fromkeys(names, LONE_PER_S)),),
                seed=5,
                requests=requests,
            )
            async with load(spec, folder / "tails.csv") as sender:
                before = await _served(client, names)
                await asyncio.sleep(lone_s)
                alone_ms = _mean_ms(before, await _served(client, names))
                offered = {}
                for level in LOADS:
                    offered[level] = await asyncio.to_thread(rates, predictor, allocations, level)
                    say(
                        f"  {level:.0%}: "
                        + ", ".join(f"{m} {r:.0f}/s" for m, r in offered[level].items())
                        + f", {each_s:.0f} s"
                    )
                    await sender.change(Phase(f"{level}", None, offered[level]))
                    await asyncio.sleep(each_s)
                log = await sender.stop(timeout_s=20.0)
    finally:
        await client.close()
    lone = log.where(log.phase == "lone")
    way_ms = {n: max(0.0, float(np.median(lone.of(n).latency_ms)) - alone_ms[n]) for n in names}
    return [
        r
        for level in LOADS
        for r in _compared(predictor, allocations, offered[level], level, log, way_ms, each_s)
    ]


def rates(
    predictor: LatencyPredictor, allocations: Mapping[str, Allocation], level: float
) -> dict[str, float]:
    """Requests a second of each model at ``level`` of what full batches serve beside the others,
    all less where the sum is too much."""
    found = {}
    for name, own in allocations.items():
        beside = [
            Tenant(o, a.max_batch_size / 2, a.effective_share, level)
            for o, a in allocations.items()
            if o != name
        ]
        curve = predictor.corrected_ms(
            _demand(predictor, name, 1.0), own.effective_share, quantised(beside)
        )
        found[name] = level * 1e3 * own.max_batch_size / float(curve[own.max_batch_size - 1])
    too_much = max(1.0, sum(found.values()) / MOST_PER_S)
    return {name: rate / too_much for name, rate in found.items()}


def _demand(predictor: LatencyPredictor, name: str, rate: float) -> Demand:
    return Demand(name, name, rate, 1e9, max_batch=predictor.model.max_batch(name))


def _compared(
    predictor: LatencyPredictor,
    allocations: Mapping[str, Allocation],
    offered: Mapping[str, float],
    level: float,
    log: RequestLog,
    way_ms: Mapping[str, float],
    each_s: float,
) -> list[dict[str, Any]]:
    told = predictor.together([_demand(predictor, n, offered[n]) for n in allocations], allocations)
    records = []
    for name, allocation in allocations.items():
        all_of_it = log.where(log.phase == f"{level}").of(name)
        if not len(all_of_it):
            continue
        seen = all_of_it.of(name, float(all_of_it.scheduled_s.min()) + WARM * each_s)
        low, high = _bounds(seen)
        records.append(
            {
                "load": level,
                "model": name,
                "share": allocation.share,
                "max_batch_size": allocation.max_batch_size,
                "rate_per_s": round(offered[name], 2),
                "requests": len(seen),
                "failed": all_of_it.failed,
                "p50_ms": finite(seen.quantile_ms(0.5)),
                "p99_ms": finite(seen.quantile_ms(0.99)),
                "p99_low_ms": finite(low),
                "p99_high_ms": finite(high),
                "on_the_way_ms": round(way_ms[name], 3),
                "predicted_p50_ms": finite(told[name].p50_ms + way_ms[name]),
                "predicted_p99_ms": finite(told[name].p99_ms + way_ms[name]),
                "predicted_busy": round(told[name].utilisation, 3),
            }
        )
    return records


def _bounds(seen: RequestLog) -> tuple[float, float]:
    """90 % interval of the P99 from order statistics, as if requests were independent; those of one
    queue are not, it is too narrow."""
    count = len(seen)
    off = 1.645 * (count * 0.99 * 0.01) ** 0.5 / max(1, count)
    return seen.quantile_ms(max(0.0, 0.99 - off)), seen.quantile_ms(min(1.0, 0.99 + off))


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return round(float(value), 3) if np.isfinite(value) else None


async def _allocate(
    client: TritonClient,
    originals: Mapping[str, ModelConfig],
    allocations: Mapping[str, Allocation],
    shares: Path,
) -> None:
    async def one(name: str, target: Allocation) -> None:
        if target.share is not None:
            prepare_share(shares, target.share, base_env_of(originals[name]))
        await client.load(name, with_allocation(originals[name], target, str(shares)))

    await asyncio.gather(*(one(name, target) for name, target in allocations.items()))


async def _served(client: TritonClient, names: tuple[str, ...]) -> dict[str, tuple[int, float]]:
    """Executions of one request and their total ms."""
    found = {}
    for name, reading in (await client.read_models(names)).items():
        if isinstance(reading, NotNow):
            raise reading
        spent = [
            (b.count, b.compute_input_ns + b.compute_infer_ns + b.compute_output_ns)
            for b in reading.batches
            if b.batch_size == 1
        ]
        found[name] = (spent[0][0], spent[0][1] / 1e6) if spent else (0, 0.0)
    return found


def _mean_ms(
    before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]]
) -> dict[str, float]:
    return {n: (after[n][1] - before[n][1]) / max(1, after[n][0] - before[n][0]) for n in after}
