"""What a loop believes and says on a simulated host whose answers are late, or of which one model
hangs."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igniterd.decisions import DecisionKind
from igniterd.hints import hints_of
from igniterd.records import ModelReading
from igniterd.report import state_of
from igniterd.states import State
from tests.hosts import Bench, config

pytestmark = pytest.mark.looptime

STEADY = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}
CALM = {"alexnet": 300.0, "resnet50": 200.0, "vgg19": 80.0}


def bench_of(folder: Path, rates: dict[str, float]) -> Bench:
    return Bench(
        config(folder), {name: (lambda _, rate=rate: rate) for name, rate in rates.items()}
    )


def answering(bench: Bench, name: str, change: Callable[[ModelReading], ModelReading]) -> None:
    read = bench.host.read_models

    async def changed(names: Iterable[str]) -> dict[str, Any]:
        return {
            n: change(r) if n == name and isinstance(r, ModelReading) else r
            for n, r in (await read(names)).items()
        }

    bench.host.read_models = changed  # type: ignore[method-assign]


async def test_answers_up_to_300_ms_late_are_no_bursts_and_no_overload(tmp_path: Path) -> None:
    bench, rng = bench_of(tmp_path, STEADY), random.Random(4)
    read = bench.host.read_models

    async def late(names: Iterable[str]) -> dict[str, Any]:
        await asyncio.sleep(rng.uniform(0, 0.3))
        return await read(names)

    bench.host.read_models = late  # type: ignore[method-assign]
    await bench.run(300)
    assert {load.arrival_scv for load in bench.ticks[-1].estimate.loads.values()} == {1.0}
    assert not [tick.at_s for tick in bench.ticks if tick.plan.outcome is DecisionKind.INFEASIBLE]


async def test_a_model_that_hangs_is_told_and_one_that_only_answers_late_is_not(
    tmp_path: Path,
) -> None:
    bench = bench_of(tmp_path, CALM)
    await bench.run(40)
    assert not any(load.stuck_s for tick in bench.ticks for load in tick.estimate.loads.values())
    frozen: list[tuple[ModelReading, float]] = []

    def hangs(now: ModelReading) -> ModelReading:
        frozen.append((now, bench.now_s))
        first, since_s = frozen[0]
        return replace(first, pending_count=1 + int(80 * (bench.now_s - since_s)), at_s=now.at_s)

    read = bench.host.read_models
    answering(bench, "vgg19", hangs)
    await bench.run(30)
    last, settings = bench.ticks[-1], bench.loop.config
    assert last.estimate.loads["vgg19"].stuck_s > 25
    assert "every SLO holds" not in state_of(last, settings)["decision"]["why"]
    hints = {hint["kind"]: hint.get("model") for hint in hints_of(last, settings)}
    assert hints.get("not_answering") == "vgg19"
    assert "offer" not in hints
    assert last.standings["vgg19"].state is State.NOT_ANSWERING
    bench.host.read_models = read  # type: ignore[method-assign]
    await bench.run(2)
    assert bench.ticks[-1].estimate.loads["vgg19"].stuck_s == 0


async def test_batches_that_clients_begin_to_bring_are_believed_within_a_minute(
    tmp_path: Path,
) -> None:
    bench = bench_of(tmp_path, CALM | {"alexnet": 100.0})
    state: dict[str, int] = {}

    def brings(now: ModelReading) -> ModelReading:
        extra = 7 * max(0, now.success_count - state["from"]) if "from" in state else 0
        if "on" in state and "from" not in state:
            state["from"] = now.success_count
        if now.success_count < state.get("last", 0) and "from" in state:
            state["from"] = 0  # another copy counts
        state["last"] = now.success_count
        return replace(
            now,
            success_count=now.success_count + 26_000_000,
            inference_count=now.success_count + 26_000_000 + extra,
        )

    answering(bench, "alexnet", brings)
    await bench.run(40)
    assert bench.ticks[-1].estimate.loads["alexnet"].items_per_request == 1.0
    state["on"] = 1
    await bench.run(60)
    assert bench.ticks[-1].estimate.loads["alexnet"].items_per_request > 7


async def test_one_odd_reading_is_a_state_of_that_model_and_the_others_are_planned_for(
    tmp_path: Path,
) -> None:
    bench = bench_of(tmp_path, CALM)
    answering(
        bench, "vgg19", lambda now: replace(now, allocation=replace(now.allocation, share=-0.5))
    )
    await bench.run(60)
    last = bench.ticks[-1]
    states = {name: standing.state for name, standing in last.standings.items()}
    assert {name for name, state in states.items() if state is State.UNPREDICTABLE} == {"vgg19"}
    assert last.estimate.loads.keys() >= {"alexnet", "resnet50"}
    assert "every SLO holds" not in state_of(last, bench.loop.config)["decision"]["why"]
