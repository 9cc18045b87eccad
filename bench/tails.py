"""Predicted against measured tails on a real Triton: medians and P99 of one Python model behind the
dynamic batcher.

    python bench/tails.py [--slices 4] [--batches 1 4 8 16] [--delays 0 6] [--instances 1] [--loads
    0.3 0.5 0.7 0.8] [--json OUT.json]

The model takes a + b n ms for a batch of n (gamma dispersed). An open-loop client sends Poisson
arrivals; latency counts from the time a request was due. What a prediction is made from is measured
beforehand, never on the points it is compared with:

- service times: the server's own batch_stats during a calibration run, a straight line through the
  means of its batch sizes;
- time between two batches that is in no statistic: a saturated stretch, its length less what
  batch_stats count, a batch;
- time on the way (gRPC, queues of the client): a stretch at 20 % load, its median less the
  prediction for that load;
- dispersion of one service: the spread of lone requests, 4 a second.

A point is measured in slices of 10 s, whose requests are pooled but for each slice's first second.
A slice in which processes of this machine waited for a CPU for more than ``--quiet`` of the time
(Linux pressure stall information, all processes) says nothing about Triton's queue and is repeated,
as far as ``--tries`` allows; how many slices counted is printed, and a point without any is left
out.

Load is the rate over what full batches can serve (b / (a + b b + gap) of the largest, times the
instances). ``noise`` is the standard deviation of P99 between 20 simulated runs of as much: what
repeating the measurement would show. ``alike`` is the error without most of that noise: of a
simulation of the same queue that is given the very arrivals of the measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from igniterd.clients.triton.client import TritonClient
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost
from igniterd.lab.load.load import Arrivals, LoadSpec, Phase, RequestLog, load
from igniterd.lab.programs.process import free_ports
from igniterd.lab.replay.replay import gaps_s
from igniterd.queueing.kernels.monte_carlo import respond
from igniterd.queueing.tail import TailResult, response_time

CV = 0.1
T = TypeVar("T")
SLICE_S, WARM_S = 10.0, 1.0
MODEL = """
import os, random, sys, time
sys.path[:0] = os.environ["IGNITERD_EMULATOR_PATH"].split(":")
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.random = random.Random(args["model_name"])

    def execute(self, requests):
        start = time.monotonic()
        shape = 1 / {cv} ** 2
        seconds = ({a} + {b} * len(requests)) / 1e3 * self.random.gammavariate(shape, 1 / shape)
        out = [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.zeros((1, 1), np.float32))]) for _ in requests]
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        return out
"""  # noqa: E501


@dataclass
class Calibration:
    """What predictions of one model are made from."""

    curve_ms: list[float]  # batch_stats, on a line, and the gap
    gap_ms: float
    overhead_ms: float
    cv: float
    instances: int

    def told(self, rate: float, delay_ms: float) -> TailResult:
        return response_time(
            rate,
            self.curve_ms,
            service_cv=self.cv,
            max_queue_delay_ms=delay_ms,
            instances=self.instances,
        )


@dataclass(frozen=True)
class Case:
    """One model of the server."""

    largest: int
    delay_ms: float
    instances: int

    @property
    def name(self) -> str:
        return f"b{self.largest}d{self.delay_ms:g}i{self.instances}"

    def __str__(self) -> str:
        more = f", {self.instances} instances" if self.instances > 1 else ""
        return f"largest batch {self.largest}, delay {self.delay_ms:g} ms{more}"


@dataclass
class Point:
    """One measured point; errors are predicted over measured - 1."""

    largest: int
    delay_ms: float
    instances: int
    load: float
    rate_per_s: float
    busy: float
    requests: int
    p50_ms: float
    p99_ms: float
    p50_error: float
    p99_error: float
    noise: float
    p50_alike: float  # errors of a simulation with the arrivals of the measurement
    p99_alike: float
    slices: int  # undisturbed ones
    waited: float  # fraction of the time that processes waited for a CPU, mean over those


class LinearHost(TritonHost):
    """A Triton whose models take a + b n ms."""

    times = (0.0, 0.0)

    def prepare(self) -> None:
        super().prepare()
        for model in self.spec.models:
            (self.repository / model.name / "1" / "model.py").write_text(
                MODEL.format(cv=CV, a=self.times[0], b=self.times[1])
            )


async def stage(
    host: TritonHost, model: str, rate: float, seconds: float, arrivals: Arrivals, seed: int
) -> RequestLog:
    """Send one stretch of load and wait for every answer."""
    spec = LoadSpec(host.url, (Phase("only", seconds, {model: rate}, arrivals),), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        async with load(spec, Path(folder) / "log.csv") as process:
            log = await process.wait_finished(timeout_s=seconds + 60)
    if log.failed:
        raise SystemExit(f"{model}: {log.failed} requests failed: {log.error[~log.ok][0]}")
    return log


def waited_s() -> float:
    """Seconds since boot in which some process waited for a CPU; 0 where the kernel does not
    say."""
    source = Path("/proc/pressure/cpu")
    return float(source.read_text().split("total=")[1].split()[0]) / 1e6 if source.exists() else 0.0


async def quietly(
    stretch: Callable[[int], Awaitable[T]], asked: argparse.Namespace
) -> tuple[T, float] | None:
    """``stretch(attempt)`` until it was undisturbed, with how much processes waited; ``None`` when
    ``--tries`` did not suffice."""
    for attempt in range(asked.tries):
        before, start = waited_s(), time.monotonic()
        result = await stretch(attempt)
        waited = (waited_s() - before) / (time.monotonic() - start)
        if waited <= asked.quiet:
            return result, waited
    return None


async def stats(client: TritonClient, model: str) -> dict[int, tuple[int, float]]:
    """Executions and their total ms by batch size, as the server counts them."""
    reading = (await client.read_models([model]))[model]
    if isinstance(reading, Exception):
        raise reading
    return {
        b.batch_size: (
            b.count,
            (b.compute_input_ns + b.compute_infer_ns + b.compute_output_ns) / 1e6,
        )
        for b in reading.batches
    }


def since(
    before: dict[int, tuple[int, float]], after: dict[int, tuple[int, float]]
) -> dict[int, tuple[int, float]]:
    return {
        size: (n - before.get(size, (0, 0.0))[0], ms - before.get(size, (0, 0.0))[1])
        for size, (n, ms) in after.items()
    }


async def calibrate(
    host: TritonHost, client: TritonClient, case: Case, asked: argparse.Namespace
) -> Calibration | None:
    """Measure what the predictions of one model need, each stretch undisturbed."""
    capacity = 1e3 * case.largest / (asked.a + asked.b * case.largest) * case.instances
    counted: dict[int, tuple[int, float]] = {}

    async def stretch(
        attempt: int, load: float, seconds: float, arrivals: Arrivals
    ) -> tuple[RequestLog, dict[int, tuple[int, float]]]:
        before = await stats(client, case.name)
        log = await stage(host, case.name, load * capacity, seconds, arrivals, seed=900 + attempt)
        return log, since(before, await stats(client, case.name))

    async def quiet(load: float, seconds: float, arrivals: Arrivals) -> RequestLog | None:
        done = await quietly(lambda attempt: stretch(attempt, load, seconds, arrivals), asked)
        if done is None:
            return None
        for size, (n, ms) in done[0][1].items():
            known = counted.get(size, (0, 0.0))
            counted[size] = known[0] + n, known[1] + ms
        return done[0][0]

    full = await quiet(1.3, 4.0, Arrivals.CONSTANT)
    batches, busy_ms = sum(n for n, _ in counted.values()), sum(ms for _, ms in counted.values())
    low, middle = await quiet(0.2, 6.0, Arrivals.POISSON), await quiet(0.6, 6.0, Arrivals.POISSON)
    seen = {size: (n, ms) for size, (n, ms) in counted.items() if n >= 3}
    lone = await quiet(4.0 / capacity, 10.0, Arrivals.CONSTANT)
    if full is None or low is None or middle is None or lone is None:
        return None
    span_ms = 1e3 * float((full.scheduled_s + full.latency_ms / 1e3).max() - full.scheduled_s.min())
    gap = max(0.0, (span_ms * case.instances - busy_ms) / batches)
    sizes = np.array(sorted(seen), dtype=float)
    means = np.array([seen[int(s)][1] / seen[int(s)][0] for s in sizes])
    # the spread of a mean is in proportion to it
    weight = np.sqrt([seen[int(s)][0] for s in sizes]) / means
    line = np.polyfit(sizes, means, 1, w=weight) if sizes.size > 1 else np.array([0.0, means[0]])
    curve = np.polyval(line, np.arange(1, case.largest + 1)) + gap
    cv = min(
        1.0, float(np.subtract(*np.quantile(lone.latency_ms, [0.84, 0.16]))) / 2 / float(curve[0])
    )
    first = Calibration(curve.tolist(), gap, 0.0, cv, case.instances)
    return replace(
        first, overhead_ms=low.quantile_ms(0.5) - first.told(0.2 * capacity, case.delay_ms).p50_ms
    )


def simulated(cal: Calibration, times_ms: np.ndarray, delay_ms: float, seed: int) -> np.ndarray:
    """Response times of arrivals at ``times_ms`` through the queue that the predictions are made
    for, event by event."""
    shape, latency = 1.0 / cal.cv**2, np.empty(times_ms.size)
    factors = np.random.default_rng(seed).gamma(shape, 1.0 / shape, times_ms.size)
    respond(times_ms, np.array(cal.curve_ms), factors, delay_ms, cal.instances, latency)
    return latency


def noise(cal: Calibration, rate: float, delay_ms: float, seconds: float) -> float:
    """Standard deviation of P99 between simulated runs of this length, as a fraction."""
    found = []
    for seed in range(20):
        times = np.cumsum(gaps_s(np.random.default_rng(seed), int(rate * seconds), rate / 1e3, 1.0))
        found.append(np.quantile(simulated(cal, times, delay_ms, 100 + seed), 0.99))
    return float(np.std(found) / np.mean(found))


def alike(cal: Calibration, logs: list[RequestLog], delay_ms: float) -> np.ndarray:
    """Simulated latencies (ms, sorted) of the measured slices, each with ten draws of the
    services."""
    found = []
    for log in logs:
        times = np.sort(log.scheduled_s - log.scheduled_s.min()) * 1e3
        found += [
            simulated(cal, times, delay_ms, seed)[times >= 1e3 * WARM_S] for seed in range(10)
        ]
    return np.sort(np.concatenate(found)) + cal.overhead_ms


async def slices(
    host: TritonHost, case: Case, load: float, rate: float, asked: argparse.Namespace
) -> list[tuple[RequestLog, float]]:
    """The undisturbed slices of one point, as many as could be had, each with how much processes
    waited."""
    done: list[tuple[RequestLog, float]] = []
    for number in range(asked.slices):
        seed = 1000 * (asked.seed + case.largest) + 100 * number + round(10 * load)
        one = await quietly(
            lambda attempt, seed=seed: stage(
                host, case.name, rate, SLICE_S, Arrivals.POISSON, seed + 7919 * attempt
            ),
            asked,
        )
        if one is None:
            break
        done.append(one)
    return done


def compared(
    case: Case, cal: Calibration, load: float, rate: float, done: list[tuple[RequestLog, float]]
) -> Point:
    """Prediction and simulation against the slices of one point."""
    latency = np.sort(
        np.concatenate(
            [log.latency_ms[log.scheduled_s >= log.scheduled_s.min() + WARM_S] for log, _ in done]
        )
    )
    told = cal.told(rate, case.delay_ms)
    p50, p99 = (float(latency[max(0, math.ceil(q * latency.size) - 1)]) for q in (0.5, 0.99))
    e50, e99 = (told.p50_ms + cal.overhead_ms) / p50 - 1, (told.p99_ms + cal.overhead_ms) / p99 - 1
    same = alike(cal, [log for log, _ in done], case.delay_ms)
    s50, s99 = (float(np.quantile(same, q)) / p - 1 for q, p in ((0.5, p50), (0.99, p99)))
    spread = noise(cal, rate, case.delay_ms, len(done) * (SLICE_S - WARM_S))
    waited = float(np.mean([w for _, w in done]))
    return Point(
        *astuple(case),
        load,
        rate,
        told.utilisation,
        latency.size,
        p50,
        p99,
        e50,
        e99,
        spread,
        s50,
        s99,
        len(done),
        waited,
    )


async def measure(
    host: TritonHost, client: TritonClient, case: Case, asked: argparse.Namespace
) -> list[Point]:
    """Every load of one model."""
    cal = await calibrate(host, client, case, asked)
    if cal is None:
        print(f"{case}: disturbed in all of {asked.tries} tries", flush=True)
        return []
    print(
        f"{case}: service {cal.curve_ms[0]:.2f} to {cal.curve_ms[-1]:.2f} ms "
        f"with {cal.gap_ms:.2f} ms between batches, {cal.overhead_ms:.2f} ms on the way, "
        f"dispersion {cal.cv:.3f}",
        flush=True,
    )
    points: list[Point] = []
    for share in asked.loads:
        rate = share * 1e3 * case.largest / cal.curve_ms[-1] * case.instances
        done = await slices(host, case, share, rate, asked)
        if not done:
            print(
                f"  load {share:.0%}  {rate:7.1f}/s  disturbed in all of {asked.tries} tries",
                flush=True,
            )
            continue
        p = compared(case, cal, share, rate, done)
        points.append(p)
        print(
            f"  load {share:.0%}  {rate:7.1f}/s  busy {p.busy:.0%}  measured P50 {p.p50_ms:7.2f} "
            f" P99 {p.p99_ms:7.2f} ms   "
            f"error P50 {p.p50_error:+6.1%}  P99 {p.p99_error:+6.1%}  noise {p.noise:5.1%}   "
            f"alike P50 {p.p50_alike:+6.1%}  "
            f"P99 {p.p99_alike:+6.1%}   {p.slices} slices, waited {p.waited:.0%}",
            flush=True,
        )
    return points


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=4, help="of 10 s, undisturbed, a point")
    parser.add_argument(
        "--tries",
        type=int,
        default=10,
        help="most times that a stretch is measured until it was undisturbed",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=0.1,
        help="most of the time that processes may wait for a CPU in a slice",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[0.0, 6.0], help="queue delays, ms"
    )
    parser.add_argument("--instances", type=int, nargs="+", default=[1], help="of the model")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8])
    parser.add_argument("--a", type=float, default=10.0, help="ms of a batch")
    parser.add_argument("--b", type=float, default=2.0, help="ms more for each request in it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    LinearHost.times = (asked.a, asked.b)
    cases = [
        Case(b, d, n)
        for n in asked.instances
        for b in asked.batches
        for d in asked.delays
        if b > 1 or d == 0.0
    ]
    models = tuple(
        EmulatedModel(c.name, "alexnet", c.largest, round(c.delay_ms * 1e3), instances=c.instances)
        for c in cases
    )
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}; a batch of n "
        f"takes {asked.a:g} + {asked.b:g} n ms"
    )
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="igniterd-") as folder:
        host = LinearHost(HostSpec(models), Path(folder), free_ports(3))
        host.prepare()
        client = TritonClient("bench", host.url, timeout_s=3.0)
        try:
            await host.start()
            for case in cases:
                points += await measure(host, client, case, asked)
        finally:
            await client.close()
            await host.stop()
    if not points:
        raise SystemExit(
            "no slice was undisturbed: run it on a quieter machine, or allow more with --quiet"
        )
    errors = [abs(p.p99_error) for p in points]
    below = [p for p in points if p.load < 0.8]
    good, alike_good = (
        sum(abs(e) <= 0.1 for e in es)
        for es in ([p.p99_error for p in below], [p.p99_alike for p in below])
    )
    print(
        f"{len(points)} points: P50 error median {median(abs(p.p50_error) for p in points):.1%}, "
        f"largest {max(abs(p.p50_error) for p in points):.1%}; P99 error median "
        f"{median(errors):.1%}, largest {max(errors):.1%}"
    )
    if below:
        load_now = f"load average {os.getloadavg()[0]:.1f}"
        print(
            f"P99 within 10 % at {good} of {len(below)} points below 80 %, alike at "
            f"{alike_good}; {load_now} at the end"
        )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(p) for p in points], indent=1))


if __name__ == "__main__":
    asyncio.run(main())
