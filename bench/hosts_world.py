"""A host of several emulated GPUs under shifting traffic, in virtual time: the world of
``bench/hosts.py``.

The measured tables of a V100, ten times slower; three models on each GPU at first. What a model
asks for is drawn as the part of a GPU that it needs, by the planner's own model with all margins,
and turned into its rate: it follows the day, and is multiplied now and then by a random factor, at
once or over one to three minutes. All models together never ask for more than ``MOST`` of the
host. Arrivals are drawn for each model by itself, so that every set-up sees the same ones.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.arrays import F64
from igniterd.clients.triton.config import allocation_of
from igniterd.config import Config, parse_config
from igniterd.decide.search import Search
from igniterd.decide.steps import granted
from igniterd.decisions import Tick
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.predict import Demand, LatencyPredictor
from igniterd.profiled import Predictors
from igniterd.records import ROUNDING, Allocation
from tests.factories import latency_model, predictor_pair
from tests.sim.host import SimHost, SimModel, config_of

SLOW = 10.0  # every time is so much longer, every rate so much smaller
SLOS = {"alexnet": 15.0 * SLOW, "resnet50": 40.0 * SLOW, "vgg19": 60.0 * SLOW}
LOOSER = (1.0, 1.5, 2.0)  # times these
MARGIN = 0.9  # what plans leave of an SLO
PER_GPU = 3
MODEL = latency_model(time_scale=SLOW)
STEP_S = 5  # rates are constant for so long
EVERY_S = 480.0  # between two shifts of a model, in the mean
LEAST, LARGEST = 0.04, 0.6  # parts of a GPU that one model needs
MOST = 0.75  # of the host that all models need
RELOAD_S = 1.8
SETTLES_S = 180  # what it takes to give all models their first shares is not counted
GIVE_UP_S = 10.0  # clients wait no longer
LATE = 0.01  # of a model's requests in a minute: more is an SLO missed
NEEDS = np.array([LEAST, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, LARGEST])


@cache
def planner() -> LatencyPredictor:
    """What traffic is drawn with."""
    return LatencyPredictor(MODEL, level=0.95)


@cache
def rates_at(like: str, slo_ms: float) -> F64:
    """The largest rate (requests/s) of a model alone that each of ``NEEDS`` holds."""
    return np.array([_largest_rate(like, slo_ms, float(need)) for need in NEEDS])


def _largest_rate(like: str, slo_ms: float, need: float) -> float:
    low, high = 0.0, 4000.0 / SLOW
    while high - low > 0.01 * high:
        rate = (low + high) / 2
        demand = Demand(like, like, rate, MARGIN * slo_ms, min_share=0.025, max_share=need)
        held = Search(planner(), [demand]).widest() is not None
        low, high = (rate, high) if held else (low, rate)
    return low


@dataclass(frozen=True, slots=True)
class Asked:
    """One model and its traffic. ``rates``: requests/s, one for each ``STEP_S``."""

    name: str
    like: str
    slo_ms: float
    gpu: int
    rates: F64

    def rate_at(self, at_s: float) -> float:
        return float(self.rates[min(int(at_s / STEP_S), len(self.rates) - 1)])


def traffic(gpus: int, seed: int, seconds: float) -> list[Asked]:
    """The models of a host and their traffic; the day lasts ``seconds``."""
    rng = np.random.default_rng(seed)
    at_s = np.arange(0.0, seconds + STEP_S, STEP_S)
    models = [(f"{like}-{n}", like) for n in range(gpus) for like in SLOS]
    slos = [SLOS[like] * float(rng.choice(LOOSER)) for _, like in models]
    needs = np.array([_needs(at_s, seconds, rng) for _ in models])
    needs *= np.minimum(1.0, MOST * gpus / needs.sum(axis=0))
    needs = np.clip(needs, LEAST, LARGEST)
    gpu_of = rng.permutation(np.repeat(np.arange(gpus), PER_GPU))
    return [
        Asked(name, like, slo_ms, int(gpu), np.interp(need, NEEDS, rates_at(like, slo_ms)))
        for (name, like), slo_ms, gpu, need in zip(models, slos, gpu_of, needs, strict=True)
    ]


def _needs(at_s: F64, day_s: float, rng: np.random.Generator) -> F64:
    """The part of a GPU that a model needs, over the time."""
    usual, phase = float(rng.uniform(0.2, 0.5)), float(rng.uniform(-0.06, 0.06))
    day = 0.25 + 0.75 * (0.5 - 0.5 * np.cos(2 * math.pi * (at_s / day_s + phase)))
    shift, factor = np.zeros_like(at_s), 0.0
    begins_s = float(rng.exponential(EVERY_S))
    while begins_s < day_s:
        after = float(np.clip(rng.normal(0.0, 0.6), -1.4, 1.0))
        takes_s = float(rng.choice([1.0, rng.uniform(60.0, 180.0)]))
        shift += (after - factor) * np.clip((at_s - begins_s) / takes_s, 0.0, 1.0)
        factor, begins_s = after, begins_s + float(rng.exponential(EVERY_S))
    return usual * day * np.exp(shift)


def too_full(asked: list[Asked], gpus: int, seconds: float) -> tuple[int, int]:
    """GPU-minutes in which one GPU cannot hold the SLOs of the models that it began with, whatever
    shares they are given, by the planner's own model at mean service times without any margin; and
    all of them."""
    full, minutes = 0, range(SETTLES_S // 60, int(seconds // 60))
    mean = predictor_pair(MODEL).mean
    for minute in minutes:
        for gpu in range(gpus):
            there = [a for a in asked if a.gpu == gpu]
            demands = [
                Demand(a.name, a.like, a.rate_at(60.0 * minute + 30.0), a.slo_ms) for a in there
            ]
            full += Search(mean, demands).widest() is None
    return full, gpus * len(minutes)


class Fleet(SimHost):
    """A Triton over ``gpus`` (their numbers on the host). What its models are granted is checked at
    the beginning and at the end of every load: a copy that is being made counts as there."""

    def __init__(
        self, asked: list[Asked], clock: Callable[[], float], seed: int, gpus: tuple[int, ...]
    ) -> None:
        self.began_s, self.gpus = clock(), gpus
        self.arrivals = {a.name: np.random.default_rng([seed, *a.name.encode()]) for a in asked}
        super().__init__({}, clock, slow=SLOW, seed=seed, reload_s=RELOAD_S)
        self.offered = dict.fromkeys(self.arrivals, 0)
        self.lost: dict[str, list[float]] = {a.name: [] for a in asked}
        self.made: dict[str, Allocation] = {}  # being loaded
        self.over, self.moved = list[str](), list[float]()
        for a in asked:
            model = SimModel(a.name, a.like, self._shifted(a), config_of(a.name, 32))
            model.put_on(gpus.index(a.gpu))  # only who names its GPU may be moved
            self.add(model)

    def _shifted(self, asked: Asked) -> Callable[[float], float]:
        return lambda at_s: asked.rate_at(at_s - self.began_s)

    def _next_arrival(self, name: str, now_s: float) -> None:
        rate = self.models[name].rate_per_s(now_s)
        if rate > 0:
            self._add(now_s + self.arrivals[name].exponential(1 / rate), "arrival", name)
        else:
            self._add(now_s + 1.0, "no traffic", name)

    def _arrive(self) -> None:
        _, _, what, name = self._events[0]
        self.offered[name] += what == "arrival"
        super()._arrive()

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        here, before = self.models[model].gpu, self._granted()
        self.made[model] = allocation_of(copy.deepcopy(config))
        self._check(model, before)
        try:
            await super().load(model, config, exact=exact)
        finally:
            del self.made[model]
        self._check(model, before)
        if self.models[model].gpu != here:
            self.moved.append(self.clock())

    def _check(self, model: str, before: list[float]) -> None:
        for gpu, part in enumerate(self._granted()):
            if part > max(1.0, before[gpu]) + ROUNDING:
                at_s = self.clock() - self.began_s
                self.over.append(
                    f"{at_s:.0f} s: {part:.3f} of GPU {self.gpus[gpu]} granted, "
                    f"{before[gpu]:.3f} before, as {model} is loaded"
                )

    def _granted(self) -> list[float]:
        """Of each GPU; a model without a share may use all of it."""
        held = [0.0] * len(self.gpus)
        for name, model in self.models.items():
            by_gpu = {model.gpu: granted(model.applied)}
            if name in self.made:
                made = self.made[name]
                gpu = made.devices[0] if made.devices else 0
                by_gpu[gpu] = max(by_gpu.get(gpu, 0.0), granted(made))
            for gpu, part in by_gpu.items():
                held[gpu] += part
        return held

    def give_up(self) -> None:
        """Clients wait no longer."""
        now_s = self.clock()
        for name, model in self.models.items():
            queue = model.batcher.queue
            while queue and queue[0] < now_s - GIVE_UP_S:
                self.lost[name].append(queue.popleft())

    def failed(self) -> int:
        """Requests that Triton refused, or of which nobody knows any more."""
        return sum(
            self.offered[m.name]
            - len(m.latencies)
            - len(self.lost[m.name])
            - len(m.batcher.waiting)
            - len(m.batch)
            for m in self.models.values()
        )


@dataclass
class Figures:
    """What a run came to. ``missed``: model-minutes in which more than ``LATE`` of the requests
    that came in them took longer than the SLO, or had no answer; of ``minutes``."""

    missed: int = 0
    minutes: int = 0
    late: int = 0
    requests: int = 0
    failed: int = 0
    over: list[str] = field(default_factory=list)
    reloads: int = 0
    moves: int = 0
    used: float = 0.0
    """GPUs that held a model, in the mean."""
    hours: float = 0.0

    def add(self, other: Figures) -> None:
        whole = self.hours + other.hours
        used = (self.used * self.hours + other.used * other.hours) / whole if whole else 0.0
        for key in ("missed", "minutes", "late", "requests", "failed", "over", "reloads", "moves"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.used, self.hours = used, whole


class World:
    """A loop beside a host of ``gpus`` GPUs: one Triton over all of them, or ``apart`` one on
    each. ``rules`` is what stands under ``[decide]``."""

    def __init__(
        self,
        folder: Path,
        asked: list[Asked],
        gpus: int,
        *,
        seed: int = 1,
        rules: str = "",
        apart: bool = False,
        report: Callable[[Config], Callable[[Tick], None]] | None = None,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.began_s, self.asked = self.clock(), {a.name: a for a in asked}
        groups = [(g,) for g in range(gpus)] if apart else [tuple(range(gpus))]
        self.fleets = {
            f"triton{n}": Fleet([a for a in asked if a.gpu in g], self.clock, seed, g)
            for n, g in enumerate(groups)
        }
        for name, fleet in self.fleets.items():
            fleet.name = name
        self.settings = _settings(folder, self.fleets, self.asked, rules)
        self.used: list[int] = []
        sources = Sources(
            tritons=self.fleets,
            models={name: tuple(fleet.models) for name, fleet in self.fleets.items()},
            devices={
                name: tuple(f"GPU-{g}" for g in fleet.gpus) for name, fleet in self.fleets.items()
            },
        )
        knowledge = Predictors({a.name: a.like for a in asked}, predictor_pair(MODEL))
        said = report(self.settings) if report else lambda tick: None
        self.loop = Loop(
            self.settings, sources, self.fleets, knowledge, said, wall_clock=self.clock
        )

    async def run(self, seconds: float) -> Figures:
        await self.live(SETTLES_S)
        from_s = self.clock()
        self.used.clear()
        await self.live(seconds - SETTLES_S)
        await self.loop.close()
        return self._figures(from_s, self.clock())

    async def live(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            began_s = self.clock()
            await self.loop.tick(began_s)
            for fleet in self.fleets.values():
                fleet.give_up()
            self.used.append(len(self._in_use()))
            await asyncio.sleep(max(0.0, began_s + 1.0 - self.clock()))

    def _in_use(self) -> set[int]:
        return {f.gpus[m.gpu] for f in self.fleets.values() for m in f.models.values()}

    def _figures(self, from_s: float, to_s: float) -> Figures:
        found = Figures(hours=(to_s - from_s) / 3600, used=float(np.mean(self.used)))
        for fleet in self.fleets.values():
            fleet.advance(to_s)
            found.failed += fleet.failed()
            found.over += fleet.over
            found.reloads += sum(at_s >= from_s for at_s, _, _ in fleet.loads)
            found.moves += sum(at_s >= from_s for at_s in fleet.moved)
            for model in fleet.models.values():
                self._judge(found, fleet, model, from_s, to_s)
        return found

    def _judge(
        self, found: Figures, fleet: Fleet, model: SimModel, from_s: float, to_s: float
    ) -> None:
        slo_ms = self.asked[model.name].slo_ms
        # what came last may be answered in time yet
        until_s = to_s - slo_ms / 1000
        waiting = [*fleet.lost[model.name], *model.batcher.waiting, *model.batch]
        came = [(s, ms > slo_ms) for s, ms in model.latencies] + [(s, True) for s in waiting]
        within = [(s, late) for s, late in came if from_s <= s < until_s]
        at_s, late = np.array([s for s, _ in within]), np.array([x for _, x in within], dtype=bool)
        minute = ((at_s - from_s) // 60).astype(int)
        count = np.bincount(minute)
        missed = np.bincount(minute, weights=late) > LATE * count
        found.missed += int(missed.sum())
        found.minutes += int((count > 0).sum())
        found.late += int(late.sum())
        found.requests += len(late)


def _settings(
    folder: Path, fleets: Mapping[str, Fleet], asked: Mapping[str, Asked], rules: str
) -> Config:
    servers = "".join(
        f'[[triton]]\nname = "{name}"\nurl = "127.0.0.1:{8001 + n}"\n'
        for n, name in enumerate(fleets)
    )
    models = "".join(
        f'[[model]]\nname = "{model}"\ntriton = "{name}"\nslo_p99_ms = {asked[model].slo_ms}\n'
        'profile = "v100.json"\n'
        for name, fleet in fleets.items()
        for model in fleet.models
    )
    return parse_config(
        f'[host]\nname = "bench"\n[state]\ndirectory = "{folder}"\n[decide]\n{rules}\n'
        f"{servers}{models}",
        source="bench",
        folder=folder,
    )
