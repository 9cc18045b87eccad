"""What `igniterd profile` costs and how good its profile is, on the emulated V100 behind a real
Triton.

    python bench/profiling.py [--slow 1] [--keep FOLDER]

Starts a tritonserver with the four measured models, profiles them with the command a user runs, and
compares what the model fitted from that profile predicts with the measured tables the emulation is
made of: alone, and beside one neighbour. Points that were profiled are left out. The prior of
interference comes from the pairs that are not tested (as in bench/accuracy.py).

The tables hold the whole time of a batch, so the emulated GPU takes off what Triton needs to hand a
batch to the model's process and back. How much that is depends on the host: it is measured first.
The emulated GPU sleeps for as long as a batch takes, so on a host with other work its times are
late by what the kernel's scheduler takes; where it may, the bench runs it at real-time priority,
and says so. Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import accuracy

from igniterd.clients.triton.client import TritonClient
from igniterd.lab.gpu.truth import Truth
from igniterd.lab.host import EmulatedModel, HostSpec, triton_host
from igniterd.perf.api import Tenant
from igniterd.perf.profile import Profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.profiler.drive import source
from igniterd.profiler.inputs import feed_of
from igniterd.profiler.measure import Effort, Meter
from igniterd.profiler.server import Server

MODELS = accuracy.MODELS
TRUTH = Truth.v100()
SECONDS_A_MODEL = 60.0
# percent: what a profile of at most eleven points a model has to reach on pairs
MEAN, P95, UNDER = 2.3, 6.0, 3.0


def promptly() -> str:
    """Ask for real-time priority, for this process and what it starts; says what came of it."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    except (OSError, AttributeError):
        return "ordinary priority: figures depend on the host's other work"
    return "real-time priority"


async def handover_s() -> float:
    """What Triton's own figure of a batch is above the time the model's process took, mean of three
    models that take 2 to 15 ms."""
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=32) for name in MODELS), handover_s=0.0, seed=5
    )
    late = []
    async with triton_host(spec) as host:
        client = TritonClient("main", host.url, timeout_s=5.0)
        for name, batch in (("resnet50", 1), ("vgg19", 4), ("ssd", 2)):
            server = Server(client, {name: await client.config(name)}, host.folder / "shares")
            await server.apply(name, 1.0, 32)
            async with source(client, feed_of(await client.config(name), 32)) as requests:
                measured = await Meter(client, None).measure([(requests, batch)], Effort())
            late.append(measured.means[0].ms / 1e3 - TRUTH.solo_ms(name, batch, 1.0) / 1e3)
        await client.close()
    return max(0.0, sum(late) / len(late))


async def profiled(folder: Path, slow: float, handover: float) -> tuple[Profile, float]:
    """The profile of all models and the seconds the command took, start of the program and
    restoring included."""
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=32) for name in MODELS),
        slow_factor=slow,
        handover_s=handover,
        seed=11,
    )
    output = folder / "profile.json"
    async with triton_host(spec, folder / "triton") as host:
        command = [*("-m", "igniterd", "profile", *MODELS, "-o", str(output), "--triton", host.url)]
        command += ["--gpu", f"emulated:{host.board_path}", "--state", str(folder / "state")]
        began_s = time.monotonic()
        child = await asyncio.create_subprocess_exec(sys.executable, *command, env=os.environ)
        if await child.wait() != 0:
            raise SystemExit("igniterd profile failed")
        return Profile.load(output), time.monotonic() - began_s


def alone(profile: Profile) -> accuracy.Errors:
    """Solo points of the tables that were not profiled."""
    errors, fitted = accuracy.Errors.none(), SurfaceModel(profile, accuracy.BLANK)
    for name, model in accuracy.EVERYTHING.models.items():
        have = {(p.batch, round(p.share, 6)) for p in profile.models[name].solo}
        for p in model.solo:
            if (p.batch, round(p.share, 6)) not in have:
                (found,) = fitted.predict([Tenant(name, p.batch, p.share)], level=accuracy.LEVEL)
                errors.add(found.latency_ms, p.latency_ms, found.upper_ms)
    return errors


def beside(profile: Profile) -> accuracy.Errors:
    """Co-runs of the tables that were not profiled, each pair with a prior of the other pairs."""
    errors = accuracy.Errors.none()
    have = {
        frozenset((t.model, t.batch, round(t.share, 6)) for t in run.tenants)
        for run in profile.co_runs
    }
    for pair in itertools.combinations(MODELS, 2):
        fitted = SurfaceModel(profile, accuracy.prior_without(pair))
        runs = [r for r in accuracy.RUNS if accuracy.pair_of(r) == pair]
        fresh = [
            r
            for r in runs
            if frozenset((t.model, t.batch, round(t.share, 6)) for t in r.tenants) not in have
        ]
        accuracy.judge(fitted, fresh, errors)
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(
        description="cost and quality of igniterd profile on the emulated V100"
    )
    parser.add_argument(
        "--slow", type=float, default=1.0, help="factor on every time of the emulated GPU"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder to keep the profile and the server's log in"
    )
    asked = parser.parse_args()
    priority = promptly()
    handover = asyncio.run(handover_s())
    with tempfile.TemporaryDirectory(prefix="igniterd-") as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("triton", "state"):
            shutil.rmtree(folder / old, ignore_errors=True)
        profile, spent_s = asyncio.run(profiled(folder, asked.slow, handover))
    profile = profile.time_scaled(1.0 / asked.slow)
    each_s, points = spent_s / len(MODELS), [len(m.solo) for m in profile.models.values()]
    print(
        f"\n{os.cpu_count()} CPUs, {priority}, load {os.getloadavg()[0]:.1f}, times x "
        f"{asked.slow:g}, handover {1e3 * handover:.2f} ms"
    )
    print(
        f"{spent_s:.0f} s for {len(MODELS)} models ({each_s:.0f} s a model), points {points}, "
        f"{len(profile.co_runs)} co-runs"
    )
    print(accuracy.HEAD)
    solo, pairs = alone(profile), beside(profile)
    accuracy.show("alone, points not profiled", solo, bound=True)
    accuracy.show("beside one neighbour, points not profiled", pairs, bound=True)
    size = accuracy.np.abs(pairs.error)
    reached = {
        f"at most {SECONDS_A_MODEL:.0f} s a model": each_s <= SECONDS_A_MODEL * asked.slow,
        f"beside: mean at most {MEAN} %": 100 * size.mean() <= MEAN,
        f"beside: p95 at most {P95} %": 100 * accuracy.np.quantile(size, 0.95) <= P95,
        f"beside: at most {UNDER} % of points under-predicted by more than 5 %": 100
        * accuracy.np.mean(accuracy.np.array(pairs.error) < -0.05)
        <= UNDER,
    }
    for what, held in reached.items():
        print(f"{'reached' if held else 'MISSED ':7s} {what}")
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
