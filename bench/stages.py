"""CPU time of one tick by its stages, on many models: what the daemon's loop costs without reading
Triton and NVML.

    python bench/stages.py [--gpus 8] [--models 64] [--seconds 90] [--profile]

Every GPU is simulated event by event in virtual time (Poisson arrivals, the measured V100 tables),
planned for once, and then read once a second; the same observations are then given to the loop's
pure stages. A steady tick is what counts: the median (the least, where the machine is busy with
other work), and the mean with the searches and new predictions that come now and then.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import logging
import os
import platform
import pstats
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import structlog

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from igniterd.clients.metrics import Metrics
from igniterd.config import Config, parse_config
from igniterd.decide.cooldown import after
from igniterd.decide.decide import decide
from igniterd.decide.judge import PredictorPair
from igniterd.decide.search import find
from igniterd.decide.state import DecisionState
from igniterd.decisions import ActResult, Tick
from igniterd.estimate import EstimatorState, estimate
from igniterd.perf import builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Observation
from igniterd.report import Reporter
from igniterd.window import between
from tests.factories import predictor_pair
from tests.sim.host import SimHost

LIKE = ("alexnet", "resnet50", "vgg19", "ssd")
RATES = {"alexnet": 60.0, "resnet50": 25.0, "vgg19": 12.0, "ssd": 5.0}
SLOS = {"alexnet": 60.0, "resnet50": 120.0, "vgg19": 250.0, "ssd": 350.0}
WARM_S = 30


def settings(names: list[list[str]], folder: Path) -> Config:
    models = "".join(
        f'[[model]]\nname = "{n}"\nslo_p99_ms = {SLOS[n.split("-")[0]]}\nprofile = "v100.json"\n'
        f"gpu = {gpu}\n"
        for gpu, there in enumerate(names)
        for n in there
    )
    return parse_config(
        f'[host]\nname = "bench"\n[loop]\nmode = "advise"\n{models}', source="bench", folder=folder
    )


def constant(rate: float, _: float) -> float:
    return rate


def observed(
    names: list[list[str]], predictor: LatencyPredictor, seconds: int
) -> list[Observation]:
    """What would be read once a second."""
    now = [0.0]
    hosts = []
    for gpu, there in enumerate(names):
        like = {n: n.split("-")[0] for n in there}
        plan = find(
            predictor, [Demand(n, like[n], RATES[like[n]], SLOS[like[n]]) for n in there]
        ).allocations
        rates = {n: (like[n], partial(constant, RATES[like[n]])) for n in there}
        host = SimHost(rates, lambda: now[0], seed=gpu)
        for model in host.models.values():
            model.applied = plan[model.name]
        hosts.append(host)
    out = []
    for second in range(seconds):
        now[0] = float(second)
        readings = {}
        for gpu, host in enumerate(hosts):
            host.advance(now[0])
            readings.update(
                {
                    m.name: replace(host._reading(m), gpus=(f"main:{gpu}",))
                    for m in host.models.values()
                }
            )
        out.append(Observation(now[0], models=readings))
    return out


def run(
    seen: list[Observation], config: Config, predictors: PredictorPair, profiled: dict[str, str]
) -> dict[str, list[float]]:
    """CPU ms of every stage at every tick."""
    spent: dict[str, list[float]] = {
        stage: [] for stage in ("window", "estimate", "decide", "report")
    }
    report = Reporter(config, metrics=Metrics(config).update)
    belief: EstimatorState = {}
    held, before = DecisionState(), None
    for number, now in enumerate(seen):
        marks = [time.process_time()]
        window = between(before, now)
        marks.append(time.process_time())
        load, belief = estimate(
            now,
            window,
            belief,
            rules=config.decide,
            models=config.by_name(),
            profiled=profiled,
            predictor=predictors.mean,
            wall_s=now.at_s,
        )
        marks.append(time.process_time())
        held = after(held, ActResult(), load.loads, config.decide, now.at_s)
        plan, held = decide(
            load, now, held, config=config, profiled=profiled, predictors=predictors, now_s=now.at_s
        )
        marks.append(time.process_time())
        report(Tick(number, now.at_s, now.at_s, now, window, load, plan, ActResult(), {}))
        marks.append(time.process_time())
        for stage, took in zip(spent, np.diff(marks), strict=True):
            spent[stage].append(1e3 * float(took))
        before = now
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    names = [
        [f"{LIKE[i % 4]}-{i}" for i in range(arguments.models) if i % arguments.gpus == g]
        for g in range(arguments.gpus)
    ]
    profiled = {n: n.split("-")[0] for there in names for n in there}
    model = load_model(builtin_profile("v100"))
    with tempfile.TemporaryDirectory() as folder:
        config = settings(names, Path(folder))
    seen = observed(names, LatencyPredictor(model, level=config.decide.level), arguments.seconds)
    predictors = predictor_pair(model, level=config.decide.level)
    watch = cProfile.Profile()
    gc.collect()
    gc.freeze()  # as the daemon does when it has started
    if arguments.profile:
        spent = watch.runcall(run, seen, config, predictors, profiled)
        pstats.Stats(watch).sort_stats("tottime").print_stats(40)
    else:
        spent = run(seen, config, predictors, profiled)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"{arguments.models} models on {arguments.gpus} GPUs, {arguments.seconds} s of their time"
    )
    print(f"CPU ms a tick, after {WARM_S} s{'least':>12}{'median':>8}{'mean':>8}{'most':>8}")
    late = {stage: np.array(times[WARM_S:]) for stage, times in spent.items()}
    for stage, times in {**late, "together": sum(late.values())}.items():
        print(
            f"{stage:<27}{times.min():>12.2f}{np.median(times):>8.2f}{times.mean():>8.2f}{times.max():>8.2f}"
        )


if __name__ == "__main__":
    main()
