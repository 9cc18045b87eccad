"""What a tick and a decision cost on a host of 8 GPUs with 64 models, CPU time: the second half of
``bench/hosts.py``.

One Triton over all GPUs of the simulated host, one tick a virtual second. Rates grow by 40 % and
fall back again, on each GPU at another time. A tick's time is that of the whole loop with the
report, less what the simulation takes; reading a real Triton is not in it (``bench/tick.py``).
Every few ticks, what the decision was asked is asked again, by a loop that knows nothing yet: with
nothing remembered of predictions, and once more with all of them remembered.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import igniterd.loop
from bench.hosts_world import MODEL, SLOW, STEP_S, Asked, Fleet, World
from bench.stages import LIKE, RATES, SLOS
from igniterd.clients.metrics import Metrics
from igniterd.config import Config
from igniterd.decide.decide import decide
from igniterd.decide.judge import PredictorPair
from igniterd.decide.state import DecisionState
from igniterd.decisions import Tick
from igniterd.report import Reporter
from tests.factories import predictor_pair

GPUS, MODELS = 8, 64
SECONDS, SHORT_S = 420, 60
WARM_S = 150  # first shares have been given
AGAIN_EVERY_S = 10
AIM_MS, AIM_PART = 50.0, 0.01
"""A decision takes no longer; ticks take no larger part of one core."""
NAMES = {"profiled", "predictors", "basis"}


@dataclass(slots=True)
class Asks:
    """What decisions were asked, and what each took (ms)."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)

    def __call__(self, *args: Any, **more: Any) -> Any:
        began = time.thread_time()
        decided = decide(*args, **more)
        self.took_ms.append(1e3 * (time.thread_time() - began))
        self.calls.append((args, more))
        return decided


def models() -> list[Asked]:
    at_s = np.arange(0.0, SECONDS + STEP_S, STEP_S)
    found = []
    for n in range(MODELS):
        like, gpu = LIKE[n // GPUS % len(LIKE)], n % GPUS
        begins_s = WARM_S + 30.0 * gpu
        grown = (at_s >= begins_s) & (at_s < begins_s + 45.0)
        rates = RATES[like] / SLOW * np.where(grown, 1.4, 1.0)
        found.append(Asked(f"{like}-{n}", like, SLOS[like] * SLOW, gpu, rates))
    return found


def reporter(settings: Config) -> Callable[[Tick], None]:
    return Reporter(settings, metrics=Metrics(settings).update)


def again(ask: tuple[tuple[Any, ...], dict[str, Any]], pair: PredictorPair) -> float:
    """CPU ms of a decision by a loop that knows nothing yet."""
    (estimate, observation, _), more = ask
    profiled = more["profiled"]
    rest = {key: value for key, value in more.items() if key not in NAMES}
    began = time.thread_time()
    decide(
        estimate,
        observation,
        DecisionState(),
        profiled=profiled,
        predictors=pair,
        basis=lambda _: (profiled, pair),
        **rest,
    )
    return 1e3 * (time.thread_time() - began)


async def cost(folder: Path, *, short: bool = False) -> str:
    """The table, in words."""
    spent = [0.0]
    advance = Fleet.advance

    def watched(fleet: Fleet, until_s: float) -> None:
        began = time.thread_time()
        advance(fleet, until_s)
        spent[0] += time.thread_time() - began

    asks, ticks = Asks(), list[float]()
    with patch.object(Fleet, "advance", watched), patch.object(igniterd.loop, "decide", asks):
        rules = f"max_reloads_per_hour = {120 * GPUS}"
        world = World(folder, models(), GPUS, rules=rules, report=reporter)
        tick = world.loop.tick

        async def timed(now_s: float) -> Tick:
            began, simulated = time.thread_time(), spent[0]
            done = await tick(now_s)
            ticks.append(1e3 * (time.thread_time() - began - (spent[0] - simulated)))
            return done

        gc.collect()
        gc.freeze()  # as the daemon does when it has started
        with patch.object(world.loop, "tick", timed):
            await world.live(SHORT_S if short else SECONDS)
        await world.loop.close()
        gc.unfreeze()
    return _told(asks, ticks, short=short)


def _told(asks: Asks, ticks: list[float], *, short: bool) -> str:
    cold, warm = list[float](), list[float]()
    for ask in asks.calls[:: 3 * AGAIN_EVERY_S if short else AGAIN_EVERY_S]:
        pair = predictor_pair(MODEL)
        cold.append(again(ask, pair))
        warm.append(again(ask, pair))
    since = 0 if short else WARM_S
    rows = {
        "a decision, nothing remembered": cold,
        "a decision, predictions remembered": warm,
        "a decision as the loop takes it": asks.took_ms[since:],
        "a tick, with it": ticks[since:],
    }
    part = float(np.mean(ticks[since:])) / 1e3
    lines = [f"{MODELS} models on {GPUS} GPUs, CPU ms{'median':>15}{'mean':>8}{'most':>8}"]
    lines += [
        f"{what:<36}{np.median(took):>8.1f}{np.mean(took):>8.1f}{max(took):>8.1f}"
        for what, took in rows.items()
    ]
    lines.append(
        f"one tick a second is {100 * part:.2f} % of one core, without reading Triton "
        f"({100 * AIM_PART:g} % is aimed at; {AIM_MS:g} ms for a decision)"
    )
    return "\n".join(lines)
