"""Models moved between the GPUs of a simulated host, in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from igniterd.act import SecondCopies
from igniterd.clients.triton.config import allocation_of
from igniterd.decide.state import Relocation
from igniterd.decisions import StepKind
from igniterd.errors import Unanswered
from igniterd.loop import Loop
from igniterd.records import BoardReading
from tests.factories import settings_of
from tests.hosts import Bench

pytestmark = pytest.mark.looptime
SLOS = {"alexnet": 15.0, "resnet50": 40.0, "vgg19": 60.0, "ssd": 60.0}
GPUS = ("GPU-a", "GPU-b")
TAKEN_OVER_S = 30.0  # until then, models pass through the whole GPU


class Boards:
    """Two boards of one kind; ``used`` bytes of each."""

    def __init__(self) -> None:
        self.used: dict[str, int | None] = dict.fromkeys(GPUS, 2**30)
        self.faults = dict.fromkeys(GPUS, "")

    async def read(self) -> tuple[BoardReading, ...]:
        return tuple(
            BoardReading(
                index,
                gpu,
                "V100",
                memory_used_bytes=self.used[gpu],
                memory_total_bytes=2**34,
                fault=self.faults[gpu],
            )
            for index, gpu in enumerate(GPUS)
        )


class TwoGpus(Bench):
    """One Triton over two GPUs, with its models where ``homes`` says, by device number."""

    def __init__(
        self,
        folder: Path,
        rates: Mapping[str, Callable[[float], float]],
        homes: Mapping[str, int],
        *,
        decide: str = "",
    ) -> None:
        slos = {model: SLOS[model] for model in rates}
        self.config = settings_of(folder, slos, more=f"[decide]\n{decide}")
        super().__init__(self.config, rates)
        for name, gpu in homes.items():
            self.host.models[name].put_on(gpu)
        self.boards = Boards()
        self.loop.sources.boards = self.boards
        self.loop.sources.devices = {"main": GPUS}

    @property
    def granted(self) -> list[float]:
        """Of each GPU, at each tick since the take-over."""
        return [
            sum(r.granted_on(gpu) for r in tick.observation.models.values())
            for tick in self.ticks
            if tick.at_s - self.began_s >= TAKEN_OVER_S
            for gpu in GPUS
        ]

    @property
    def gpus(self) -> dict[str, int]:
        return {name: model.gpu for name, model in self.host.models.items()}

    @property
    def moved(self) -> list[str]:
        return [
            done.step.model
            for tick in self.ticks
            for done in tick.outcome.actuations
            if done.ok and done.step.kind is StepKind.RELOCATE
        ]

    def late(self, since_s: float) -> dict[str, bool]:
        return {
            m: self.p99_ms(m, since_s, math.inf) > slo
            for m, slo in SLOS.items()
            if m in self.host.models
        }


def constant(rate: float) -> Callable[[float], float]:
    return lambda _: rate


def step(before: float, after: float, at_s: float) -> Callable[[float], float]:
    return lambda now_s: before if now_s < at_s else after


async def test_a_gpu_that_cannot_hold_its_slos_gives_a_model_to_the_one_that_has_room(
    tmp_path: Path,
) -> None:
    rates = {
        "alexnet": step(400.0, 1000.0, 40.0),
        "resnet50": step(300.0, 800.0, 40.0),
        "vgg19": constant(60.0),
    }
    bench = TwoGpus(tmp_path, rates, {"alexnet": 0, "resnet50": 0, "vgg19": 1})
    await bench.run(40)
    assert bench.moved == []
    await bench.run(60)
    assert len(bench.moved) == 1, "the fewest tenants"
    assert len(set(bench.gpus.values())) == 2
    assert bench.loop.carry.held.relocation is None
    assert bench.ticks[-1].plan.feasible, bench.ticks[-1].plan.why
    await bench.run(30)
    assert not any(bench.late(100.0).values())
    assert max(bench.granted) <= 1 + 1e-9


HOT = {
    "alexnet": step(400.0, 1000.0, 40.0),
    "resnet50": step(300.0, 800.0, 40.0),
    "vgg19": constant(60.0),
}
HOMES = {"alexnet": 0, "resnet50": 0, "vgg19": 1}


async def test_without_moves_models_stay_where_they_are(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES, decide="moves = false\n")
    await bench.run(100)
    assert bench.moved == []
    assert bench.gpus == HOMES


async def test_a_gpu_without_memory_for_it_is_given_no_model(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    sizes = dict.fromkeys(HOT, 2**31)
    bench.loop.actor._copies = SecondCopies(sizes)
    await bench.run(35)
    bench.boards.used["GPU-b"] = 2**34 - 2**30
    await bench.run(65)
    assert bench.moved == []
    bench.boards.used["GPU-b"] = 2**30
    await bench.run(90)
    assert len(bench.moved) == 1


async def test_a_board_that_is_lost_is_given_no_model(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    bench.boards.used["GPU-b"], bench.boards.faults["GPU-b"] = None, "GPU is lost"
    await bench.run(100)
    assert bench.moved == []


async def test_moves_end_where_a_device_number_has_become_another_gpu(tmp_path: Path) -> None:
    """Its server was started anew, and sees the GPUs in another order."""
    bench = TwoGpus(tmp_path, HOT, HOMES)
    await bench.run(38)
    here = {m: r.allocation for m, r in bench.ticks[-1].observation.models.items()}
    smaller = replace(here["vgg19"], share=0.3, devices=(0,))
    relocation = Relocation(
        {"vgg19": "GPU-a"}, here | {"vgg19": smaller}, frozenset(GPUS), dict.fromkeys(HOT, 1e4)
    )
    held = replace(bench.loop.carry.held, relocation=relocation)
    bench.loop.carry = replace(bench.loop.carry, held=held)
    bench.loop.sources.devices = {"main": GPUS[::-1]}
    await bench.run(4)
    assert max(bench.granted) <= 1 + 1e-9
    assert bench.gpus == HOMES


async def test_a_model_that_is_said_to_belong_on_its_gpu_stays(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    models = [
        m.model_copy(update={"gpu": HOMES[m.name]}) if m.name != "resnet50" else m
        for m in bench.config.model
    ]
    bench.loop.config = bench.config.model_copy(update={"model": models})
    await bench.run(100)
    assert bench.moved == ["resnet50"]


async def test_a_gpu_is_emptied_when_its_models_fit_on_the_others(tmp_path: Path) -> None:
    rates = {"alexnet": constant(100.0), "resnet50": constant(60.0), "vgg19": constant(20.0)}
    bench = TwoGpus(tmp_path, rates, HOMES, decide="consolidate = true\n")
    await bench.run(300)
    assert len(set(bench.gpus.values())) == 1, bench.ticks[-1].plan.why
    assert bench.moved == ["vgg19"], "the emptier one is emptied, and nothing moves back"
    await bench.run(600)
    assert bench.moved == ["vgg19"]
    assert not any(bench.late(310.0).values())


async def test_an_emptied_gpu_is_used_again_when_it_is_needed(tmp_path: Path) -> None:
    rates = {
        "alexnet": step(100.0, 1000.0, 300.0),
        "resnet50": step(60.0, 800.0, 300.0),
        "vgg19": constant(60.0),
    }
    bench = TwoGpus(tmp_path, rates, HOMES, decide="consolidate = true\n")
    await bench.run(290)
    assert len(set(bench.gpus.values())) == 1
    await bench.run(90)
    assert len(set(bench.gpus.values())) == 2
    assert bench.ticks[-1].plan.feasible, bench.ticks[-1].plan.why


@pytest.mark.parametrize("after", range(41, 52))
async def test_whenever_the_daemon_is_killed_the_host_serves_and_the_next_one_goes_on(
    tmp_path: Path, after: int
) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    bench.host.reload_s = 2.5
    await bench.run(after)
    if bench.loop.acting is not None:
        bench.loop.acting.cancel()
    old, before = bench.loop, len(bench.ticks)
    bench.loop = Loop(
        bench.config, old.sources, {"main": bench.host}, old.knowledge, bench.ticks.append,
        wall_clock=bench.clock,
    )  # fmt: skip
    await bench.run(110)
    assert bench.ticks[-1].plan.feasible, bench.ticks[-1].plan.why
    assert len(set(bench.gpus.values())) == 2
    assert max(bench.granted) <= 1 + 1e-9
    moved = {gpu for tick in bench.ticks[before:] for gpu in tick.observation.models["vgg19"].gpus}
    assert moved <= set(GPUS)
    assert not any(bench.late(after + 80.0).values())


async def test_a_move_that_triton_refuses_is_not_tried_again_at_once(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    await bench.run(40)
    bench.host.refuse = dict.fromkeys(("alexnet", "resnet50"), "no such device")
    await bench.run(60)
    refused = [
        done.step.kind for tick in bench.ticks for done in tick.outcome.actuations if not done.ok
    ]
    assert refused.count(StepKind.RELOCATE) <= 2
    await bench.run(120)
    assert len(set(bench.gpus.values())) == 2
    assert bench.ticks[-1].plan.feasible, bench.ticks[-1].plan.why


async def test_room_is_kept_for_a_move_that_was_not_answered_and_may_end_yet(
    tmp_path: Path,
) -> None:
    rates = HOT | {"vgg19": step(10.0, 200.0, 70.0)}
    bench = TwoGpus(tmp_path, rates, HOMES)
    load, late = bench.host.load, list[asyncio.Task[None]]()

    async def hangs(model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        if allocation_of(config).devices == bench.host.models[model].applied.devices or late:
            return await load(model, config, exact=exact)

        async def ends() -> None:
            await asyncio.sleep(100.0)
            await load(model, config)

        late.append(asyncio.create_task(ends()))
        await asyncio.sleep(3.0)
        raise Unanswered("no answer in 3 s")

    bench.host.load = hangs  # type: ignore[method-assign]
    await bench.run(95)
    assert late, "the move was begun"
    await bench.run(110)
    assert late[0].done()
    assert max(bench.granted) <= 1 + 1e-9


async def test_for_margins_alone_a_model_is_not_moved_again_at_once(tmp_path: Path) -> None:
    def swing(low: float, high: float, phase: int) -> Callable[[float], float]:
        return lambda now_s: high if now_s >= 40 and int(now_s // 60) % 2 == phase else low

    rates = {
        "alexnet": constant(400.0),
        "resnet50": swing(300.0, 800.0, 0),
        "vgg19": swing(60.0, 160.0, 1),
        "ssd": constant(20.0),
    }
    bench = TwoGpus(tmp_path, rates, {"alexnet": 0, "resnet50": 0, "vgg19": 1, "ssd": 1})
    await bench.run(600)
    shed = {t.number for t in bench.ticks if not t.plan.feasible}
    moves = [
        (tick.number, done.step.model)
        for tick in bench.ticks
        for done in tick.outcome.actuations
        if done.ok and done.step.kind is StepKind.RELOCATE
    ]
    for (first, model), (later, other) in pairwise(moves):
        lately = any(first < n <= later for n in shed)
        assert model != other or lately or later - first >= 300, moves
