"""What the cluster is told of a host: the size of its state over MQTT, the longest of its messages,
and the CPU time that a tick spends on it.

    python bench/messages.py [--seconds 60]

The hosts are those of ``bench/stages.py``, with boards and their UUIDs: 8 GPUs with 64 models, and
with 16. The state is told every fifth tick; what is measured is one of those: the document, its
parts, and each as an event, as the publisher puts it down.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # at the end: PYTHONPATH may name another revision
from bench.stages import LIKE, observed, settings
from igniterd.cluster_state import cluster_state
from igniterd.config import Config
from igniterd.decide.cooldown import after
from igniterd.decide.decide import decide
from igniterd.decide.state import DecisionState
from igniterd.decisions import ActResult, Tick
from igniterd.estimate import EstimatorState, estimate
from igniterd.jsontext import dumps
from igniterd.messages.event import event
from igniterd.messages.profile import canonical, digest_of, packed
from igniterd.messages.state import split_state
from igniterd.perf import builtin_profile, load_model
from igniterd.predict import LatencyPredictor
from igniterd.profiled import Predictors
from igniterd.records import BoardReading, Observation
from igniterd.report import state_of
from igniterd.states import Standing, State
from igniterd.window import between
from tests.factories import predictor_pair

GPUS = 8
TIMES = 20  # each tick is told so often


@dataclass(frozen=True, slots=True)
class Told:
    """Of one tick: the state's messages, and the CPU ms that they took."""

    messages: list[bytes]
    took_ms: float


def with_boards(seen: Observation) -> Observation:
    """``seen``, with GPUs as a driver names them."""
    uuids = tuple(f"GPU-{n}0000000-aaaa-bbbb-cccc-000000000000" for n in range(GPUS))
    boards = tuple(
        BoardReading(
            n,
            uuid,
            "NVIDIA H100 80GB HBM3",
            sm_count=132,
            memory_used_bytes=40 << 30,
            memory_total_bytes=80 << 30,
        )
        for n, uuid in enumerate(uuids)
    )
    models = {
        name: replace(reading, gpus=(uuids[int(reading.gpus[0].partition(":")[2])],))
        for name, reading in seen.models.items()
    }
    return replace(seen, boards=boards, models=models, devices={"main": uuids})


def ticks(config: Config, seen: list[Observation], known: Predictors) -> list[Tick]:
    """What the loop's pure stages make of what was observed."""
    belief: EstimatorState = {}
    held, before, out = DecisionState(), None, list[Tick]()
    pair = known.predictors
    assert pair is not None
    for number, now in enumerate(seen):
        window = between(before, now)
        load, belief = estimate(
            now,
            window,
            belief,
            rules=config.decide,
            models=config.by_name(),
            profiled=known.profiled,
            predictor=pair.mean,
            wall_s=now.at_s,
        )
        held = after(held, ActResult(), load.loads, config.decide, now.at_s)
        plan, held = decide(
            load,
            now,
            held,
            config=config,
            profiled=known.profiled,
            predictors=pair,
            now_s=now.at_s,
        )
        steered = dict.fromkeys(now.models, Standing(State.STEERED))
        made = Tick(number, now.at_s, 1.8e9 + now.at_s, now, window, load, plan, ActResult())
        out.append(replace(made, standings=steered))
        before = now
    return out


def told(tick: Tick, config: Config, known: Predictors) -> Told:
    about = {"source": "igniterd/default/bench", "id": "0123456789ab-12345"}
    began = time.process_time()
    for _ in range(TIMES):
        state = cluster_state(tick, config, known, run="0123456789abcdef")
        messages = [
            event("state", part, at=datetime.now(UTC), **about) for part in split_state(state)
        ]
    return Told(messages, 1e3 * (time.process_time() - began) / TIMES)


def host(models: int, seconds: int) -> str:
    """The rows of one host."""
    names = [
        [f"{LIKE[i % 4]}-{i}" for i in range(models) if i % GPUS == gpu] for gpu in range(GPUS)
    ]
    profile = builtin_profile("v100")
    text = canonical(profile.model_dump(mode="json", exclude_none=True))
    model = load_model(profile)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(names, Path(folder))
    profiled = {name: name.partition("-")[0] for there in names for name in there}
    known = Predictors(
        profiled,
        predictor_pair(model, level=config.decide.level),
        digests=dict.fromkeys(profiled, (digest_of(text),)),
    )
    predictor = LatencyPredictor(model, level=config.decide.level)
    seen = [with_boards(each) for each in observed(names, predictor, seconds)]
    gone = ticks(config, seen, known)
    gc.collect()
    gc.freeze()  # as the daemon does when it has started
    found = [told(tick, config, known) for tick in gone[seconds // 2 :: 5]]
    gc.unfreeze()
    took = [each.took_ms for each in found]
    last = found[-1].messages
    whole = len(dumps(state_of(gone[-1], config)))
    longest = max(len(message) for each in found for message in each.messages)
    part = len(packed(text)[0]["content"])
    return (
        f"{GPUS} GPUs, {models} models: {sum(map(len, last))} bytes of state in {len(last)} "
        f"messages ({whole} bytes of /state), the longest {longest}; the V100's profile {part}\n"
        f"  CPU ms to tell it: least {min(took):.2f}, median {np.median(took):.2f}, most "
        f"{max(took):.2f}; every fifth tick"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for models in (64, 16):
        print(host(models, seconds))


if __name__ == "__main__":
    main()
