"""How many states of hosts one core takes in a second, and what a host takes of memory.

    python bench/view.py

Each host has 8 GPUs and says 16 models, or 128 in parts. Every fifth second it says a new tick in
which its rates are others; after every second the cluster is asked for. Printed are messages a
second of this process's time, while all hosts are new and once they are known, and what is kept of
a host: with the garbage collector as Python sets it, and as `collect_rarely` does.
"""

from __future__ import annotations

import os
import platform
import random
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from igniterd.fleet.view import ClusterView
from igniterd.messages.event import event
from igniterd.messages.state import split_state
from igniterd.messages.topics import host_topic
from igniterd.records import Mode
from igniterd.resident import collect_rarely

AT = datetime(2026, 1, 1, tzinfo=UTC)
GPUS = 8
EVERY_S = 5.0
SIZES = ((16, 2000), (128, 250))  # models of a host, hosts
ROUNDS = 4
SAMPLE = 50  # hosts whose memory is looked at


def state_of(host: int, models: int, tick: int, rng: random.Random) -> dict[str, Any]:
    """All of one host's state, with every figure that a daemon says."""
    gpus = [f"GPU-{host:08d}-0000-0000-0000-{n:012d}" for n in range(GPUS)]
    share = round(0.9 * GPUS / models, 3)
    return {
        "schema": 1,
        "igniterd": "1.0",
        "host": f"host-{host:05d}",
        "cluster": "c",
        "run": f"run-{host:05d}",
        "mode": Mode.ACT.value,
        "tick": tick,
        "time_s": 1e9 + tick,
        "decision": {"outcome": "hold", "feasible": True, "headroom": 1.3},
        "tritons": [{"name": "main", "gpus": gpus, "shares": "/var/lib/igniterd/shares"}],
        "boards": [
            {
                "uuid": gpu,
                "name": "Tesla V100-SXM2-16GB",
                "sm_count": 80,
                "memory_used_bytes": 9 << 30,
                "memory_total_bytes": 16 << 30,
            }
            for gpu in gpus
        ],
        "models": [model_of(n, gpus, share, rng) for n in range(models)],
    }


def model_of(number: int, gpus: list[str], share: float, rng: random.Random) -> dict[str, Any]:
    rate, device = round(rng.uniform(50, 500), 3), number % GPUS
    latency = {"mean": 8.124, "p50": 7.532, "p99": 18.213}
    return {
        "name": f"model-{number:03d}",
        "slo_p99_ms": 25.0,
        "seen": True,
        "state": "steered",
        "gpus": [gpus[device]],
        "applied": {"share": share, "max_batch_size": 8, "devices": [device]},
        "share": {"applied": share, "effective": share, "state": "proven"},
        "rate_per_s": rate,
        "rate_upper_per_s": round(1.1 * rate, 3),
        "busy": 0.412,
        "mean_batch": 2.312,
        "burstiness": 1.112,
        "batches": [1, 32],
        "bias": 1.0213,
        "learnt": {
            "share": share,
            "pressure": 0.41,
            "level": 0.0213,
            "tilt": 0.0012,
            "sd": 0.0231,
            "cv": 0.11,
        },
        "measured": latency,
        "predicted": latency,
        "feasible": True,
        "needs_share": 0.05,
        "planned_p99_ms": 19.312,
    }


def messages(hosts: int, models: int, tick: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    for host in range(hosts):
        said = state_of(host, models, tick, rng)
        for part in split_state(said):
            yield (
                host_topic("c", said["host"], "state", part.get("part", 1)),
                event("state", part, source="igniterd/c/a", id=f"{host}-{tick}", at=AT),
            )


def kept_bytes(models: int) -> float:
    """Bytes that a view keeps of one host."""
    said = list(messages(SAMPLE, models, 1, random.Random(1)))
    view = ClusterView("c")
    tracemalloc.start()
    for topic, payload in said:
        view.take(topic, payload, at_s=0.0, left_s=30.0, retained=False)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return kept / SAMPLE


def measure(models: int, hosts: int) -> None:
    rng, view = random.Random(1), ClusterView("c")
    rates: list[float] = []
    for tick in range(ROUNDS):
        said = list(messages(hosts, models, tick, rng))
        told, size = len(said), sum(len(payload) for _, payload in said)
        each_s = EVERY_S / len(said)
        began_s = time.process_time()
        for number, (topic, payload) in enumerate(said):
            at_s = EVERY_S * tick + number * each_s
            view.take(topic, payload, at_s=at_s, left_s=30.0, retained=False)
            if int(at_s) != int(at_s + each_s):
                view.cluster(at_s)
        rates.append(told / (time.process_time() - began_s))
        del said
    assert len(view.cluster(EVERY_S * ROUNDS).hosts) == hosts
    print(
        f"{hosts:5} hosts of {GPUS} GPUs and {models:3} models   {size / hosts:7.0f} bytes a state "
        f"in {told / hosts:.0f} messages   new {rates[0]:5.0f} messages/s, known "
        f"{min(rates[1:]):5.0f} to {max(rates[1:]):5.0f}   "
        f"{kept_bytes(models) / 1024:5.0f} KiB a host"
    )


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    for rarely in (False, True):
        if rarely:
            collect_rarely()
        print(f"garbage collector {'rare' if rarely else 'as it is'}")
        for models, hosts in SIZES:
            measure(models, hosts)


if __name__ == "__main__":
    main()
