"""How faithful the emulated GPU is on this machine, and what it costs: the demo's load on a real
Triton against an ideal simulation.

    python bench/emulator.py [--slow 4] [--seconds 30]

The ideal is the same physics (tables, neighbours, dispersion) and Triton's batcher in virtual time:
no process, no network, no lateness. It is given the very arrivals of the run. What is left is the
error of doing it for real, and the CPU each process took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config_change import with_allocation
from igniterd.lab.gpu.executor import Dispersion, Rates, Running
from igniterd.lab.gpu.truth import Truth, share_units
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog, load
from igniterd.records import Allocation

# the demo's models: rate (requests/s before slowing), share
DEMO = {"alexnet": (400.0, 0.125), "resnet50": (300.0, 0.3), "vgg19": (150.0, 0.4)}
MAX_BATCH = 8

Shares = dict[str, float | None]


@dataclass
class Tenant:
    """One model of the ideal host."""

    rates: Rates
    model: int
    units: int
    dispersion: Dispersion
    queue: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)  # arrival times of those executing
    work: float = 0.0
    latency_ms: list[float] = field(default_factory=list)


def ideal(
    slow: float, arrivals: list[tuple[float, str]], shares: Shares, seed: int
) -> dict[str, list[float]]:
    """Latencies (ms) of every request in virtual time: a model that is free takes what is queued,
    up to the largest batch."""
    tables = Truth.v100().tables()
    tenants = {}
    for name, share in shares.items():
        model, units = tables.models.index(name), share_units(share) if share else 0
        tenants[name] = Tenant(
            Rates(tables, model, units), model, units, Dispersion(f"ideal {seed} {name}")
        )
    coming, now = sorted(arrivals, reverse=True), 0.0
    while coming or any(t.batch for t in tenants.values()):
        speed = {n: _speed(t, tenants) for n, t in tenants.items() if t.batch}
        until = min(
            [now + tenants[n].work / v for n, v in speed.items()]
            + ([coming[-1][0]] if coming else [])
        )
        for name, v in speed.items():
            tenants[name].work -= (until - now) * v
        now = until
        while coming and coming[-1][0] <= now:
            at, name = coming.pop()
            tenants[name].queue.append(at)
        for t in tenants.values():
            if t.batch and t.work <= 1e-9:
                t.latency_ms += [(now - a) * 1e3 for a in t.batch]
                t.batch = []
            if not t.batch and t.queue:
                t.batch, t.queue = t.queue[:MAX_BATCH], t.queue[MAX_BATCH:]
                t.work = t.rates.solo_ms[len(t.batch)] / 1e3 * slow * t.dispersion.draw()
    return {name: t.latency_ms for name, t in tenants.items()}


def _speed(tenant: Tenant, tenants: dict[str, Tenant]) -> float:
    others = [
        Running(o.model, o.units, len(o.batch))
        for o in tenants.values()
        if o is not tenant and o.batch
    ]
    return tenant.rates.rate(len(tenant.batch), others)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return [
        int(p)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for p in (task / "children").read_text().split()
    ]


def processes(triton: TritonHost) -> dict[str, int]:
    """The processes of the run by name."""
    found = {"tritonserver": triton.pid}
    for pid in children(os.getpid()):
        if b"loadgen" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found["load generator"] = pid
    for pid in children(triton.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found[f"stub of {Path(words[1].decode()).parts[-3]}"] = pid
    return found


async def real(
    slow: float, seconds: float, shares: Shares, slice_s: float
) -> tuple[RequestLog, dict[str, float]]:
    """The log of a run on a real Triton, and the CPU of each process (fraction of a core)."""
    models = tuple(EmulatedModel(name, max_batch_size=MAX_BATCH) for name in DEMO)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with triton_host(
            HostSpec(models, slow_factor=slow, slice_s=slice_s), folder / "triton"
        ) as triton:
            client = TritonClient("bench", triton.url, timeout_s=5.0)
            for name, share in shares.items():
                if share:
                    prepare_share(folder / "shares", share)
                    target = with_allocation(
                        await client.config(name),
                        Allocation(share, MAX_BATCH),
                        str(folder / "shares"),
                    )
                    await client.load(name, target)
            await client.close()
            await asyncio.sleep(2.0)  # the old copies leave
            rates = {name: rate / slow for name, (rate, _) in DEMO.items()}
            async with load(
                LoadSpec(triton.url, (Phase("bench", seconds, rates),)), folder / "log.csv"
            ) as running:
                await running.until_sent(20, timeout_s=30)
                watched = processes(triton)
                before, since = (
                    {n: cpu_s(p) for n, p in watched.items()},
                    asyncio.get_running_loop().time(),
                )
                await asyncio.sleep(seconds - 2.0)
                span = asyncio.get_running_loop().time() - since
                used = {n: (cpu_s(p) - before[n]) / span for n, p in watched.items()}
                log = await running.wait_finished(timeout_s=60)
    return log, used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--slow",
        type=float,
        default=4.0,
        help="every time is multiplied and every rate divided by this",
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--slice-ms", type=float, default=4.0)
    asked = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; slow "
        f"factor {asked.slow:g}, {asked.seconds:g} s each"
    )
    with_shares: Shares = {n: s for n, (_, s) in DEMO.items()}
    for title, shares in (("with shares", with_shares), ("without MPS", dict.fromkeys(DEMO))):
        log, used = asyncio.run(real(asked.slow, asked.seconds, shares, asked.slice_ms / 1e3))
        late_ms = float(np.quantile(log.sent_s - log.scheduled_s, 0.99)) * 1e3
        start = log.scheduled_s.min()
        arrivals = [
            (float(t - start), str(m)) for t, m in zip(log.scheduled_s, log.model, strict=True)
        ]
        wanted = [ideal(asked.slow, arrivals, shares, seed) for seed in range(10)]
        print(
            f"\n{title}: {len(log)} requests, {log.failed} failed, generator late by "
            f"{late_ms:.2f} ms (P99)"
        )
        for name in DEMO:
            mine, figures = log.of(name), []
            for q in (0.5, 0.9, 0.99):
                best = float(np.mean([np.quantile(w[name], q) for w in wanted]))
                figures.append(
                    f"P{100 * q:g} {mine.quantile_ms(q):6.1f} ms (ideal {best:6.1f}, "
                    f"{100 * (mine.quantile_ms(q) / best - 1):+5.1f} %)"
                )
            print(f"  {name:9s} {'  '.join(figures)}")
        print(
            "  CPU: "
            + ", ".join(f"{n} {100 * u:.1f} %" for n, u in used.items())
            + f"; together {100 * sum(used.values()):.0f} % of a core"
        )


if __name__ == "__main__":
    main()
