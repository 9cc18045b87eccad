"""A cluster of simulated hosts under a day of shifting traffic: the world of ``bench/fleet.py``.

A host has eight V100s (the shipped tables), a Triton for each, and a daemon that decides for each
GPU as igniterd's does: by the same search, at the upper bounds. To keep 10,000 hosts affordable all
rates are powers of ``LEVEL_STEP``, and decisions are remembered. Daemons move nothing between
Tritons: that is what the cluster is asked for.

A workload is one of the four profiled models with a name of its own, an SLO, and a rate that
follows the day of one of three regions, drifts, and surges now and then. At the beginning each is
placed where it fits with the rate it then has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from igniterd.decide.judge import PredictorPair
from igniterd.decide.search import find
from igniterd.messages.profile import canonical, digest_of
from igniterd.perf import Profile, builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor

GPUS = 8
GIB = 2**30
LEVEL_STEP = 1.25
LEVEL = 0.95
SLO_MARGIN = 0.1
SLOS = {"alexnet": 15.0, "resnet50": 40.0, "vgg19": 60.0, "ssd": 60.0}
BASE = {"alexnet": 500.0, "resnet50": 200.0, "vgg19": 115.0, "ssd": 55.0}
"""Requests a second of a workload at noon, before its size is drawn."""
MOST_TENANTS = 3
SURGE = 1.8
SURGES_A_DAY = 1.0
SURGE_S = 5400.0
DRIFT = 0.25  # standard deviation of the logarithm of a rate over a day, beside the hours
DAY_S = 86_400.0
UPPER = 1.08  # what plans are made for, over the rate as it is
STATE_EVERY_S = 5.0


@cache
def profile() -> Profile:
    shipped = builtin_profile("v100")
    sized = {n: m.model_copy(update={"memory_bytes": GIB}) for n, m in shipped.models.items()}
    return shipped.model_copy(update={"models": sized})


@cache
def digest() -> str:
    return digest_of(canonical(profile().model_dump(mode="json", exclude_none=True)))


@cache
def predictors() -> PredictorPair:
    model = load_model(profile())
    return PredictorPair(
        LatencyPredictor(model, level=LEVEL), LatencyPredictor(model, level=LEVEL, upper=False)
    )


@dataclass(slots=True)
class Workload:
    number: int
    model: str
    size: float
    region: int
    drift: float = 0.0
    surge_until_s: float = -math.inf
    host: int = -1
    gpu: int = -1
    origin: Workload | None = None  # of a replica
    weight: float = 1.0  # the part of its traffic that is served here

    @property
    def name(self) -> str:
        return f"{self.model}-{self.number:06d}"

    @property
    def slo_ms(self) -> float:
        return SLOS[self.model]


@dataclass(frozen=True, slots=True)
class Decided:
    """What a daemon decides for one GPU. By tenant: its share, largest batch, and whether its SLO
    holds."""

    tenants: tuple[tuple[float, int, bool], ...]
    least: float


def decided(asked: tuple[tuple[str, int], ...]) -> Decided:
    """For tenants of these models at these levels of rate."""
    order = sorted(range(len(asked)), key=lambda n: asked[n])
    found = _decided(tuple(asked[n] for n in order))
    place = {n: at for at, n in enumerate(order)}
    return Decided(tuple(found.tenants[place[n]] for n in range(len(asked))), found.least)


@cache
def _decided(asked: tuple[tuple[str, int], ...]) -> Decided:
    demands = [
        Demand(
            str(n),
            model,
            LEVEL_STEP**level * UPPER,
            SLOS[model] * (1 - SLO_MARGIN),
            max_batch=32,
        )
        for n, (model, level) in enumerate(asked)
    ]
    found = find(predictors().upper, demands)
    given = [found.allocations[d.model] for d in demands]
    return Decided(
        tuple(
            (round(a.share or 1.0, 4), a.max_batch_size, d.model not in found.reasons)
            for d, a in zip(demands, given, strict=True)
        ),
        round(found.least_share, 4) if found.feasible else 1.0,
    )


@dataclass(slots=True)
class World:
    """``tenants[h][g]``: the workloads on a GPU."""

    hosts: int
    rng: np.random.Generator
    workloads: list[Workload] = field(default_factory=list)
    tenants: list[list[list[Workload]]] = field(default_factory=list)
    by_name: dict[str, Workload] = field(default_factory=dict)
    now_s: float = 0.0

    @classmethod
    def begin(cls, hosts: int, seed: int, fill: float) -> World:
        """Filled up to ``fill`` of each GPU with the rates of the beginning."""
        world = cls(hosts, np.random.default_rng(seed))
        world.tenants = [[[] for _ in range(GPUS)] for _ in range(hosts)]
        models = list(SLOS)
        for host in range(hosts):
            for gpu in range(GPUS):
                # every tenth GPU is kept free, as operators do
                if (host * GPUS + gpu) % 10 == 9:
                    continue
                while True:
                    new = Workload(
                        len(world.workloads),
                        models[int(world.rng.integers(len(models)))],
                        float(np.exp(world.rng.normal(-0.3, 0.5))),
                        int(world.rng.integers(3)),
                    )
                    there = [*world.tenants[host][gpu], new]
                    plan = decided(world.asked(there))
                    if (
                        len(there) > MOST_TENANTS
                        or plan.least > fill
                        or not all(t[2] for t in plan.tenants)
                    ):
                        break
                    world.place(new, host, gpu)
        return world

    @property
    def count(self) -> int:
        """Workloads, without their replicas."""
        return len(self.workloads)

    def place(self, workload: Workload, host: int, gpu: int) -> None:
        if workload.host >= 0:
            self.tenants[workload.host][workload.gpu].remove(workload)
        else:
            if workload.origin is None:
                self.workloads.append(workload)
            self.by_name[workload.name] = workload
        workload.host, workload.gpu = host, gpu
        self.tenants[host][gpu].append(workload)

    def advance(self, step_s: float) -> None:
        """Traffic goes on by so much."""
        self.now_s += step_s
        part = step_s / DAY_S
        drifts = self.rng.normal(0.0, DRIFT * math.sqrt(part), len(self.workloads))
        surges = self.rng.random(len(self.workloads)) < SURGES_A_DAY * part
        for workload, drift, surges_now in zip(self.workloads, drifts, surges, strict=True):
            workload.drift += float(drift)
            if surges_now:
                workload.surge_until_s = self.now_s + SURGE_S

    def rate(self, workload: Workload) -> float:
        """Requests a second now."""
        return float(LEVEL_STEP ** self.level(workload))

    def level(self, workload: Workload) -> int:
        """The power of its rate."""
        whole = workload.origin or workload
        hour = 2 * math.pi * (self.now_s / DAY_S + whole.region / 3)
        rate = BASE[whole.model] * whole.size * math.exp(whole.drift) * workload.weight
        surge = SURGE if self.now_s < whole.surge_until_s else 1.0
        return round(math.log(rate * (1 + 0.35 * math.sin(hour)) * surge, LEVEL_STEP))

    def asked(self, tenants: list[Workload]) -> tuple[tuple[str, int], ...]:
        return tuple((w.model, self.level(w)) for w in tenants)

    def decisions(self, host: int) -> list[Decided]:
        return [decided(self.asked(there)) for there in self.tenants[host]]

    def missed(self) -> int:
        """Workloads whose SLO does not hold now."""
        return len(
            {
                (workload.origin or workload).number
                for host in range(self.hosts)
                for there, plan in zip(self.tenants[host], self.decisions(host), strict=True)
                for workload, (_, _, holds) in zip(there, plan.tenants, strict=True)
                if not holds
            }
        )

    def used_gpus(self) -> int:
        return sum(bool(there) for host in self.tenants for there in host)

    # ------------------------------------------------------------ what a host says

    def state(self, host: int, tick: int) -> dict[str, Any]:
        """The document of its ``state``."""
        name, plans = f"host-{host:05d}", self.decisions(host)
        uuids = [uuid_of(host, gpu) for gpu in range(GPUS)]
        models = list(self._models(host, plans, uuids))
        return {
            "schema": 1,
            "igniterd": "0",
            "host": name,
            "cluster": "sim",
            "run": "1",
            "mode": "act",
            "tick": tick,
            "time_s": self.now_s,
            "terms": {"level": LEVEL, "slo_margin": SLO_MARGIN},
            "decision": {
                "outcome": "hold",
                "feasible": all(m["feasible"] for m in models),
                "least_by_gpu": {u: p.least for u, p in zip(uuids, plans, strict=True)},
            },
            "tritons": [{"name": f"t{g}", "gpus": [uuids[g]]} for g in range(GPUS)],
            "boards": [
                {
                    "uuid": uuid,
                    "name": "Tesla V100-SXM2-16GB",
                    "sm_count": 80,
                    "memory_total_bytes": 16 * GIB,
                    "memory_used_bytes": (1 + len(there)) * GIB,
                    "reserved": 0.0,
                }
                for uuid, there in zip(uuids, self.tenants[host], strict=True)
            ],
            "models": models,
        }

    def _models(
        self, host: int, plans: list[Decided], uuids: list[str]
    ) -> Iterator[dict[str, Any]]:
        for gpu, (there, plan) in enumerate(zip(self.tenants[host], plans, strict=True)):
            for workload, (share, batch, holds) in zip(there, plan.tenants, strict=True):
                rate = self.rate(workload)
                yield {
                    "name": workload.name,
                    "triton": f"t{gpu}",
                    "slo_p99_ms": workload.slo_ms,
                    "seen": True,
                    "gpus": [uuids[gpu]],
                    "applied": {"share": share, "max_batch_size": batch, "devices": [0]},
                    "rate_per_s": round(rate, 3),
                    "rate_upper_per_s": round(rate * UPPER, 3),
                    "busy": 0.4,
                    "burstiness": 1.0,
                    "batches": [1, 32],
                    "learnt": {
                        "share": share,
                        "pressure": 0.4,
                        "level": 0.0,
                        "tilt": 0.0,
                        "sd": 0.05,
                    },
                    "feasible": holds,
                    **({} if holds else {"reason": "does not fit beside the others"}),
                    "profiles": [digest()],
                    "profile_model": workload.model,
                }

    def follow(self, moves: list[dict[str, Any]]) -> None:
        """Do what the moves of one plan say."""
        whole = {move["model"]: self.by_name[move["model"]].weight for move in moves}
        for move in moves:
            host, gpu = place_of(move["to"]["gpu_uuid"])
            workload = self.by_name[move["model"]]
            if move["kind"] == "replicate":
                workload = self.replica(workload, whole[move["model"]] * move["weight"])
            self.place(workload, host, gpu)

    def replica(self, workload: Workload, weight: float) -> Workload:
        """One more of it, which takes this part of all its traffic from it."""
        workload.weight -= weight
        number = self.count + len(self.by_name)
        found = Workload(number, workload.model, workload.size, workload.region)
        found.origin, found.weight = workload.origin or workload, weight
        return found


def uuid_of(host: int, gpu: int) -> str:
    return f"GPU-{host:08x}-0000-0000-0000-{gpu:012x}"


def place_of(uuid: str) -> tuple[int, int]:
    _, host, _, _, _, gpu = uuid.split("-")
    return int(host, 16), int(gpu, 16)


def payload_of(state: dict[str, Any]) -> bytes:
    """The message, as its daemon sends it."""
    return json.dumps(
        {
            "specversion": "1.0",
            "id": f"{state['host']}-{state['tick']}",
            "source": f"igniterd/sim/{state['host']}",
            "type": "igniterd.state",
            "time": "2026-01-01T00:00:00.000+00:00",
            "datacontenttype": "application/json",
            "data": state,
        },
        separators=(",", ":"),
    ).encode()
