"""An hour of each kind of fault on the simulated host, in virtual time: what each of them costs.

    python bench/faults.py [--hours 1] [--only refuser silence]

One V100, three models that fit with room (resnet50's traffic steps every five minutes, so that
there is something to do), ten times slower than they are. Counted against the world itself:

    over      seconds in which the models' shares come to more than the GPU (a model that is taken
              over has a share of 100 % for a moment, as free as before: that is counted, too)
    refused   model-seconds in which a batch that the model's owner admits would be refused
    reloads   loads that igniterd asked for, an hour
    missed    minutes of a model in which its P99 was above its SLO, or nothing was answered
    unsaid    those of them in which every tick said that every SLO holds
    failed    ticks that failed

Another revision: PYTHONPATH=ITS_CHECKOUT python bench/faults.py
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import looptime
import numpy as np
import structlog

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from igniterd.decisions import Tick
from igniterd.errors import Refused, Unanswered, Unreachable
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.profiled import Predictors
from igniterd.records import ModelReading, MpsReading
from tests.factories import latency_model, predictor_pair
from tests.hosts import config
from tests.sim.host import SimHost, config_of

SLOW = 10.0  # an hour in seconds
SLOS = {"alexnet": 150.0, "resnet50": 400.0, "vgg19": 600.0}  # ms
OWNERS_BATCH = 8
SETTLES_S = 90  # the take-over of all models is no fault's cost
MOST_WAITING = 200  # clients give up
PREDICTORS = predictor_pair(latency_model(time_scale=SLOW))


def steps(at_s: float) -> float:
    return 25.0 if int(at_s // 300) % 2 else 38.0


Rates = Mapping[str, Callable[[float], float]]
FITS: Rates = {"alexnet": lambda _: 30.0, "resnet50": steps, "vgg19": lambda _: 15.0}
TOO_MUCH: Rates = {
    "alexnet": lambda _: 55.0,
    "resnet50": lambda _: 45.0,
    "vgg19": lambda _: 22.5,
}


class FaultyHost(SimHost):
    """A Triton to whose answers and loads something may happen."""

    def __init__(self, rates: Rates, clock: Callable[[], float], seed: int) -> None:
        models = {name: (name, rate) for name, rate in rates.items()}
        super().__init__(models, clock, slow=SLOW, seed=seed, max_batch=OWNERS_BATCH, reload_s=1.8)
        self.late_s = 0.0
        self.changes: Callable[[dict[str, Any]], None] = lambda read: None
        self.before_load: Callable[[str], None] = lambda model: None
        self.after_load: Callable[[str], None] = lambda model: None
        self.asked = 0
        self._later = set[asyncio.Task[None]]()

    async def read_models(self, names: Any) -> dict[str, Any]:
        self._answer()
        if self.late_s:
            await asyncio.sleep(float(self.rng.uniform(0, self.late_s)))
        read: dict[str, Any] = dict(await super().read_models(names))
        self.changes(read)
        return read

    async def config(self, model: str) -> dict[str, Any]:
        self._there(model)
        return await super().config(model)

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        self.asked += 1
        self._there(model)
        self.before_load(model)
        await super().load(model, config)
        self.after_load(model)

    def put(self, model: str, config: dict[str, Any] | None = None) -> None:
        """Somebody else loads it: its file, unless ``config`` says otherwise."""
        if model in self.models and not self.silent:
            self.advance(self.clock())
            self.models[model].reset(config or config_of(model, OWNERS_BATCH))
            self._wake(self.models[model])

    def later(self, seconds: float, happens: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            happens()

        task = asyncio.create_task(wait())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def drained(self) -> None:
        for model in self.models.values():
            while len(model.batcher.queue) > MOST_WAITING:
                model.batcher.queue.popleft()

    async def settled(self) -> None:
        for task in list(self._later):
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    def _there(self, model: str) -> None:
        if model not in self.models:
            raise Refused(f"model {model!r} is unloaded")


class Mps:
    gone = False

    async def read(self) -> MpsReading:
        if self.gone:
            raise Unreachable("MPS control: no control daemon")
        return MpsReading((1,), 1.0)


@dataclass
class Cost:
    """What an hour came to."""

    over: int = 0
    refused: int = 0
    reloads: float = 0.0
    missed: int = 0
    unsaid: int = 0
    failed: int = 0


class World:
    """A loop beside a host; ``each_second`` is what a fault does of itself."""

    def __init__(self, folder: Path, rates: Rates, seed: int = 2) -> None:
        self.clock = asyncio.get_running_loop().time
        self.began_s = self.clock()
        shifted = {name: self._shifted(rate) for name, rate in rates.items()}
        self.host, self.mps = FaultyHost(shifted, self.clock, seed), Mps()
        self.each_second: Callable[[int], None] = lambda second: None
        self.cost, self.says_well, self.unwell = Cost(), False, False
        sources = Sources(tritons={"main": self.host}, models={"main": tuple(rates)}, mps=self.mps)
        knowledge = Predictors({name: name for name in rates}, PREDICTORS)
        settings = config(folder, SLOS, vgg19=2)
        tritons = {"main": self.host}
        self.loop = Loop(settings, sources, tritons, knowledge, self._report, wall_clock=self.clock)

    def _shifted(self, rate: Callable[[float], float]) -> Callable[[float], float]:
        return lambda at_s: rate(at_s - self.began_s)

    def _report(self, tick: Tick) -> None:
        self.says_well = tick.plan.why.startswith("every SLO holds")

    async def run(self, seconds: int) -> Cost:
        await self._live(0, SETTLES_S)
        asked, self.cost = self.host.asked, Cost()
        await self._live(SETTLES_S, SETTLES_S + seconds, faulty=True)
        self.cost.reloads = (self.host.asked - asked) * 3600 / seconds
        await self.loop.close()
        await self.host.settled()
        return self.cost

    async def _live(self, first: int, end: int, *, faulty: bool = False) -> None:
        for second in range(first, end):
            began_s = self.clock()
            if faulty:
                self.each_second(second)
            try:
                await self.loop.tick(began_s)
            except Exception:  # that is what is counted
                self.cost.failed += 1
                self.says_well = False
            self.unwell |= not self.says_well
            self._count(second)
            await asyncio.sleep(max(0.0, began_s + 1.0 - self.clock()))

    def _count(self, second: int) -> None:
        models = self.host.models.values()
        self.cost.over += sum(m.applied.granted or 0.0 for m in models) > 1 + 1e-6
        self.cost.refused += sum(m.config["max_batch_size"] < OWNERS_BATCH for m in models)
        self.host.drained()
        if second % 60 == 59:
            missed = sum(self._missed(model) for model in self.host.models)
            self.cost.missed += missed
            self.cost.unsaid += 0 if self.unwell else missed
            self.unwell = False

    def _missed(self, model: str) -> bool:
        """Whether the last minute missed its SLO."""
        now_s = self.clock()
        late = [ms for at_s, ms in self.host.models[model].latencies if at_s >= now_s - 60]
        return not late or float(np.quantile(late, 0.99)) > SLOS[model]


# ---------------------------------------------------------------- the faults


def nothing(world: World) -> None:
    """No fault: what an hour of it costs anyhow."""


def one_reading_in_61(world: World) -> None:
    """vgg19's reading misses its deadline once in 61 seconds."""
    turn = [0]

    def missed(read: dict[str, Any]) -> None:
        turn[0] += 1
        if turn[0] % 61 == 0:
            read["vgg19"] = Unanswered("no answer in 0.4 s")

    world.host.changes = missed


def unread_for_minutes(world: World) -> None:
    """Five minutes in ten, vgg19's configuration is not to be had."""

    def missed(read: dict[str, Any]) -> None:
        if int((world.clock() - world.began_s) // 300) % 2 and "vgg19" in read:
            read["vgg19"] = Unanswered("no answer in 0.4 s")

    world.host.changes = missed


def undone(world: World) -> None:
    """Somebody loads the file of every model again, five seconds after each change."""
    host = world.host
    host.after_load = lambda model: host.later(5.0, lambda: host.put(model))


def one_undone(world: World) -> None:
    """The same with alexnet only."""
    host = world.host
    host.after_load = lambda model: (
        host.later(5.0, lambda: host.put(model)) if model == "alexnet" else None
    )


def refuser(world: World) -> None:
    """Every load of alexnet is refused."""

    def refuse(model: str) -> None:
        if model == "alexnet":
            raise Refused("failed to load 'alexnet': out of memory")

    world.host.before_load = refuse
    world.host.put("alexnet")


def late_answers(world: World) -> None:
    """Every answer comes up to 300 ms late."""
    world.host.late_s = 0.3


def silence(world: World) -> None:
    """No answer for twenty seconds in every three minutes."""

    def each(second: int) -> None:
        world.host.silent = second % 180 < 20

    world.each_second = each


def dies_reloading(world: World) -> None:
    """Triton dies at every third load; it is back after ten seconds, as its files say."""
    host = world.host
    turn = [0]

    def back() -> None:
        host.silent = False
        host.restart()

    def dies(_: str) -> None:
        turn[0] += 1
        if turn[0] % 3 == 0 and not host.silent:
            host.silent = True
            host.later(10.0, back)

    host.before_load = dies


def restarts(world: World) -> None:
    """Triton is restarted every ten minutes: everything is loaded as its files say."""

    def each(second: int) -> None:
        if second % 600 == 0:
            world.host.restart()

    world.each_second = each


def mps_gone(world: World) -> None:
    """MPS control is gone for four minutes in ten."""

    def each(second: int) -> None:
        world.mps.gone = second % 600 >= 360

    world.each_second = each


def leaves_and_returns(world: World) -> None:
    """vgg19 is unloaded for two minutes in six; it returns as its file says."""
    away = list[Any]()

    def each(second: int) -> None:
        host = world.host
        if second % 360 == 240:
            away.append(host.remove("vgg19"))
        elif second % 360 == 0 and away:
            model = away.pop()
            model.reset(config_of("vgg19", OWNERS_BATCH))
            host.add(model)

    world.each_second = each


def by_hand(world: World) -> None:
    """An operator gives one model after the other a share of 30 %, every eight minutes."""

    def each(second: int) -> None:
        if second % 480 == 0:
            model = list(FITS)[second // 480 % len(FITS)]
            world.host.put(model, config_of(model, OWNERS_BATCH, "/x/shares/igniterd-v2/30"))

    world.each_second = each


def odd_paths(world: World) -> None:
    """Somebody's environments look like shares: /nfs/shares/3.11, shares/0, shares/500."""
    odd = ("/nfs/shares/3.11", "/srv/shares/0", "/srv/shares/500")

    def each(second: int) -> None:
        if second % 600 == 0:
            path = odd[second // 600 % len(odd)]
            world.host.put("alexnet", config_of("alexnet", OWNERS_BATCH, path))

    world.each_second = each


def nonsense(world: World) -> None:
    """resnet50's counters are nonsense for one minute in five."""

    def change(read: dict[str, Any]) -> None:
        there = read.get("resnet50")
        if int((world.clock() - world.began_s) // 60) % 5 == 0 and isinstance(there, ModelReading):
            count = int(world.host.rng.choice([0, -(10**6), 10**12]))
            read["resnet50"] = replace(there, success_count=count, inference_count=count)

    world.host.changes = change


def stuck(world: World) -> None:
    """vgg19 executes nothing for five minutes in fifteen, and its requests wait."""

    def each(second: int) -> None:
        model = world.host.models["vgg19"]
        if second % 900 >= 600:
            model.left = max(model.left, 1e6) if model.batch else model.left
        elif model.batch and model.left > 1e3:
            model.left = 0.1

    world.each_second = each


FAULTS: dict[str, tuple[Callable[[World], None], Rates]] = {
    "nothing": (nothing, FITS),
    "reading": (one_reading_in_61, FITS),
    "reading_too_much": (one_reading_in_61, TOO_MUCH),
    "unread": (unread_for_minutes, FITS),
    "undone": (undone, FITS),
    "one_undone": (one_undone, FITS),
    "refuser": (refuser, FITS),
    "late_answers": (late_answers, FITS),
    "silence": (silence, FITS),
    "dies_reloading": (dies_reloading, FITS),
    "restarts": (restarts, FITS),
    "mps_gone": (mps_gone, FITS),
    "leaves_and_returns": (leaves_and_returns, FITS),
    "by_hand": (by_hand, FITS),
    "odd_paths": (odd_paths, FITS),
    "nonsense": (nonsense, FITS),
    "stuck": (stuck, FITS),
}


async def lived(folder: Path, name: str, seconds: int) -> Cost:
    """``seconds`` of one fault, after all models have been taken over."""
    fault, rates = FAULTS[name]
    world = World(folder, rates)
    fault(world)
    return await world.run(seconds)


def in_virtual_time(living: Callable[[Path], Awaitable[Cost]]) -> Cost:
    loop = looptime.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        cost: Cost = loop.run_until_complete(living(Path(folder)))
    loop.close()
    return cost


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    asked = parser.parse_args()
    level = structlog.make_filtering_bound_logger(logging.CRITICAL)  # faults are what it is made of
    structlog.configure(wrapper_class=level)
    heads = ("over", "refused", "reloads", "missed", "unsaid", "failed")
    print(f"{'fault':<20}" + "".join(f"{head:>9}" for head in heads))
    seconds = round(asked.hours * 3600)
    for name in asked.only:
        cost = in_virtual_time(partial(lived, name=name, seconds=seconds))
        figures = "".join(f"{getattr(cost, head):>9.0f}" for head in heads)
        print(f"{name:<20}{figures}", flush=True)


if __name__ == "__main__":
    main()
