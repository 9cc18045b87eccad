"""How often igniterd moves, in virtual time on the simulated host (real tables of a V100, emulated
batcher):

* a GPU at its limit: changes an hour, models let go, and requests in time, at 95 to 105 % of what
  the GPU can hold;
* a shift of traffic: rounds of reloads it is answered in, seconds to the last of them, and requests
  late meanwhile.

    python bench/moves.py [limit|shift] [--seeds 20] [--minutes 15] [--first-seed 1]

The GPU's limit is the largest multiple of 400/300/150 requests/s (alexnet, resnet50, vgg19) that
the planner's own model holds with no margins; the shift is 400/300/150 -> 400/450/75 after a
minute. As in the demo, all is four times slower: a quarter of the requests, and so a rate that is
known half as well.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import TypeVar

import looptime
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from igniterd.config import Config, parse_config
from igniterd.decide.search import find
from igniterd.decisions import DecisionKind, Tick
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.predict import Demand
from igniterd.profiled import Predictors
from tests.factories import latency_model, predictor_pair
from tests.sim.host import SimHost

T = TypeVar("T")
SLOW = 4.0  # as the demo: every time is so much longer, every rate so much smaller
SLOS = {"alexnet": 15.0 * SLOW, "resnet50": 40.0 * SLOW, "vgg19": 60.0 * SLOW}
STEADY = {"alexnet": 400.0 / SLOW, "resnet50": 300.0 / SLOW, "vgg19": 150.0 / SLOW}
SHIFTED = {"alexnet": 400.0 / SLOW, "resnet50": 450.0 / SLOW, "vgg19": 75.0 / SLOW}
SHIFT_AT_S, SEEN_S, RELOAD_S, SETTLE_S = 60, 45, 1.8, 30
NAMES = "(alexnet resnet50 vgg19)"
PREDICTORS = predictor_pair(latency_model(time_scale=SLOW))


class Run:
    """A loop on a simulated host, one tick a virtual second."""

    def __init__(
        self, folder: Path, rates: Mapping[str, Callable[[float], float]], seed: int
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.began_s = self.clock()
        settings = configured(folder)
        shifted = {
            m: (lambda at_s, rate=rate: rate(at_s - self.began_s)) for m, rate in rates.items()
        }
        models = {m: (m, rate) for m, rate in shifted.items()}
        self.host = SimHost(
            models, self.clock, seed=seed, max_batch=32, slow=SLOW, reload_s=RELOAD_S
        )
        self.ticks: list[Tick] = []
        sources = Sources(tritons={"main": self.host}, models={"main": tuple(rates)})
        knowledge = Predictors({m: m for m in rates}, PREDICTORS)
        self.loop = Loop(
            settings,
            sources,
            {"main": self.host},
            knowledge,
            self.ticks.append,
            wall_clock=self.clock,
        )

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            began_s = self.clock()
            await self.loop.tick(began_s)
            await asyncio.sleep(max(0.0, began_s + 1.0 - self.clock()))

    def late(self, since_s: float, until_s: float) -> dict[str, float]:
        """Fraction of the requests scheduled in [since_s, until_s) that took longer than their
        SLO."""
        out = {}
        for name, model in self.host.models.items():
            taken = [ms for at_s, ms in model.latencies if since_s <= at_s - self.began_s < until_s]
            out[name] = float(np.mean(np.array(taken) > SLOS[name])) if taken else 0.0
        return out


def configured(folder: Path) -> Config:
    models = "".join(
        f'[[model]]\nname = "{m}"\nslo_p99_ms = {slo}\npriority = {1 + (m == "vgg19")}\nprofile '
        '= "v100.json"\n'
        for m, slo in SLOS.items()
    )
    return parse_config(
        f'[host]\nname = "bench"\n[state]\ndirectory = "{folder}"\n{models}',
        source="bench",
        folder=folder,
    )


def virtually(coroutine: Callable[[Path], Coroutine[None, None, T]]) -> T:
    """Run to its end in virtual time."""
    loop = looptime.new_event_loop()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return loop.run_until_complete(coroutine(Path(folder)))
    finally:
        loop.close()


def limit() -> float:
    """The largest multiple of STEADY that fits without any margin."""

    def fits(scale: float) -> bool:
        return find(
            PREDICTORS.mean, [Demand(m, m, scale * rate, SLOS[m]) for m, rate in STEADY.items()]
        ).feasible

    low, high = 0.5, 2.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


async def at_limit(
    folder: Path, scale: float, seed: int, minutes: float
) -> tuple[float, float, float, float, dict[str, float]]:
    """Changes and plans an hour, times a model was let go an hour, fraction of the time that one
    was; lateness of each model."""
    run = Run(folder, {m: (lambda _, r=rate * scale: r) for m, rate in STEADY.items()}, seed)
    await run.run(SETTLE_S + 60 * minutes)
    await run.loop.close()
    counted = [t for t in run.ticks if t.at_s - run.began_s >= SETTLE_S]
    changes = sum(a.ok for t in counted for a in t.outcome.actuations)
    plans = sum(bool(t.plan.steps) and not t.plan.why.startswith("carrying on") for t in counted)
    gone = [t.plan.outcome is DecisionKind.INFEASIBLE for t in counted]
    begun = sum(now and not before for before, now in pairwise(gone))
    hours = minutes / 60
    return (
        changes / hours,
        plans / hours,
        begun / hours,
        mean(gone),
        run.late(SETTLE_S, SETTLE_S + 60 * minutes),
    )


async def shift(folder: Path, seed: int) -> tuple[int, int, float, dict[str, float]]:
    """Rounds, changes, seconds from the shift to the end of the last change, lateness of each model
    meanwhile."""
    rates = {m: (lambda t, a=STEADY[m], b=SHIFTED[m]: a if t < SHIFT_AT_S else b) for m in STEADY}
    run = Run(folder, rates, seed)
    await run.run(SHIFT_AT_S + SEEN_S)
    await run.loop.close()
    since = [t for t in run.ticks if t.at_s - run.began_s >= SHIFT_AT_S]
    rounds = sum(bool(t.plan.steps) and not t.plan.why.startswith("carrying on") for t in since)
    done = [t.at_s - run.began_s - SHIFT_AT_S for t in since for a in t.outcome.actuations if a.ok]
    return rounds, len(done), max(done, default=0.0), run.late(SHIFT_AT_S, SHIFT_AT_S + SEEN_S)


def _percent(late: Mapping[str, float]) -> str:
    return " ".join(f"{100 * x:>8.2f}" for x in late.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("limit", "shift"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.95, 1.0, 1.05])
    asked = parser.parse_args()
    if asked.what in (None, "limit"):
        whole = limit()
        print(
            f"\nA GPU at its limit ({whole:.3f} times 400/300/150 requests/s), {asked.minutes:g} "
            "virtual minutes"
        )
        print(
            f"{'load':>6} {'seed':>5} {'changes/h':>10} {'plans/h':>8} {'let go/h':>9} "
            f"{'gone %':>7} {'late %':>8} {NAMES}"
        )
        for scale in asked.scales:
            for seed in range(asked.first_seed, asked.first_seed + max(1, asked.seeds // 10)):
                changes, plans, begun, gone, late = virtually(
                    lambda f, s=seed, x=scale: at_limit(f, x * whole, s, asked.minutes)
                )
                figures = (
                    f"{scale:>6.2f} {seed:>5} {changes:>10.0f} {plans:>8.0f} {begun:>9.0f} "
                    f"{100 * gone:>7.1f}"
                )
                print(figures, _percent(late), flush=True)
    if asked.what in (None, "shift"):
        print(f"\nA shift of traffic 400/300/150 -> 400/450/75: the {SEEN_S} s after it")
        print(f"{'seed':>5} {'rounds':>7} {'changes':>8} {'last s':>7} {'late %':>8} {NAMES}")
        results = []
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            rounds, changes, last_s, late = virtually(lambda f, s=seed: shift(f, s))
            results.append((rounds, changes, last_s, *late.values()))
            print(f"{seed:>5} {rounds:>7} {changes:>8} {last_s:>7.1f} {_percent(late)}", flush=True)
        columns = list(zip(*results, strict=True))
        more = mean(r > 1 for r in columns[0])
        print(
            f" mean {mean(columns[0]):>7.2f} {mean(columns[1]):>8.2f} {mean(columns[2]):>7.1f} "
            + " ".join(f"{100 * mean(c):>8.2f}" for c in columns[3:])
            + f"; more than one round in {more:.0%}"
        )


if __name__ == "__main__":
    main()
